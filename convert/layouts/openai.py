"""The layout of the official code (clip/model.py): its keys, matrices [out, in] and buffers.

Annotated: chapter 13, "Where the released code differs from the paper".
"""

from collections.abc import Mapping

import numpy as np

from jaxclip.checkpoint import shorten
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig, name_sides
from jaxclip.shapes import parameters

from .compare import config_faults
from .infer import HEAD_WIDTH, Heads
from .table import COUNTER, Config, Extras, Layout

# The last part of a name, where it is another one.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "in_proj_kernel": "in_proj_weight",
    **{f"{part}_proj_kernel": f"{part}_proj_weight" for part in "qkv"},
    "mean": "running_mean",
    "var": "running_var",
}
AXES = {
    "linear": (1, 0),  # [out, in] -> [in, out]
    "joint": (1, 0),
    "convolution": (2, 3, 1, 0),  # [out, in, h, w] -> [h, w, in, out]
}
# Only the archives that OpenAI released hold them; no other program writes all three.
BUFFERS = ("input_resolution", "context_length", "vocab_size")


def official_leaf(path: str) -> str:
    """A path of ours with the last part as it is called there."""
    modules, dot, leaf = path.rpartition(".")
    return f"{modules}{dot}{LEAVES.get(leaf, leaf)}"


def names(path: str) -> tuple[str, ...]:
    """Their text tower has no folder of its own."""
    return (official_leaf(path.removeprefix("text.")),)


def counters(config: Config) -> Extras:
    """How many batches each BatchNorm has seen: of no use to us, kept for the way back."""
    statistics = (path for path in parameters(config) if path.endswith(".mean"))
    return {f"{path.removesuffix('.mean')}.num_batches_tracked": COUNTER for path in statistics}


def extras(config: Config) -> list[Extras]:
    assert isinstance(config, ClipConfig)  # a tower alone has another layout
    t = config.text
    sizes = (config.vision.image_size, t.context_length, t.vocab_size)
    buffers = zip(BUFFERS, map(np.asarray, sizes), strict=True)
    return [dict(buffers), counters(config)]


LAYOUT = Layout("openai", names, AXES, extras)


def has_buffers(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file shows that it is the official code's, which knows QuickGELU alone."""
    return all(name in arrays for name in BUFFERS)


def image_size(arrays: Mapping[str, np.ndarray]) -> int | None:
    """As the buffers say it; of a ResNet the shapes show it to a multiple of 32 only."""
    value = arrays.get("input_resolution")
    fits = value is not None and value.shape == () and 0 < value < 1 << 20
    return int(value) if fits and value is not None else None


def heads(config: ClipConfig) -> Heads:
    """Of both towers as the official code counts them, whatever the config has in their place."""
    vision = config.vision
    width = vision.features if isinstance(vision, ResNetConfig) else vision.width
    widths = {"image": width, "text": config.text.width}
    for tower, width in widths.items():
        if width % HEAD_WIDTH:
            raise ValueError(
                f"expected an {tower} tower of a multiple of {HEAD_WIDTH} channels, as the "
                f"official code has heads of {HEAD_WIDTH}, got {width}"
            )
    return widths["image"] // HEAD_WIDTH, widths["text"] // HEAD_WIDTH


def check_writable(config: ClipConfig) -> None:
    """ValueError where the official code would build another model from the shapes."""
    widths = [(config.text.width, config.text.heads, "text")]
    if not isinstance(config.vision, ResNetConfig):
        widths.append((config.vision.width, config.vision.heads, "image"))
    for width, heads, tower in widths:
        if width != heads * HEAD_WIDTH:
            raise ValueError(
                f"the {tower} tower has {heads} heads at width {width}, the official code takes "
                f"width // {HEAD_WIDTH}; use the layout open_clip or huggingface"
            )
    if not (v := config.vision).is_square:
        assert isinstance(v, VisionConfig)
        raise ValueError(
            "expected square pictures and patches, whose sizes the official code reads off shapes, "
            f"got {name_sides(v.image_size)} and {name_sides(v.patch_size)}; use the layout "
            "open_clip"
        )
    if config.activation != "quick_gelu":
        raise ValueError(
            f"the model needs {config.activation}, the official code has quick_gelu alone; use the "
            "layout open_clip or huggingface"
        )
    if faults := config_faults(_released_like(config), config):
        raise ValueError(
            f"the official code has no such model: {shorten(faults)}; use the layout open_clip or "
            "huggingface"
        )


def _released_like(config: ClipConfig) -> ClipConfig:
    """The config of those sizes with nothing that departs from the released models."""
    v, t = config.vision, config.text
    if not isinstance(v, ResNetConfig):
        v = VisionConfig(v.image_size, v.patch_size, v.width, v.layers, v.heads)
    text = TextConfig(t.width, t.layers, t.heads, t.context_length, t.vocab_size)
    return ClipConfig(v, text, config.embed_dim, config.activation)
