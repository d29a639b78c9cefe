"""The random square of a training picture, by three decoders.

"A random square crop from resized images is the only data augmentation" (section 2.3). Which square
it is depends on the picture's size in the file and the random numbers, not on the decoder.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
from PIL import Image

from jaxclip.images.open import decode_image, to_rgb
from jaxclip.images.reduced import decode_reduced

Box = tuple[float, float, float, float]  # left, top, right, bottom
Resize = Callable[[Image.Image, int, Box], Image.Image]
RandomSquare = Callable[[bytes, int, np.random.Generator], np.ndarray]


def _draw_square(
    picture: tuple[int, int], size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(width, height) of the resized picture, and (left, top) of the square in it."""
    scale = size / min(picture)
    width, height = (max(size, round(side * scale)) for side in picture)
    left, top = (int(rng.integers(side - size + 1)) for side in (width, height))
    return width, height, left, top


def random_square(content: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """An encoded picture -> uint8 [size, size, 3]: resized, then a random square of it.

    Pictures are decoded as by evaluation's policy `safe` (`images.open.to_rgb`).
    ValueError if the picture cannot be decoded or is beyond the limits of `images.open.check_size`.
    """
    image = to_rgb(decode_image(content))
    width, height, left, top = _draw_square(image.size, size, rng)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _from_reduced(
    content: bytes, size: int, rng: np.random.Generator, resize: Resize
) -> np.ndarray:
    """The square of `random_square` from a picture that is decoded no larger than it must be."""
    picture = decode_reduced(content, size)
    width, height, left, top = _draw_square(picture.size, size, rng)
    x, y, right, bottom = picture.box
    across, down = (right - x) / width, (bottom - y) / height  # decoded pixels to one of the square
    x, y = x + left * across, y + top * down
    right, bottom = min(x + size * across, right), min(y + size * down, bottom)  # but for rounding
    return np.asarray(resize(picture.image, size, (x, y, right, bottom)))


def reduced_square(content: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """`random_square` with a JPEG decoded at 1, 1/2, 1/4 or 1/8: other pixels, nearly the same."""

    def resize(image: Image.Image, size: int, box: Box) -> Image.Image:
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)

    return _from_reduced(content, size, rng, resize)


def fast_square(content: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """`reduced_square`, resized by the processor's vector instructions: the extra `fast-pictures`.

    The filter is Pillow's; its weights are rounded to fewer bits, so a value may differ by a few.
    """
    import cykooz_resizer as resizer

    bicubic = resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom)

    def resize(image: Image.Image, size: int, box: Box) -> Image.Image:
        left, top, right, bottom = box
        crop = resizer.CropBox(left, top, right - left, bottom - top)
        square = Image.new("RGB", (size, size))
        options = resizer.ResizeOptions(resize_alg=bicubic, crop_box=crop, use_alpha=False)
        resizer.Resizer().resize_pil(image, square, options)  # one resizer is for one thread
        return square

    return _from_reduced(content, size, rng, resize)


SQUARES: dict[str, RandomSquare] = {
    "full": random_square,
    "reduced": reduced_square,
    "fast": fast_square,
}


def choose_square(decoder: str) -> RandomSquare:
    """The function of that name in SQUARES; ValueError where its package is missing."""
    if decoder == "fast" and importlib.util.find_spec("cykooz_resizer") is None:
        raise ValueError(
            "decoder: fast: expected the package cykooz-resizer, got none; "
            "pip install 'jaxclip[fast-pictures]', or take reduced"
        )
    return SQUARES[decoder]
