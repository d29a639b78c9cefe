"""What a file of another library says it is: its layout, and what the config beside it states."""

import os
from pathlib import Path
from typing import NamedTuple

from jaxclip.checkpoint import Flat

from .archive import strict_json
from .archive.inert import short_repr
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
)
from .layouts.table import Config, Layout

SIGLIP_LAYOUTS = (huggingface.SIGLIP_LAYOUT, huggingface.BARE_SIGLIP_LAYOUT)


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


def describe(arrays: Flat, folder: Path) -> Described:
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
