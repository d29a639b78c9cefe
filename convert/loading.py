"""From a checkpoint in any layout to our form: first its layout, its config, then the arrays."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from jaxclip import checkpoint
from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig, TextConfig
from jaxclip.model_tokenizer import FILE_NAME, remember

from .archive import strict_json
from .archive.inert import short_repr
from .files import Weights, open_weights
from .layouts import (
    big_vision,
    huggingface,
    huggingface_config,
    open_clip,
    open_clip_config,
    openai,
    pictures,
    prefixes,
    refusals,
    vocabulary,
)
from .layouts.infer import Heads, complete, infer
from .layouts.released_shapes import OTHER_POOLING, known_heads
from .layouts.table import Config, Layout, layers_of, shape_of, to_ours

SIGLIP_LAYOUTS = (huggingface.SIGLIP_LAYOUT, huggingface.BARE_SIGLIP_LAYOUT)
CONVERTER = 1  # raised whenever the same file gives another result


class Loaded(NamedTuple):
    """A whole model: arrays under our names in the file's number formats, config and origin."""

    flat: Flat
    config: Config
    notes: dict[str, Any]


class Given(NamedTuple):
    """What the caller states about the model, where the file does not."""

    activation: Activation | None = None
    heads: Heads | None = None


class Described(NamedTuple):
    """The layout of a file, and what it and its config state beside the shapes."""

    layout: Layout
    config: Config | None = None
    files: tuple[Path, ...] = ()  # beside the weights
    config_name: str = ""
    image_size: int | None = None
    is_official: bool = False  # an archive of OpenAI's: its code has fixed heads


def _layout(arrays: Flat) -> Layout:
    """The layout of the keys; ValueError that names what the file has where it is none of ours."""
    prefixes.check(arrays)
    refusals.check_tensors(arrays, {name: array.ndim for name, array in arrays.items()})
    if big_vision.is_one(arrays):
        return big_vision.LAYOUT
    if (layout := huggingface.find_layout(arrays)) is not None:
        return layout
    if "text.token_embedding.weight" in arrays:
        is_timm = any(name.startswith("visual.trunk.") for name in arrays)
        return open_clip.TRUNK if is_timm else open_clip.CUSTOM_TEXT
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


def _describe_hugging_face(layout: Layout, arrays: Flat, folder: Path) -> Described:
    name = huggingface_config.CONFIG_NAME
    configs = _existing(folder, name)
    files = (*configs, *_existing(folder, *pictures.PROCESSOR_NAMES))
    if not configs:
        return Described(layout, files=files)
    config = huggingface_config.from_json(
        strict_json.read(configs[0]),
        is_siglip=layout in SIGLIP_LAYOUTS,
        tower=huggingface.single_tower(arrays),
        has_projection=any(name in arrays for name in huggingface.PROJECTIONS),
    )
    return Described(layout, config, files, name)


def _describe(arrays: Flat, folder: Path) -> Described:
    """The layout of the keys, and what the config beside the file states."""
    layout = _layout(arrays)
    if layout.name in huggingface.LAYOUTS:
        return _describe_hugging_face(layout, arrays, folder)
    if layout is big_vision.LAYOUT:
        return Described(layout, big_vision.read_config(arrays))
    if layout is openai.LAYOUT and openai.has_buffers(arrays):
        return Described(layout, image_size=openai.image_size(arrays), is_official=True)
    files = _existing(folder, open_clip_config.CONFIG_NAME)
    if not files:
        return Described(layout)
    if layout is openai.LAYOUT:
        layout = open_clip.LAYOUT
    config = open_clip_config.from_json(strict_json.read(files[0]))
    return Described(layout, config, files, open_clip_config.CONFIG_NAME)


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


def require_agreement(given: Given, config: Config, what: str) -> None:
    """ValueError where the caller contradicts a config that is known."""
    heads = None  # of one tower alone: nothing to compare with two numbers
    if isinstance(config, ClipConfig):
        heads = config.vision.heads, config.text.heads
    _require_agreement(given, config.activation, heads, what)


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
        f"{what} does not say {' nor '.join(missing)}: put its {open_clip_config.CONFIG_NAME} or "
        f"{huggingface_config.CONFIG_NAME} beside it, or give {' and '.join(ways)}, or convert it "
        f"once with `jaxclip convert {what} OURS.safetensors{flags}`"
    )


def _refuse_without_config(layout: Layout, arrays: Flat, what: str) -> None:
    """ValueError where shapes cannot say which model it is, so that it needs its config."""
    is_hugging_face = layout.name in huggingface.LAYOUTS
    name = huggingface_config.CONFIG_NAME if is_hugging_face else open_clip_config.CONFIG_NAME
    reason = None
    if layout is open_clip.TRUNK:
        reason = "an image tower of timm"
    elif is_hugging_face and layout is not huggingface.LAYOUT:
        reason = "towers of SigLIP or one tower alone"
    elif is_hugging_face and huggingface.single_tower(arrays) is not None:
        reason = "one tower alone"
    elif "text.cls_emb" in arrays or "visual.attn_pool.query" in arrays:
        reason = "towers of CoCa"
    elif "visual.class_embedding" in arrays and "visual.ln_pre.weight" not in arrays:
        reason = "an image tower without ln_pre"
    elif any(name.endswith("text_projection.bias") for name in arrays):
        reason = "a text projection with a bias"
    if reason is not None:
        raise ValueError(
            f"{what}: this file has {reason}, of which its shapes show neither heads, nor pooling "
            f"nor epsilon; put its {name} beside it"
        )


