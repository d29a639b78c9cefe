"""JPEG files decoded no larger than a crop needs them: for training only.

A JPEG holds blocks of 8 x 8 pixels by frequency. From the lower frequencies alone a decoder makes
the picture at a half, a quarter or an eighth of its size (Pillow's `draft`), which is close to the
mean over the pixels that a resize would have averaged. Those pixels are then neither computed nor
resized. Evaluation, `embed` and `classify` decode in full: these pixels are not the same.
"""

import io
from typing import NamedTuple

from PIL import Image

from jaxclip.config import Sides, both_sides
from jaxclip.images.open import check_size, identify, load_pixels, orientation, to_rgb

SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height,
FROM_RIGHT = (2, 3, 6, 7)  # those that begin at what becomes the right side,
FROM_BOTTOM = (3, 4, 7, 8)  # and at the bottom


class Reduced(NamedTuple):
    """A picture as seen (`to_rgb`), and which part of it the file's picture fills.

    A side of 375 pixels is 187.5 at a half, in 188 pixels.
    """

    image: Image.Image
    size: tuple[int, int]  # width and height in the file, as seen
    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels of `image`


def decode_reduced(content: bytes, least: Sides) -> Reduced:
    """The picture at 1, 1/2, 1/4 or 1/8 of its size: the smallest that is not below `least`.

    least: of both sides, or height and width of the picture as seen.
    Other formats than JPEG have no such scales, and a small picture has none; they stay whole.
    Damage is noticed as by `decode_image`: every bit of the file is read.

    Raises:
      ValueError: as `decode_image` and `to_rgb`.
    """
    stored = identify(io.BytesIO(content))
    check_size(*stored.size)  # as the file declares it
    width, height = stored.size
    turn = orientation(stored)
    high, wide = both_sides(least)
    drafted = stored.draft(None, (high, wide) if turn in SWAPPED else (wide, high))
    load_pixels(stored)
    image = to_rgb(stored)
    if drafted is None:
        return Reduced(image, image.size, (0, 0, *image.size))
    _, (_, _, across, down) = drafted
    if turn in SWAPPED:
        width, height, across, down = height, width, down, across
    left = image.width - across if turn in FROM_RIGHT else 0.0
    top = image.height - down if turn in FROM_BOTTOM else 0.0
    return Reduced(image, (width, height), (left, top, left + across, top + down))
