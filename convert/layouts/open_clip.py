"""The layouts of open_clip: the official keys, or timm's image tower.

Its CustomTextCLIP keeps the text tower under `text.`, as we do. `open_clip_config` reads the config
beside them, `open_clip_config_writing` writes it.
"""

from collections.abc import Mapping

import numpy as np

from jaxclip.config import ClipConfig, ResNetConfig

from . import openai, timm_trunk
from .table import Config, Extras, Layout


def extras(config: Config) -> list[Extras]:
    return [openai.counters(config)]


def custom_names(path: str) -> tuple[str, ...]:
    return (openai.official_leaf(path),)


def trunk_names(path: str) -> tuple[str, ...]:
    return timm_trunk.names(path) if path.startswith("visual.") else custom_names(path)


LAYOUT = Layout("open_clip", openai.names, openai.AXES, extras)
CUSTOM_TEXT = Layout("open_clip custom_text", custom_names, openai.AXES, extras)
TRUNK = Layout(
    "open_clip timm",
    trunk_names,
    openai.AXES,
    extras,
    timm_trunk.ONES,
    timm_trunk.SHARES,
)


def has_trunk(config: ClipConfig) -> bool:
    """Whether open_clip builds the image tower by timm, having none of its own like it."""
    v = config.vision
    if isinstance(v, ResNetConfig):
        return False
    return not v.class_token or v.patch_bias or v.pooling == "attention" or v.projection != "matrix"


def needs_custom_text(config: ClipConfig) -> bool:
    """Whether open_clip has such a model only with its text tower in a module of its own."""
    return has_trunk(config) or config.text.pooling == "class_token"


def without_decoder(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of CoCa's two towers; all of them where the file is no CoCa."""
    is_coca = "text.cls_emb" in arrays
    return {k: v for k, v in arrays.items() if not (is_coca and k.startswith("text_decoder."))}
