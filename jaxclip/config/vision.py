"""The image towers' configs."""

import dataclasses
import math
from typing import Any, Literal

from jaxclip.config.fields import (
    LARGEST,
    LARGEST_STEM,
    Activation,
    Projection,
    Sides,
    VisionPooling,
    both_sides,
    check_blocks,
    check_choices,
    check_flags,
    check_positions,
    check_queries,
    check_sides,
    check_sizes,
    name_sides,
    require,
    short_repr,
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision Transformer: pictures of `image_size` pixels a side, cut into patches.

    Both sizes are one integer for a square, or height and width. What is left of a side after the
    last whole patch is ignored, as a convolution does. The rest says how a tower differs from the
    released ones.
    """

    image_size: Sides
    patch_size: Sides
    width: int
    layers: int
    heads: int
    mlp_width: int | None = None
    """Channels inside of a block's MLP; four times the width if none."""
    layer_norm_epsilon: float = 1e-5
    own_activation: Activation | None = None
    """Where it is not the model's."""
    patch_bias: bool = False
    class_token: bool = True
    pre_norm: bool = True
    """Whether `ln_pre` normalises before the first block."""
    pooling: VisionPooling = "class"
    """The class token; the mean of the patches; SigLIP's attention pool over all positions; or the
    first of CoCa's queries, whose attention has as many channels as the features."""
    norm_after_pooling: bool = False
    """Whether `ln_post` normalises what was pooled, or every position before that."""
    projection: Projection = "matrix"
    """To the joint space: a matrix, with a bias as well ("linear"), or none: as wide already."""
    queries: int | None = None
    """How many the pooling "queries" has; the features need the first alone."""
    pool_heads: int | None = None
    """Heads of their attention."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_blocks(self)
        check_queries(self)
        check_flags(self, "patch_bias", "class_token", "pre_norm", "norm_after_pooling")
        check_choices(self, pooling=VisionPooling)
        for name in ("image_size", "patch_size"):
            check_sides(f"VisionConfig.{name}", getattr(self, name), LARGEST[name])
        require(
            min(self.grid) > 0,
            f"image_size: expected patch_size {name_sides(self.patch_size)} or more, "
            f"got {name_sides(self.image_size)}",
        )
        width, heads = self.width, self.heads
        require(
            width % heads == 0, f"vision width: expected a multiple of {heads} heads, got {width}"
        )
        require(
            self.class_token or self.pooling != "class",
            "vision pooling: expected mean or attention without a class token, got class",
        )
        check_positions(self)

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return both_sides(self.image_size)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return both_sides(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (down, across) = self.image_sides, self.patch_sides
        return height // down, width // across

    @property
    def is_square(self) -> bool:
        """Whether pictures and patches are."""
        return isinstance(self.image_size, int) and isinstance(self.patch_size, int)

    @property
    def tokens(self) -> int:
        """Positions of the tower: one a patch and the class token, if it has one."""
        return math.prod(self.grid) + int(self.class_token)

    @property
    def inner_width(self) -> int:
        """Channels inside of a block's MLP."""
        return self.mlp_width or 4 * self.width


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Modified ResNet: stem of `width` channels, four stages of `layers` blocks, attention pool.

    The towers of the paper's RN50x4, x16 and x64 differ from RN50 in all three numbers. Pictures
    are square: neither the released code nor open_clip has another attention pool.
    """

    image_size: int
    width: int
    layers: tuple[int, int, int, int]
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        check_sizes(self)
        size, width, layers = self.image_size, self.width, self.layers
        whole = isinstance(layers, tuple) and all(type(blocks) is int for blocks in layers)
        require(
            whole and len(layers) == 4 and 0 < min(layers) <= max(layers) <= LARGEST["layers"],
            "ResNetConfig.layers: expected four integers from 1 to "
            f"{LARGEST['layers']:,}, got {short_repr(layers)}",
        )
        require(
            width <= LARGEST_STEM,
            f"ResNetConfig.width: expected an integer from 1 to {LARGEST_STEM:,}, got {width}",
        )
        require(
            self.kind == "resnet", f"vision kind: expected 'resnet', got {short_repr(self.kind)}"
        )
        require(width % 2 == 0, f"ResNet width: expected an even number, got {width}")
        # at one pixel less the first convolution rounds up, and the released code fails
        require(
            size >= 32 and size % 32 != 31,
            f"image_size: expected at least 32 and no multiple of 32 less one, got {size}",
        )
        check_positions(self)

    @property
    def heads(self) -> int:
        """Heads of the attention pool, 64 channels each (clip/model.py: CLIP)."""
        return self.features // 64

    @property
    def features(self) -> int:
        """Channels of the last stage, the input of the attention pool."""
        return self.width * 32

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return both_sides(self.image_size)

    is_square = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage."""
        return both_sides(self.image_size // 32)

    @property
    def tokens(self) -> int:
        """Positions of the attention pool: one a cell of the last grid and their mean."""
        return math.prod(self.grid) + 1


def vision_from_json(data: dict[str, Any]) -> VisionConfig | ResNetConfig:
    """The image tower's config from JSON: a ResNet names its kind, a transformer names none."""
    if "kind" in data:
        return ResNetConfig(**{**data, "layers": tuple(data["layers"])})
    items = {**data}.items()  # TypeError for what is no object
    fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in items}
    return VisionConfig(**fields)
