"""From our form to any layout, and `convert`, which reads one layout and writes another."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from jaxclip import checkpoint
from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig, Sides, TextConfig
from jaxclip.files import read_bytes
from jaxclip.model_tokenizer import FILE_NAME, LARGEST, RULES_NAME, copy_beside, file_of

from .archive import torch_archive
from .archive.inert import refuse, short_repr
from .given import Given
from .layouts import (
    clip_words,
    huggingface,
    huggingface_config,
    huggingface_config_writing,
    huggingface_families,
    open_clip,
    open_clip_config,
    open_clip_config_writing,
    openai,
    pictures,
)
from .layouts.infer import Heads
from .layouts.positions import at_size
from .layouts.table import Config, Layout, to_theirs
from .loading import Loaded, load_with_files

LayoutName = Literal["jaxclip", "openai", "open_clip", "huggingface"]
# Of a Hugging Face folder, beside weights and config.
COMPANIONS = (
    pictures.PREPROCESSOR_NAME,
    FILE_NAME,
    RULES_NAME,
    "vocab.json",
    "merges.txt",
)
ENDINGS: dict[str, tuple[str, ...]] = {
    "jaxclip": (".safetensors",),
    "openai": (".pt",),
    "open_clip": (".safetensors", ".pt", ".bin"),
    "huggingface": (),  # a folder
}


def _origin(notes: Mapping[str, Any]) -> tuple[str, dict[str, int | None]]:
    """(layout that the model was read from, extras that it had), from the notes."""
    origin = notes.get("converted", {"layout": "", "extras": {}})
    extras = origin.get("extras") if type(origin) is dict else None
    if type(extras) is not dict or type(origin.get("layout")) is not str:
        refuse("the notes on the conversion are not those that this library writes")
    for name, value in extras.items():
        if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
            refuse(f"the notes have {short_repr(value)} for {short_repr(name)}")
    return origin["layout"], extras


def _table(loaded: Loaded, layout: str, read_from: str) -> Layout:
    """The table of names; ValueError where the layout cannot hold the model."""
    config = loaded.config
    if layout == "huggingface":
        return huggingface.layout_to_write(config, read_from)
    if not isinstance(config, ClipConfig):
        raise ValueError(
            f"the model is one tower alone, which the layout {layout} does not have; use "
            "huggingface or jaxclip"
        )
    if layout == "openai":
        openai.check_writable(config)
        return openai.LAYOUT
    if open_clip.has_trunk(config):
        return open_clip.TRUNK
    is_custom = read_from in (open_clip.CUSTOM_TEXT.name, open_clip.TRUNK.name)
    if is_custom or open_clip.needs_custom_text(config):
        return open_clip.CUSTOM_TEXT
    return open_clip.LAYOUT


def to_layout(loaded: Loaded, layout: Literal["openai", "open_clip", "huggingface"]) -> Flat:
    """The arrays of a model in another layout, under that layout's names, as views.

    ValueError where the layout cannot hold the model.
    """
    if loaded.config.text is not None and loaded.config.text.kind == "cbow":
        raise ValueError("the model's text encoder is a bag of words, which no other layout has")
    read_from, extras = _origin(loaded.notes)
    table = _table(loaded, layout, read_from)
    _settings(loaded, layout)  # refuses what the layout cannot say
    same = read_from == table.name
    return to_theirs(table, loaded.config, loaded.flat, extras, only_these=same)


def _settings(loaded: Loaded, layout: str) -> dict[str, Any]:
    """The content of the layout's config file; none where it has none."""
    config = loaded.config
    if layout == "open_clip":
        assert isinstance(config, ClipConfig)
        custom_text = _origin(loaded.notes)[0] == open_clip.CUSTOM_TEXT.name
        return open_clip_config_writing.to_json(config, custom_text=custom_text)
    if layout == "huggingface":
        formats = {array.dtype.name for array in loaded.flat.values()}
        dtype = formats.pop() if len(formats) == 1 else "float32"
        return huggingface_config_writing.to_json(config, dtype)
    return {}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with checkpoint.replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _write_arrays(path: Path, arrays: Flat) -> None:
    if path.suffix == ".safetensors":
        checkpoint.save_arrays(path, arrays, {"format": "pt"})  # transformers asks for it
    else:
        torch_archive.write(path, arrays)


def _targets(target: Path, layout: str) -> list[Path]:
    """The files to write; last the config, without which the others cannot be read."""
    if layout == "huggingface":
        names = (huggingface.WEIGHTS_NAME, *COMPANIONS, huggingface_config.CONFIG_NAME)
        return [target / name for name in names]
    if layout == "open_clip":
        return [target, target.parent / open_clip_config.CONFIG_NAME]
    return [target]


