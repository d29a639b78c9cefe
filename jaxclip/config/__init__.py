"""The configs of a model as frozen dataclasses, with JSON both ways; the released models.

fields      what a field may be: choices, the largest sizes, height and width
vision      VisionConfig, ResNetConfig
text        TextConfig, TokenizerConfig
pictures    PictureConfig
model       ClipConfig, TowerConfig
released    RELEASED

Annotated: chapter 13, "Where the released code differs from the paper".
"""

from jaxclip.config.fields import (
    LARGEST,
    Activation,
    Clean,
    Interpolation,
    Remat,
    Resize,
    Sides,
    Steps,
    TextKind,
    as_sides,
    both_sides,
    check_sides,
    name_sides,
    require,
    short_repr,
)
from jaxclip.config.model import (
    ClipConfig,
    TowerConfig,
    differences,
    pooled_width,
    read_config,
)
from jaxclip.config.pictures import CLIP_PICTURES, MEAN, STD, PictureConfig
from jaxclip.config.released import RELEASED
from jaxclip.config.text import TextConfig, TokenizerConfig
from jaxclip.config.vision import ResNetConfig, VisionConfig

__all__ = [
    "CLIP_PICTURES",
    "LARGEST",
    "MEAN",
    "RELEASED",
    "STD",
    "Activation",
    "Clean",
    "ClipConfig",
    "Interpolation",
    "PictureConfig",
    "Remat",
    "ResNetConfig",
    "Resize",
    "Sides",
    "Steps",
    "TextConfig",
    "TextKind",
    "TokenizerConfig",
    "TowerConfig",
    "VisionConfig",
    "as_sides",
    "both_sides",
    "check_sides",
    "differences",
    "name_sides",
    "pooled_width",
    "read_config",
    "require",
    "short_repr",
]
