"""What may be wrong, as knobs: each default is CLIP, each other value is a mistake seen elsewhere.

`preprocessing.py` reads `Pixels`, `towers.py` and `resnet.py` read `Tower`, `variants.py` reads
`Words` and `Logits`. A fault of the table (`faults.py`) sets one or two knobs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxclip.config import MEAN, STD, ClipConfig, differences


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How a picture becomes pixels."""

    order: str = "resize, crop"  # "crop, resize", "squash", "resize larger", "pad", "corner"
    resample: str = "bicubic"  # "bilinear", "nearest", "lanczos"
    antialias: str = "on"  # "off", with ", a = -0.5" and ", rounded" or ", unclipped"
    rounding: str = "truncated"  # of the long side; "nearest", "up"
    offset: str = "even"  # of the crop's halves; "down", "up"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    divisor: float = 255.0
    channels: str = "rgb"  # "bgr"
    rows: str = "rows"  # "columns"


@dataclasses.dataclass(frozen=True)
class Words:
    """How a text becomes tokens."""

    case: str = "lower"  # "kept"
    start: bool = True
    end: bool = True
    end_if_cut: bool = True
    padding: int = 0
    context: int = 0  # another length than the model's
    marks: str = "as words"  # "dropped": punctuation


@dataclasses.dataclass(frozen=True)
class Tower:
    """How pixels or tokens become features."""

    activation: str
    heads: int
    order: tuple[Any, ...]  # of the blocks
    epsilon: float = 1e-5
    channels: str = "rgb"
    patches: str = "rows"
    class_token: str = "first"
    positions: str = "learned"
    ln_pre: bool = True
    placement: str = "pre"
    qkv: str = "qkv"
    transposed: str = ""
    query_power: float = -0.5
    scaled_by: str = "head"  # "width"
    joined: bool = True  # heads are moved back before they are joined
    mask: str = "none"
    without: frozenset[str] = frozenset()  # biases that are not added
    mean_token: str = "mean"
    batch_norm: str = "running"
    ln_post: bool = True
    pooled: str = "right"
    projection: str = "as it is"
    normalised: bool = False
    rounding: str = ""  # "float16", "bfloat16": of weights and of what each step returns


@dataclasses.dataclass(frozen=True)
class Logits:
    """How features become logits."""

    scale: str = "exponential"  # "as it is", "none", "inverse", "twice", "clipped"
    clip: float = 0.0
    normalised: bool = True
    softmax: str = "none"  # "texts", "images"
    transposed: bool = False
    bias: bool = True
    rounding: str = ""  # of embeds and logits


Walk = Mapping[str, Any]  # stage -> its knobs


def _right_pixels(config: ClipConfig) -> Pixels:
    """The knobs of a model's own preprocessing, but for a border, which no knob makes."""
    how = config.pictures
    return Pixels(
        order="squash" if how.resize == "squash" else "resize, crop",
        resample=how.interpolation,
        offset="even" if how.steps == "openai" else "down",
        mean=how.mean,
        std=how.std,
    )


def right_walk(config: ClipConfig) -> dict[str, Any]:
    """The knobs of CLIP for a config: {stage: knobs}.

    ValueError for a model whose towers compute otherwise than the released ones.
    """
    if found := differences(config):
        raise ValueError(
            "doctor: expected towers that compute as the released ones do, got "
            f"{', '.join(found)}; "
            "compare stage by stage with jaxclip verify MODEL --against LADDER"
        )
    vision, text = config.vision, config.text
    layers = vision.layers if isinstance(vision.layers, int) else 0
    return {
        "pixels": _right_pixels(config),
        "tokens": Words(),
        "image": Tower(config.activation, vision.heads, tuple(range(layers))),
        "text": Tower(config.activation, text.heads, tuple(range(text.layers)), mask="causal"),
        "logits": Logits(),
    }


def turn(walk: Walk, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The walk with some knobs of some stages turned: {stage: {knob: value}}."""
    turned = {stage: dataclasses.replace(walk[stage], **knobs) for stage, knobs in changes.items()}
    return {**walk, **turned}
