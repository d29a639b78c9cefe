"""The random crop of a training picture, by two decoders.

"A random square crop from resized images is the only data augmentation" (section 2.3). Which crop
it is depends on the picture's size in the file and the random numbers, not on the decoder. A model
whose preprocessing shows the whole picture, squashed or with a border, is trained so as well. Where
a model's pictures are not square, the crop has their height and width.
"""

from collections.abc import Callable

import numpy as np

from jaxclip.config import CLIP_PICTURES, PictureConfig, Sides, both_sides
from jaxclip.images.open import decode_image, to_rgb
from jaxclip.images.preprocess import FILTERS, whole_picture
from jaxclip.images.reduced import decode_reduced

RandomCrop = Callable[[bytes, Sides, np.random.Generator, PictureConfig], np.ndarray]


def _draw_crop(
    picture: tuple[int, int], size: Sides, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(width, height) of the resized picture, and (left, top) of the crop in it."""
    own = both_sides(size)[::-1]  # as of a picture: width and height
    scale = max(part / side for part, side in zip(own, picture, strict=True))
    resized = [max(part, round(side * scale)) for part, side in zip(own, picture, strict=True)]
    left, top = (int(rng.integers(b - a + 1)) for a, b in zip(own, resized, strict=True))
    return resized[0], resized[1], left, top


def random_crop(
    content: bytes, size: Sides, rng: np.random.Generator, pictures: PictureConfig = CLIP_PICTURES
) -> np.ndarray:
    """An encoded picture -> uint8 [h, w, 3]: resized, then a random crop of it.

    Pictures are decoded as by evaluation's policy `safe` (`images.open.to_rgb`).
    pictures: the filter, and whether the picture is squashed or padded whole instead.
    ValueError if the picture cannot be decoded or is beyond the limits of `images.open.check_size`.
    """
    image = to_rgb(decode_image(content))
    if pictures.resize != "shortest":
        return np.asarray(whole_picture(image, size, pictures))
    width, height, left, top = _draw_crop(image.size, size, rng)
    image = image.resize((width, height), FILTERS[pictures.interpolation])
    high, wide = both_sides(size)
    return np.asarray(image.crop((left, top, left + wide, top + high)))


def reduced_crop(
    content: bytes, size: Sides, rng: np.random.Generator, pictures: PictureConfig = CLIP_PICTURES
) -> np.ndarray:
    """`random_crop` with a JPEG decoded no larger than it must be: nearly the same pixels."""
    image, picture, (x, y, right, bottom) = decode_reduced(content, size)
    if pictures.resize != "shortest":
        return np.asarray(whole_picture(image, size, pictures, picture, (x, y, right, bottom)))
    width, height, left, top = _draw_crop(picture, size, rng)
    across, down = (right - x) / width, (bottom - y) / height  # decoded pixels to one of the crop
    x, y = x + left * across, y + top * down
    high, wide = both_sides(size)
    box = x, y, min(x + wide * across, right), min(y + high * down, bottom)  # min: rounding
    return np.asarray(image.resize((wide, high), FILTERS[pictures.interpolation], box=box))


CROPS: dict[str, RandomCrop] = {"full": random_crop, "reduced": reduced_crop}