def _config_from_shapes(found: Described, given: Given, arrays: Flat, what: str) -> ClipConfig:
    """The config of the shapes, with activation and heads of the caller or of a known model."""
    if not found.is_official:
        _refuse_without_config(found.layout, arrays, what)
    shapes = infer(
        shape_of(found.layout, arrays),
        layers_of(found.layout, arrays),
        is_resnet="visual.layer1.0.conv1.weight" in arrays,
        image_size=found.image_size,
    )
    vocabulary = shapes.text.vocab_size
    if found.is_official:
        official = complete(shapes, "quick_gelu", openai.heads(shapes))
        require_agreement(given, official, what)
        openai.check_writable(official)  # its MLPs are four times as wide
        return official
    if vocabulary in OTHER_POOLING:
        raise ValueError(
            f"{what}: expected a text tower that pools at the largest token id, got a vocabulary "
            f"of {vocabulary:,}, as {OTHER_POOLING[vocabulary]} have it, which pool at another "
            f"token; put its {open_clip_config.CONFIG_NAME} or {huggingface_config.CONFIG_NAME} "
            "beside it"
        )
    _require_agreement(given, None, None, what)
    heads = given.heads or known_heads(shapes)
    if given.activation is None or heads is None:
        _refuse_unknown(given.activation, heads, shapes, what)
    return complete(shapes, given.activation, (heads[0], heads[1]))


def _choose_config(found: Described, given: Given, arrays: Flat, what: str) -> Config:
    """The config beside the file, or the one that its shapes show."""
    if found.config is None:
        return _config_from_shapes(found, given, arrays, what)
    require_agreement(given, found.config, what)
    return found.config


def _with_inputs(found: Described, config: Config, folder: Path) -> Config:
    """The config with its preprocessing and its tokenizer, from the files beside the weights."""
    native = next((x for x in found.files if x.name == open_clip_config.CONFIG_NAME), None)
    data = None if native is None else strict_json.read(native)
    siglip = found.layout in (*SIGLIP_LAYOUTS, big_vision.LAYOUT)
    if config.vision is not None:
        if data is not None:
            how = pictures.from_open_clip(data.get("preprocess_cfg", {}))
        else:
            size = config.vision.image_sides[0]  # square: open_clip's config alone says otherwise
            how = pictures.from_folder(found.files, size, "Siglip" if siglip else "CLIP")
        config = dataclasses.replace(config, pictures=how)
    if config.text is not None and not found.is_official:
        text_cfg = None if data is None else data["model_cfg"]["text_cfg"]
        own = vocabulary.of_folder(folder, config.text, text_cfg, siglip=siglip)
        text = dataclasses.replace(config.text, tokenizer=own)
        if isinstance(config, ClipConfig):
            return dataclasses.replace(config, text=text)
        return dataclasses.replace(config, tower=text)
    return config


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


def _to_ours(
    found: Described, config: Config, arrays: Flat, check_numbers: bool
) -> tuple[Flat, dict[str, int | None]]:
    """`to_ours`, whose faults may be the config's where it stands in a file of its own."""
    if found.layout is big_vision.LAYOUT:
        arrays = big_vision.plain_arrays(arrays)
    try:
        return to_ours(found.layout, config, arrays, check_numbers=check_numbers)
    except ValueError as error:
        if not found.config_name:
            raise
        raise ValueError(f"{found.config_name} does not describe the weights: {error}") from None


def _load_foreign(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    arrays, path = open_clip.without_decoder(weights.arrays), weights.files[0]
    found = _describe(arrays, path.parent)
    config = _choose_config(found, given, arrays, path.name)
    config = _with_inputs(found, config, path.parent)
    flat, extras = _to_ours(found, config, arrays, check_numbers)
    files = [*weights.files, *found.files]
    notes = {
        "image_policy": "official",
        "source": {"file": path.name, "sha256": Digests(files)},
        "converted": {"converter": CONVERTER, "layout": found.layout.name, "extras": extras},
    }
    if len(arrays) < len(weights.arrays):
        notes["left_out"] = "CoCa's text decoder"
    return Loaded(flat, config, notes), files


def _load_ours(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    path = weights.files[0]
    for part in ("config", "notes"):
        strict_json.parse(weights.metadata.get(part, "{}").encode())
    config, notes = checkpoint.read_metadata(path, weights.metadata)
    loaded = Loaded(checkpoint.fill_rows(weights.arrays, config), config, notes)
    checkpoint.check_model(loaded.config, loaded.flat, check_numbers=check_numbers)
    require_agreement(given, loaded.config, path.name)
    beside = path.parent / FILE_NAME
    if loaded.config.text is not None and loaded.config.text.tokenizer and beside.is_file():
        remember(beside)
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
