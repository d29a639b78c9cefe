"""From the images of a batch, as the host makes them, to pixels as the towers take them.

These functions run on the devices, inside the compiled step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.config import CLIP_PICTURES, PictureConfig
from jaxclip.data.emoji.augment import augment
from jaxclip.data.emoji.paint import paint_drawings

Array = jax.Array
BatchToPixels = Callable[[dict[str, Any], Array], Array]  # (batch, key) -> [n, h, w, 3]


def as_given(batch: dict[str, Any], key: Array) -> Array:
    """`image` [n, h, w, 3], which is pixels already."""
    return batch["image"]


def _normalize(images: Array, pictures: PictureConfig) -> Array:
    """images [n, h, w, 3] in [0, 1], less the model's mean, divided by its deviation."""
    return (images - jnp.array(pictures.mean)) / jnp.array(pictures.std)


def normalize_image(
    batch: dict[str, Any], key: Array, *, pictures: PictureConfig = CLIP_PICTURES
) -> Array:
    """`image` uint8 [n, h, w, 3], cropped and augmented on the host, normalised."""
    return _normalize(batch["image"].astype(jnp.float32) / 255, pictures)


def augment_drawings(
    batch: dict[str, Any], key: Array, *, size: int, pictures: PictureConfig = CLIP_PICTURES
) -> Array:
    """`drawings` uint8 [n, h, w, 4] and `mirrorable` bool [n] as [n, size, size, 3]."""
    images = augment(key, batch["drawings"], size, batch["mirrorable"])  # [n, h, w, c]
    return _normalize(images, pictures)


def augment_icons(
    batch: dict[str, Any], key: Array, *, size: int, pictures: PictureConfig = CLIP_PICTURES
) -> Array:
    """As `augment_drawings`, with `black` bool [n], towards photographs (`data.emoji.paint`)."""
    images = paint_drawings(key, batch["drawings"], batch["black"], size, batch["mirrorable"])
    return _normalize(images, pictures)
