"""From a checkpoint in any layout to our form: which layout, which config, then the arrays."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from jaxclip import checkpoint
from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig, TextConfig

from .archive import strict_json
from .archive.inert import show
from .files import Weights, open_weights
from .layouts import huggingface, open_clip, openai, prefixes
from .layouts.infer import Heads, complete, infer
from .layouts.released_shapes import OTHER_POOLING, known_heads
from .layouts.table import Layout, layers_of, shape_of, to_ours

CONVERTER = 1  # raised whenever the same file gives another result


class Loaded(NamedTuple):
    """A whole model: arrays under our names in the file's number formats, config and origin."""

    flat: Flat
    config: ClipConfig
    notes: dict[str, Any]


class Given(NamedTuple):
    """What the caller says about the model, where the file does not."""

    activation: Activation | None = None
    heads: Heads | None = None


class _Said(NamedTuple):
    """What a file and its config say about the model, beside the shapes."""

    layout: Layout
    activation: Activation | None = None
    heads: tuple[int | None, int | None] | None = None
    image_size: int | None = None
    data: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()
    is_official: bool = False  # an archive of OpenAI's: its code says what the file does not


def _layout(arrays: Mapping[str, Any]) -> Layout:
    """Which layout the keys are in."""
    prefixes.check(arrays)
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


def _beside(folder: Path, *names: str) -> tuple[Path, ...]:
    """Those of the files that are there, of whatever kind: reading refuses what is no file."""
    return tuple(folder / name for name in names if os.path.lexists(folder / name))


def _read_hugging_face(folder: Path) -> _Said:
    configs = _beside(folder, huggingface.CONFIG_NAME)
    files = (*configs, *_beside(folder, *huggingface.PROCESSOR_NAMES))
    if not configs:
        return _Said(huggingface.LAYOUT, files=files)
    data = strict_json.read(configs[0])
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
        size = openai.image_size(arrays)
        return _Said(layout, "quick_gelu", image_size=size, is_official=True)
    files = _beside(folder, open_clip.CONFIG_NAME)
    if not files:
        return _Said(layout)
    if layout is openai.LAYOUT:
        layout = open_clip.LAYOUT
    data = strict_json.read(files[0])
    heads, size = open_clip.sizes(data)
    return _Said(layout, open_clip.activation(data), heads, size, data, files)


def _check_given(given: Given) -> None:
    names = get_args(Activation)
    if given.activation is not None and given.activation not in names:
        raise ValueError(
            f"expected an activation of {', '.join(names)}, got {show(given.activation)}"
        )
    if given.heads is not None and not (
        isinstance(given.heads, tuple | list)
        and len(given.heads) == 2
        and all(type(count) is int and count > 0 for count in given.heads)
    ):
        raise ValueError(
            "expected heads as two positive integers, of the image tower and of the text tower, "
            f"got {given.heads!r:.80}"
        )


def _agree(given: Given, activation: Activation | None, heads: Heads | None, what: str) -> None:
    """ValueError where the caller contradicts what the file says."""
    _check_given(given)
    if given.activation is not None and activation not in (None, given.activation):
        raise ValueError(
            f"activation {given.activation!r} was asked for, but {what} is a model of "
            f"{activation!r}"
        )
    if given.heads is not None and heads not in (None, tuple(given.heads)):
        raise ValueError(
            f"heads {tuple(given.heads)} were asked for, but {what} is a model of {heads}"
        )


def agree(given: Given, config: ClipConfig, what: str) -> None:
    """ValueError where the caller contradicts a config that is known."""
    _agree(given, config.activation, (config.vision.heads, config.text.heads), what)


def _check_pooling(shapes: ClipConfig, what: str) -> None:
    """ValueError for a vocabulary whose models pool at another token than the largest id."""
    vocabulary = shapes.text.vocab_size
    if vocabulary in OTHER_POOLING:
        raise ValueError(
            f"{what}: expected a text tower that pools at the largest token id, got a vocabulary "
            f"of {vocabulary:,}, as {OTHER_POOLING[vocabulary]} have it, which pool at another "
            "token; this library has no such model"
        )


def _ask(
    activation: Activation | None, heads: Heads | None, shapes: ClipConfig, what: str
) -> NoReturn:
    """ValueError that says what is missing and how to give it."""
    missing, ways, flags = [], [], ""
    if activation is None:
        missing.append("which activation the model needs")
        names = ", ".join(get_args(Activation))
        ways.append(f"activation= one of {names} (the models that OpenAI trained need quick_gelu)")
        flags += " --activation NAME"
    if heads is None:
        missing.append("how many attention heads its towers have")
        pools = shapes.text.vocab_size == TextConfig.vocab_size
        ways.append(
            "heads= two integers, of the image and of the text tower"
            + ("" if pools else ", if the model pools at the largest token id")
        )
        flags += " --heads IMAGE TEXT"
    raise ValueError(
        f"{what} does not say {' nor '.join(missing)}: put its {open_clip.CONFIG_NAME} or "
        f"{huggingface.CONFIG_NAME} beside it, or give {' and '.join(ways)}, or convert it "
        f"once with `jaxclip convert {what} OURS.safetensors{flags}`"
    )


