"""From a checkpoint in any layout to our form: first its layout, its config, then the arrays."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from jaxclip import checkpoint
from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig, PictureConfig, TextConfig, TowerConfig

from .archive import strict_json
from .archive.inert import short_repr
from .files import Weights, open_weights
from .layouts import huggingface, open_clip, openai, pictures, prefixes
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
    """What the caller states about the model, where the file does not."""

    activation: Activation | None = None
    heads: Heads | None = None


class Hints(NamedTuple):
    """The layout of a file, and what it and its config state beside the shapes."""

    layout: Layout
    activation: Activation | None = None
    heads: tuple[int | None, int | None] | None = None
    image_size: int | None = None
    data: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()
    is_official: bool = False  # an archive of OpenAI's: its code has fixed heads


def _layout(arrays: Mapping[str, Any]) -> Layout:
    """The layout of the keys."""
    prefixes.check(arrays)
    if any(name.startswith(("vision_model.", "text_model.")) for name in arrays):
        return huggingface.LAYOUT
    if "text.token_embedding.weight" in arrays:
        return open_clip.CUSTOM_TEXT
    if "token_embedding.weight" in arrays:
        return openai.LAYOUT
    first = ", ".join(short_repr(name) for name in list(arrays)[:3]) or "none"
    raise ValueError(
        f"expected both towers of a CLIP model in OpenAI's, open_clip's or Hugging Face's layout, "
        f"got {len(arrays)} other tensors ({first}, ...)"
    )


def _existing(folder: Path, *names: str) -> tuple[Path, ...]:
    """Those of the names that exist in the folder; reading refuses what is no file."""
    return tuple(folder / name for name in names if os.path.lexists(folder / name))


def _read_hugging_face(folder: Path) -> Hints:
    configs = _existing(folder, huggingface.CONFIG_NAME)
    files = (*configs, *_existing(folder, *pictures.PROCESSOR_NAMES))
    if not configs:
        return Hints(huggingface.LAYOUT, files=files)
    data = strict_json.read(configs[0])
    return Hints(
        huggingface.LAYOUT,
        huggingface.activation(data),
        huggingface.heads(data),
        data=data,
        files=files,
    )


def _read_hints(arrays: Flat, folder: Path) -> Hints:
    """The layout of the keys, and what the config beside the file states."""
    layout = _layout(arrays)
    if layout is huggingface.LAYOUT:
        return _read_hugging_face(folder)
    if layout is openai.LAYOUT and openai.has_buffers(arrays):
        size = openai.image_size(arrays)
        return Hints(layout, "quick_gelu", image_size=size, is_official=True)
    files = _existing(folder, open_clip.CONFIG_NAME)
    if not files:
        return Hints(layout)
    if layout is openai.LAYOUT:
        layout = open_clip.LAYOUT
    data = strict_json.read(files[0])
    heads, size = open_clip.sizes(data)
    return Hints(layout, open_clip.activation(data), heads, size, data, files)


def _check_given(given: Given) -> None:
    names = get_args(Activation)
    if given.activation is not None and given.activation not in names:
        raise ValueError(
            f"expected an activation of {', '.join(names)}, got {short_repr(given.activation)}"
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


def _require_agreement(
    given: Given, activation: Activation | None, heads: Heads | None, what: str
) -> None:
    """ValueError where the caller contradicts what the file says."""
    _check_given(given)
    if given.activation is not None and activation not in (None, given.activation):
        raise ValueError(
            f"{what}: expected a model with activation {given.activation!r}, got one with "
            f"{activation!r}"
        )
    if given.heads is not None and heads not in (None, tuple(given.heads)):
        raise ValueError(
            f"{what}: expected a model with heads {tuple(given.heads)}, got one with {heads}"
        )


def require_agreement(given: Given, config: ClipConfig | TowerConfig, what: str) -> None:
    """ValueError where the caller contradicts a config that is known."""
    heads = None  # of one tower alone: nothing to compare with two numbers
    if isinstance(config, ClipConfig):
        heads = (config.vision.heads, config.text.heads)
    _require_agreement(given, config.activation, heads, what)


def _check_pooling(shapes: ClipConfig, what: str) -> None:
    """ValueError for a vocabulary whose models pool at another token than the largest id."""
    vocabulary = shapes.text.vocab_size
    if vocabulary in OTHER_POOLING:
        raise ValueError(
            f"{what}: expected a text tower that pools at the largest token id, got a vocabulary "
            f"of {vocabulary:,}, as {OTHER_POOLING[vocabulary]} have it, which pool at another "
            "token; this library has no such model"
        )


def _refuse_unknown(
    activation: Activation | None, heads: Heads | None, shapes: ClipConfig, what: str
) -> NoReturn:
    """ValueError that names what is unknown, and how to give it."""
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


def _choose_activation_and_heads(
    hints: Hints, given: Given, shapes: ClipConfig, what: str
) -> ClipConfig:
    """The config with the activation and the heads of the file, of the caller, or of its shapes."""
    if hints.is_official:
        hints = hints._replace(heads=openai.heads(shapes))
    elif hints.data is None:
        _check_pooling(shapes, what)
    heads: Heads | None = None
    if hints.heads is not None:  # what is wrong in the config is refused by `_check_configs`
        heads = hints.heads[0] or shapes.vision.heads, hints.heads[1] or shapes.text.heads
    _require_agreement(given, hints.activation, heads, what)
    activation = given.activation or hints.activation
    heads = heads or given.heads or known_heads(shapes)
    if activation is None or heads is None:
        _refuse_unknown(activation, heads, shapes, what)
    return complete(shapes, activation, (heads[0], heads[1]))


def _check_configs(hints: Hints, config: ClipConfig) -> None:
    """Compare the config beside the weights with the shapes."""
    if hints.layout is huggingface.LAYOUT:
        if hints.data is not None:
            huggingface.check(hints.data, config)
    elif hints.data is not None:
        is_custom = hints.layout is open_clip.CUSTOM_TEXT
        open_clip.check(hints.data, config, custom_text=is_custom)


def _pictures(hints: Hints, config: ClipConfig) -> PictureConfig:
    """How the configs beside the weights say that pictures are prepared."""
    if hints.layout is huggingface.LAYOUT:
        return pictures.from_folder(hints.files, config, "CLIP")
    return pictures.from_open_clip((hints.data or {}).get("preprocess_cfg", {}))


class Digests(Mapping[str, str]):
    """{file name: SHA-256} of files, each of which is hashed when it is first looked up.

    Hashing takes half as long as loading, and few callers read the digests.
    A look-up raises ValueError where a file has changed since this was made, OSError where it is
    gone.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = {file.name: (file, _stat_key(file.stat())) for file in files}
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            path, stat_key = self._files[name]
            with open(path, "rb") as file:
                if _stat_key(os.fstat(file.fileno())) != stat_key:
                    raise ValueError(f"{path} was changed since it was loaded; load it again")
                self._known[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _stat_key(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _load_foreign(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    arrays, path = weights.arrays, weights.files[0]
    hints = _read_hints(arrays, path.parent)
    shapes = infer(
        shape_of(hints.layout, arrays),
        layers_of(hints.layout, arrays),
        is_resnet="visual.layer1.0.conv1.weight" in arrays,
        image_size=hints.image_size,
    )
    config = _choose_activation_and_heads(hints, given, shapes, path.name)
    _check_configs(hints, config)
    config = dataclasses.replace(config, pictures=_pictures(hints, config))
    flat, extras = to_ours(hints.layout, config, arrays, check_numbers=check_numbers)
    files = [*weights.files, *hints.files]
    notes = {
        "image_policy": "official",
        "source": {"file": path.name, "sha256": Digests(files)},
        "converted": {"converter": CONVERTER, "layout": hints.layout.name, "extras": extras},
    }
    return Loaded(flat, config, notes), files


def _load_ours(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    path = weights.files[0]
    for part in ("config", "notes"):
        strict_json.parse(weights.metadata.get(part, "{}").encode())
    loaded = Loaded(weights.arrays, *checkpoint.read_metadata(path, weights.metadata))
    checkpoint.check_model(loaded.config, loaded.flat, check_numbers=check_numbers)
    require_agreement(given, loaded.config, path.name)
    return loaded, weights.files


def load_with_files(
    source: Path, given: Given, *, check_numbers: bool = True
) -> tuple[Loaded, list[Path]]:
    """The model, and the files that it was read from."""
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
    to be joined. `notes` has the origin of the model and what is needed to write it back.
    ValueError, in one line: the file is not sound, is no CLIP model, or lacks activation or heads.
    Source: clip/model.py: build_model; open_clip/model.py; transformers/models/clip.
    """
    return load_with_files(Path(source), Given(activation, heads), check_numbers=check_numbers)[0]