def _companions(config: Config) -> dict[str, bytes]:
    """{name: content} of what transformers reads beside weights and config."""
    found: dict[str, bytes] = {}
    if config.vision is not None:
        kind = huggingface_families.processor_of(config)
        side = config.vision.image_sides[0]  # square: the config was written before
        said = pictures.to_hugging_face(config.pictures, side, kind)
        found[pictures.PREPROCESSOR_NAME] = (json.dumps(said, indent=2) + "\n").encode()
    text = config.text
    if text is None:
        return found
    if text.tokenizer is not None and text.tokenizer.sha256 is not None:
        beside = file_of(text.tokenizer).parent
        for name in (FILE_NAME, RULES_NAME):
            if (beside / name).is_file():
                found[name] = read_bytes(beside / name, LARGEST)
    elif text.tokenizer is None and text.vocab_size >= TextConfig.vocab_size:
        if text.fixed_length:
            raise ValueError(
                "the text tower reads its padding, for which CLIP's tokenizer has id 0 here and "
                "the end token in transformers: expected a tower that does not, for the layout "
                "huggingface; use jaxclip"
            )
        files = clip_words.files(text.context_length)
        found |= {name: content.encode() for name, content in files.items()}
    return found


def _write_companions(found: Mapping[str, bytes], targets: list[Path]) -> None:
    """Write them; an old one of another model goes."""
    for path in targets:
        if path.name not in found:
            path.unlink(missing_ok=True)
            continue
        with checkpoint.replacing(path) as temporary:
            temporary.write_bytes(found[path.name])


def _check_target(target: Path, layout: str) -> list[Path]:
    if layout not in get_args(LayoutName):
        names = ", ".join(get_args(LayoutName))
        raise ValueError(f"layout: expected one of {names}, got {layout!r}")
    endings = ENDINGS[layout]
    if endings and target.suffix not in endings:
        wanted = " or ".join(endings)
        raise ValueError(f"the layout {layout}: expected a file ending in {wanted}, got {target}")
    if not endings and (target.suffix in ENDINGS["open_clip"] or target.is_file()):
        raise ValueError(f"the layout {layout}: expected the name of a folder, got {target}")
    if endings and target.is_dir():
        raise ValueError(f"expected the name of a file, got the folder {target}")
    return _targets(target, layout)


def _check_overwriting(targets: list[Path], sources: list[Path], force: bool) -> None:
    for target in targets:
        if not target.exists():
            continue
        if any(os.path.samefile(target, source) for source in sources):
            raise ValueError(f"{target} is what is being converted; give another target")
        if not force:
            raise ValueError(f"{target} exists; give another target, or force=True (--force)")


def _write(loaded: Loaded, targets: list[Path], layout: LayoutName, force: bool) -> None:
    config = loaded.config
    if config.text is not None and layout != "huggingface":
        copy_beside(config.text, targets[0].parent, force=force)
    if layout == "jaxclip":
        return checkpoint.save(targets[0], loaded.flat, config, loaded.notes)
    arrays = to_layout(loaded, layout)
    settings = _settings(loaded, layout)
    companions = _companions(config) if layout == "huggingface" else {}
    if settings:
        targets[-1].unlink(missing_ok=True)  # an old one must not describe new weights
    _write_arrays(targets[0], arrays)
    if layout == "huggingface":
        _write_companions(companions, targets[1:-1])
    if settings:
        _write_json(targets[-1], settings)


def convert(
    source: str | Path,
    target: str | Path,
    layout: LayoutName = "jaxclip",
    *,
    activation: Activation | None = None,
    heads: Heads | None = None,
    image_size: Sides | None = None,
    url: str | None = None,
    force: bool = False,
) -> Config:
    """Write the model in `source` to `target` in another layout, bit for bit; returns its config.

    source: as for `load`.
    target, by layout: "jaxclip" one .safetensors that holds its config and its origin;
      "openai" a .pt that the official code loads; "open_clip" a .safetensors, .pt or .bin, with
      open_clip_config.json beside it; "huggingface" a folder with weights, config.json, image
      processor and tokenizer, which transformers loads as it is.
    activation, heads: as for `load`. force: overwrite what is there.
    image_size: of the pictures, where it is to be another one, or height and width: the positional
      embedding is resized as open_clip does, the only numbers that change.
    url: where the source was fetched from, for the notes of our layout.
    Every number keeps its format, so that a file converted to ours and back is equal to the bit.
    Each file is written whole or not at all, the config after the weights.
    ValueError, in one line: as for `load`; the target exists, or is the source; or the layout
    cannot hold the model. OSError when the disk does not take it.

    >>> convert("ViT-B-32.pt", "ViT-B-32.safetensors")  # doctest: +SKIP
    """
    source, target = Path(source), Path(target)
    targets = _check_target(target, layout)
    if not force:
        _check_overwriting(targets, [], force)  # before anything is read
    loaded, sources = load_with_files(source, Given(activation, heads))
    _check_overwriting(targets, sources, force)
    if image_size is not None:
        loaded = at_size(loaded, image_size)
    if url is not None:
        origin = {**loaded.notes.get("source", {}), "url": url}
        loaded = loaded._replace(notes={**loaded.notes, "source": origin})
    _write(loaded, targets, layout, force)
    return loaded.config
