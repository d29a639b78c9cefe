"""From a checkpoint in any layout to our form: which layout, which config, then the arrays."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from jaxclip import checkpoint
from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig

from . import huggingface, open_clip, openai, strict_json
from .files import Weights, open_weights
from .inert import show
from .layouts import Layout, layers_of, shape_of, to_ours
from .parameters import infer

CONVERTER = 1  # raised whenever the same file gives another result


class Loaded(NamedTuple):
    """A whole model: arrays under our names in the file's number formats, config and origin."""

    flat: Flat
    config: ClipConfig
    notes: dict[str, Any]


class _Said(NamedTuple):
    """What a file and its config say about the model, beside the shapes."""

    layout: Layout
    activation: Activation | None = None
    heads: tuple[int | None, int | None] = (None, None)
    image_size: int | None = None
    data: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()


def _layout(arrays: Mapping[str, Any]) -> Layout:
    """Which layout the keys are in."""
    if any(name.startswith(("vision_model.", "text_model.")) for name in arrays):
        return huggingface.LAYOUT
    if "text.token_embedding.weight" in arrays:
        return open_clip.CUSTOM_TEXT
    if "token_embedding.weight" in arrays:
        return openai.LAYOUT
    first = ", ".join(show(name) for name in list(arrays)[:3]) or "none"
    raise ValueError(
        f"the {len(arrays)} tensors ({first}, ...) are no CLIP model of OpenAI's, open_clip's or "
        "Hugging Face's layout; a file with both towers was expected"
    )


def _read_hugging_face(folder: Path) -> _Said:
    path, pictures = folder / huggingface.CONFIG_NAME, folder / huggingface.PREPROCESSOR_NAME
    if not path.is_file():
        return _Said(huggingface.LAYOUT)
    data = strict_json.read(path)
    files = (path, pictures) if pictures.is_file() else (path,)
    return _Said(
        huggingface.LAYOUT,
        huggingface.activation(data),
        huggingface.heads(data),
        data=data,
        files=files,
    )


def _said(arrays: Flat, folder: Path) -> _Said:
    """The layout that the keys show, and what the config beside the file says."""
    layout = _layout(arrays)
    if layout is huggingface.LAYOUT:
        return _read_hugging_face(folder)
    if layout is openai.LAYOUT and openai.has_buffers(arrays):
        return _Said(layout, "quick_gelu", image_size=openai.image_size(arrays))
    path = folder / open_clip.CONFIG_NAME
    if not path.is_file():
        return _Said(layout)
    if layout is openai.LAYOUT:
        layout = open_clip.LAYOUT
    data = strict_json.read(path)
    heads, size = open_clip.sizes(data)
    return _Said(layout, open_clip.activation(data), heads, size, data, (path,))


def _settle(said: Activation | None, asked: Activation | None, what: str) -> Activation:
    """The activation that the file or the caller names; never a guess."""
    names = get_args(Activation)
    if asked is not None and asked not in names:
        raise ValueError(f"activation {asked!r} came, one of {', '.join(names)} was expected")
    if asked is not None and said not in (None, asked):
        raise ValueError(f"activation {asked!r} was asked for, but {what} is a model of {said!r}")
    found = asked or said
    if found is None:
        raise ValueError(
            f"{what} does not say which activation the model needs: put its {open_clip.CONFIG_NAME}"
            f" or {huggingface.CONFIG_NAME} beside it, or give activation= (--activation) one of "
            f"{', '.join(names)}; the models that OpenAI trained need quick_gelu"
        )
    return found


def _check(said: _Said, config: ClipConfig) -> None:
    """Hold the config beside the weights, where there is one, against the shapes."""
    if said.data is None:
        return
    if said.layout is not huggingface.LAYOUT:
        is_custom = said.layout is open_clip.CUSTOM_TEXT
        return open_clip.check(said.data, config, custom_text=is_custom)
    huggingface.check(said.data, config)
    for path in said.files[1:]:
        huggingface.check_preprocessor(strict_json.read(path), config)


class Digests(Mapping[str, str]):
    """{file name: SHA-256} of files, each of which is hashed when it is first asked for.

    Hashing takes as long as half of the loading, and who loads a model to use it does not look.
    ValueError, when asked, where a file is another one than it was when this was made; OSError
    where it is gone.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = {file.name: (file, _likeness(file.stat())) for file in files}
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            path, likeness = self._files[name]
            with open(path, "rb") as file:
                if _likeness(os.fstat(file.fileno())) != likeness:
                    raise ValueError(f"{path} was changed since it was loaded; load it again")
                self._known[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _likeness(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _load_foreign(weights: Weights, activation: Activation | None) -> tuple[Loaded, list[Path]]:
    arrays, path = weights.arrays, weights.files[0]
    said = _said(arrays, path.parent)
    config = infer(
        shape_of(said.layout, arrays),
        layers_of(said.layout, arrays),
        activation=_settle(said.activation, activation, path.name),
        is_resnet="visual.layer1.0.conv1.weight" in arrays,
        heads=said.heads,
        image_size=said.image_size,
    )
    _check(said, config)
    flat, extras = to_ours(said.layout, config, arrays)
    files = [*weights.files, *said.files]
    notes = {
        "image_policy": "official",
        "source": {"file": path.name, "sha256": Digests(files)},
        "converted": {"converter": CONVERTER, "layout": said.layout.name, "extras": extras},
    }
    return Loaded(flat, config, notes), files


def _load_ours(weights: Weights, activation: Activation | None) -> tuple[Loaded, list[Path]]:
    path = weights.files[0]
    for part in ("config", "notes"):
        strict_json.parse(weights.metadata.get(part, "{}").encode())
    loaded = Loaded(weights.arrays, *checkpoint.described(path, weights.metadata))
    _settle(loaded.config.activation, activation, path.name)
    return loaded, weights.files


def load_with_files(source: Path, activation: Activation | None) -> tuple[Loaded, list[Path]]:
    """The model, and the files that it came from."""
    weights = open_weights(source)
    try:
        if weights.metadata.get("format") == checkpoint.FORMAT:
            return _load_ours(weights, activation)
        return _load_foreign(weights, activation)
    except ValueError as error:
        where = "" if str(error).startswith(str(source)) else f"{source}: "
        raise ValueError(f"{where}{error}") from None


def load(source: str | Path, *, activation: Activation | None = None) -> Loaded:
    """Read a model in any layout: (arrays under our names, config, notes).

    source: a file or folder as for `read`, or a file that jaxclip wrote. The layout is read off the
    keys, sizes off the shapes; a config beside the weights must agree with them.
    activation: "quick_gelu", "gelu" or "gelu_tanh" where nothing there says it.
    The arrays keep the file's number formats; they are views of the mapped file where nothing had
    to be joined. `notes` says where the model came from and what is needed to write it back.
    ValueError, in one line: the file is not sound, is no CLIP model, or lacks the activation.
    Source: clip/model.py: build_model; open_clip/model.py; transformers/models/clip.
    """
    return load_with_files(Path(source), activation)[0]
