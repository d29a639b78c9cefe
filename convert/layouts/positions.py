"""Another resolution: the positional embedding of the image tower, resized as a small picture.

The released code cannot do it; two programs do, differently, and both are here under their names:
  open_clip    bicubic with antialiasing, the kernel's parameter -0.5 (a file is changed once)
  huggingface  bicubic without, the parameter -0.75, at the border the last row or column again
In both the first position (class token, or the attention pool's mean) stays as it is, and pixel
centres are where they lie in a picture (torch's align_corners=False).
"""

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from jaxclip.config import ClipConfig, ResNetConfig
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
    table: np.ndarray, side: int, convention: Convention = "open_clip", *, tokens: int = 1
) -> np.ndarray:
    """Positions [1 + old², d] of a square grid -> [1 + side², d], in the same number format.

    tokens: positions before the grid: 0 of a tower without a class token.
    ValueError when the grid is not a square or the convention has no name here.

    >>> resize(np.ones((1 + 7 * 7, 3), np.float32), 12).shape
    (145, 3)
    """
    if convention not in get_args(Convention):
        names = ", ".join(get_args(Convention))
        raise ValueError(f"convention: expected one of {names}, got {convention!r}")
    old = round(max(len(table) - tokens, 0) ** 0.5)
    if old < 1 or old**2 + tokens != len(table) or side < 1:
        more = " and one more" if tokens else ""
        raise ValueError(f"expected a square{more} positions, got {len(table)}")
    if old == side:
        return table
    grid = table[tokens:].astype(np.float64).reshape(old, old, -1)
    w = weights(old, side, convention)
    grid = np.einsum("io,jp,opd->ijd", w, w, grid, optimize=True).reshape(side**2, -1)
    return np.concatenate([table[:tokens], grid.astype(table.dtype)])


def at_size(loaded: Loaded, image_size: int, convention: Convention = "open_clip") -> Loaded:
    """The same model for pictures of another size; nothing else in it changes.

    ValueError when the image tower cannot have that size (a multiple of the patch size).

    Source: open_clip/model.py: resize_pos_embed; transformers: interpolate_pos_encoding.
    """
    config = loaded.config
    vision = config.vision
    if vision is None:
        raise ValueError("image_size: expected a model with an image tower, got a text tower alone")
    if image_size == vision.image_size:
        return loaded
    name, tokens, patch = "visual.positional_embedding", 1, 32
    if isinstance(vision, ResNetConfig):
        name = "visual.attnpool.positional_embedding"
    else:
        tokens, patch = int(vision.class_token), vision.patch_size
        if image_size % patch:
            raise ValueError(f"image_size: expected a multiple of {patch}, got {image_size}")
    new = dataclasses.replace(vision, image_size=image_size)
    table = resize(loaded.flat[name], image_size // patch, convention, tokens=tokens)
    resized = {"from": vision.image_size, "to": image_size, "positions": convention}
    part: dict[str, Any] = {"vision": new} if isinstance(config, ClipConfig) else {"tower": new}
    return Loaded(
        {**loaded.flat, name: table},
        dataclasses.replace(config, **part),
        {**loaded.notes, "resized": resized},
    )