def _settle(said: _Said, given: Given, shapes: ClipConfig, what: str) -> ClipConfig:
    """The config with the activation and the heads that the file or the caller names."""
    if said.is_official:
        said = said._replace(heads=openai.heads(shapes))
    elif said.data is None:
        _check_pooling(shapes, what)
    heads: Heads | None = None
    if said.heads is not None:  # what the config says unsoundly is refused by `_check`
        heads = said.heads[0] or shapes.vision.heads, said.heads[1] or shapes.text.heads
    _agree(given, said.activation, heads, what)
    activation = given.activation or said.activation
    heads = heads or given.heads or known_heads(shapes)
    if activation is None or heads is None:
        _ask(activation, heads, shapes, what)
    return complete(shapes, activation, (heads[0], heads[1]))


def _check(said: _Said, config: ClipConfig) -> None:
    """Hold the configs beside the weights against the shapes and the released preprocessing."""
    if said.layout is huggingface.LAYOUT:
        if said.data is not None:
            huggingface.check(said.data, config)
        for path in said.files:
            if path.name in huggingface.PROCESSOR_NAMES:
                huggingface.check_preprocessor(strict_json.read(path), config, path.name)
    elif said.data is not None:
        is_custom = said.layout is open_clip.CUSTOM_TEXT
        open_clip.check(said.data, config, custom_text=is_custom)


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


def _load_foreign(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    arrays, path = weights.arrays, weights.files[0]
    said = _said(arrays, path.parent)
    shapes = infer(
        shape_of(said.layout, arrays),
        layers_of(said.layout, arrays),
        is_resnet="visual.layer1.0.conv1.weight" in arrays,
        image_size=said.image_size,
    )
    config = _settle(said, given, shapes, path.name)
    _check(said, config)
    flat, extras = to_ours(said.layout, config, arrays, check_numbers=check_numbers)
    files = [*weights.files, *said.files]
    notes = {
        "image_policy": "official",
        "source": {"file": path.name, "sha256": Digests(files)},
        "converted": {"converter": CONVERTER, "layout": said.layout.name, "extras": extras},
    }
    return Loaded(flat, config, notes), files


def _load_ours(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    path = weights.files[0]
    for part in ("config", "notes"):
        strict_json.parse(weights.metadata.get(part, "{}").encode())
    loaded = Loaded(weights.arrays, *checkpoint.described(path, weights.metadata))
    checkpoint.check_model(loaded.config, loaded.flat, check_numbers=check_numbers)
    agree(given, loaded.config, path.name)
    return loaded, weights.files


def load_with_files(
    source: Path, given: Given, *, check_numbers: bool = True
) -> tuple[Loaded, list[Path]]:
    """The model, and the files that it came from."""
    weights = open_weights(source)
    try:
        if weights.metadata.get("format") == checkpoint.FORMAT:
            return _load_ours(weights, given, check_numbers)
        return _load_foreign(weights, given, check_numbers)
    except ValueError as error:
        where = "" if str(error).startswith(str(source)) else f"{source}: "
        raise ValueError(f"{where}{error}") from None


def load(
    source: str | Path,
    *,
    activation: Activation | None = None,
    heads: Heads | None = None,
    check_numbers: bool = True,
) -> Loaded:
    """Read a model in any layout: (arrays under our names, config, notes).

    source: a file or folder as for `read`, or a file that jaxclip wrote. The layout is read off the
    keys, sizes off the shapes; a config beside the weights must agree with them.
    activation: "quick_gelu", "gelu" or "gelu_tanh" where nothing there says it.
    heads: attention heads (of the image tower, of the text tower) where nothing there says them and
      the shapes are not those of a released model.
    check_numbers: False leaves it to `models.parameters.from_flat`, which sees each number as it
      copies it, to refuse those that are not finite.
    The arrays keep the file's number formats; they are views of the mapped file where nothing had
    to be joined. `notes` says where the model came from and what is needed to write it back.
    ValueError, in one line: the file is not sound, is no CLIP model, or lacks activation or heads.
    Source: clip/model.py: build_model; open_clip/model.py; transformers/models/clip.
    """
    return load_with_files(Path(source), Given(activation, heads), check_numbers=check_numbers)[0]
