"""Another resolution: the positional embedding of the image tower, resized as a small picture.

The released code cannot do it; two programs do, differently, and both are here under their names:
  open_clip    bicubic with antialiasing, the kernel's parameter -0.5 (a file is changed once)
  huggingface  bicubic without, the parameter -0.75, at the border the last row or column again
In both the first position (class token, or the attention pool's mean) stays as it is, and pixel
centres are where they lie in a picture (torch's align_corners=False).
"""

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np

from jaxclip.config import (
    LARGEST,
    ClipConfig,
    ResNetConfig,
    Sides,
    VisionConfig,
    as_sides,
    both_sides,
    check_sides,
    name_sides,
)
from jaxclip.convert.loading import Loaded

Convention = Literal["open_clip", "huggingface"]
A_ANTIALIASED, A_PLAIN = -0.5, -0.75


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel of the distance x, zero from 2 on (R. Keys 1981, equation 4)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def weights(old: int, new: int, convention: Convention) -> np.ndarray:
    """[new, old]: the weights of the old positions in each new one; every row sums to one."""
    centres = (np.arange(new) + 0.5) * old / new  # in old pixels
    if convention == "open_clip":
        stretch = max(old / new, 1.0)  # a kernel that covers what is merged into one
        distance = (np.arange(old) + 0.5 - centres[:, None]) / stretch
        table = cubic(distance, A_ANTIALIASED)
        return table / table.sum(1, keepdims=True)
    table = np.zeros((new, old))
    first = np.floor(centres - 0.5).astype(int) - 1
    for tap in range(4):
        source = first + tap
        weight = cubic(centres - 0.5 - source, A_PLAIN)
        np.add.at(table, (np.arange(new), source.clip(0, old - 1)), weight)
    return table


def resize(
    table: np.ndarray,
    side: Sides,
    convention: Convention = "open_clip",
    *,
    tokens: int = 1,
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """Positions [1 + old², d] of a grid -> [1 + side², d], in the same number format.

    side: of the new grid, or its rows and columns.
    tokens: positions before the grid: 0 of a tower without a class token.
    grid: rows and columns of the old one; a square unless given.
    ValueError when the grid has other positions or the convention has no name here.

    >>> resize(np.ones((1 + 7 * 7, 3), np.float32), 12).shape
    (145, 3)
    """
    if convention not in get_args(Convention):
        names = ", ".join(get_args(Convention))
        raise ValueError(f"convention: expected one of {names}, got {convention!r}")
    old = grid or both_sides(round(max(len(table) - tokens, 0) ** 0.5))
    new = both_sides(side)
    if min(old) < 1 or math.prod(old) + tokens != len(table) or min(new) < 1:
        wanted = "a square" if grid is None else f"{grid[0]} x {grid[1]}"
        more = " and one more" if tokens else ""
        raise ValueError(f"expected {wanted}{more} positions, got {len(table)}")
    if old == new:
        return table
    cells = table[tokens:].astype(np.float64).reshape(*old, -1)
    down, across = (weights(a, b, convention) for a, b in zip(old, new, strict=True))
    cells = np.einsum("io,jp,opd->ijd", down, across, cells, optimize=True)
    cells = cells.reshape(math.prod(new), -1).astype(table.dtype)
    return np.concatenate([table[:tokens], cells])


def at_size(loaded: Loaded, image_size: Sides, convention: Convention = "open_clip") -> Loaded:
    """The same model for pictures of another size; nothing else in it changes.

    image_size: one side, or height and width.
    ValueError when the image tower cannot have that size (a multiple of the patch size).

    Source: open_clip/model.py: resize_pos_embed; transformers: interpolate_pos_encoding.
    """
    config = loaded.config
    vision = config.vision
    if vision is None:
        raise ValueError("image_size: expected a model with an image tower, got a text tower alone")
    if isinstance(image_size, list | tuple) and len(image_size) == 2:
        image_size = as_sides(*image_size)
    check_sides("image_size", image_size, LARGEST["image_size"])
    sides = both_sides(image_size)
    if image_size == vision.image_size:
        return loaded
    name, tokens = "visual.positional_embedding", 1
    new: VisionConfig | ResNetConfig
    if isinstance(vision, ResNetConfig):
        if not isinstance(image_size, int):
            got = name_sides(image_size)
            raise ValueError(f"image_size: expected one side for a ResNet, got {got}")
        name = "visual.attnpool.positional_embedding"
        new = dataclasses.replace(vision, image_size=image_size)
    else:
        tokens, patch = int(vision.class_token), vision.patch_sides
        if any(side % part for side, part in zip(sides, patch, strict=True)):
            raise ValueError(
                f"image_size: expected a multiple of {name_sides(vision.patch_size)}, "
                f"got {name_sides(image_size)}"
            )
        new = dataclasses.replace(vision, image_size=image_size)
    table = resize(
        loaded.flat[name], as_sides(*new.grid), convention, tokens=tokens, grid=vision.grid
    )
    resized = {"from": vision.image_size, "to": image_size, "positions": convention}
    part: dict[str, Any] = {"vision": new} if isinstance(config, ClipConfig) else {"tower": new}
    return Loaded(
        {**loaded.flat, name: table},
        dataclasses.replace(config, **part),
        {**loaded.notes, "resized": resized},
    )
