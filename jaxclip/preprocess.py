"""Picture to pixels, as the released code does it, and a second policy for people's photos.

Released order (clip/clip.py: _transform): shortest side to `size` with Pillow's bicubic filter in
the picture's own mode, centre crop, RGB, divide by 255, subtract the mean, divide by the deviation.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from jaxclip.pictures import (
    open_image as open_image,
)  # file to picture; the rest: picture to pixels

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# An enlarged picture of more pixels than this is never made: only its middle square is computed.
_MOST_PIXELS = 1 << 24
_MOST_STEPS = 1 << 24  # beyond, Pillow's own result would take gigabytes


def _resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shortest side is `size`; the long side is truncated."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shortest side to `size` and cut out the middle, in the picture's own mode."""
    wide, high = _resized_size(image.width, image.height, size)
    left, top = round((wide - size) / 2), round((high - size) / 2)  # a half goes to the even side
    if min(image.size) < size and wide * high > _MOST_PIXELS:
        return _thin_square(image, (wide, high), (left, top), size)
    if wide > size and image.mode in ("RGB", "L"):
        # Pillow resizes the rows, rounds, then the columns: those that are cut off are spared it.
        rows = image.resize((wide, image.height), Image.Resampling.BICUBIC)
        middle = rows.crop((left, 0, left + size, image.height))
        return middle.resize((size, size), Image.Resampling.BICUBIC)
    resized = image.resize((wide, high), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def _thin_square(
    image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: int
) -> Image.Image:
    """The square that enlarging and cropping would give, without the rest of the large picture.

    A picture of 1 x 70,000 pixels would grow to 224 x 15,680,000. Only the square is computed, with
    Pillow's arithmetic (Resample.c, Geometry.c): rows first, then columns, rounded in between.
    """
    if image.mode in ("LA", "RGBA"):  # Pillow resizes them with the colours multiplied by alpha
        multiplied = image.convert({"LA": "La", "RGBA": "RGBa"}[image.mode])
        return _thin_square(multiplied, resized, corner, size).convert(image.mode)
    if len(image.getbands()) > 1:
        bands = [_thin_square(band, resized, corner, size) for band in image.split()]
        return Image.merge(image.mode, bands)
    taps = _nearest_taps if image.mode in ("1", "P") else _bicubic_taps
    x, x_weights = taps(image.width, resized[0], corner[0], size)  # [size, taps]
    y, y_weights = taps(image.height, resized[1], corner[1], size)  # [size, taps]
    left, top = int(x.min()), int(y.min())
    used = image.crop((left, top, int(x.max()) + 1, int(y.max()) + 1))
    pixels = np.asarray(used).T  # [w, h]
    if image.mode == "I;16B":
        pixels = pixels.view("<u2")  # as Pillow reads them, the wrong way round
    columns = _weigh(pixels, x - left, x_weights).T  # [h, size]
    square = _weigh(columns, y - top, y_weights)  # [size, size]
    # Pillow makes a picture of this mode, with its palette; then the pixels are put into it.
    result = used.crop((0, 0, 1, 1)).resize((size, size))
    result.frombytes((np.packbits(square, axis=1) if image.mode == "1" else square).tobytes())
    return result


def _bicubic_taps(
    length: int, resized: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The places of a side that make the places `start` to `start + count` of the enlarged side.

    Returns places and weights, both `[count, taps]`: Keys' cubic kernel with a = -0.5.
    """
    centre = (np.arange(start, start + count) + 0.5) * (length / resized)  # [count]
    first = np.maximum((centre - 1.5).astype(np.int64), 0)
    last = np.minimum((centre + 2.5).astype(np.int64), length)
    places = first[:, None] + np.arange(np.max(last - first))  # [count, taps]
    x = np.abs(places - centre[:, None] + 0.5)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    weights[places >= last[:, None]] = 0.0
    total = np.cumsum(weights, axis=1)[:, -1:]  # one after the other, as Pillow adds
    return np.minimum(places, last[:, None] - 1), weights / total


def _nearest_taps(
    length: int, resized: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_bicubic_taps`, for the nearest neighbour: one place each."""
    scale = length / resized
    places = (np.arange(start, start + count) + 0.5) * scale
    if start + count <= _MOST_STEPS:  # Pillow adds the steps up, which decides near ties
        steps = np.full(start + count, scale)
        steps[0] *= 0.5
        places = np.cumsum(steps)[start:]
    return places.astype(np.int64)[:, None], np.ones((count, 1))


def _weigh(pixels: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums over the first axis: `[x, m]` to `[count, m]`, rounded as Pillow rounds."""
    total: np.ndarray = np.zeros((len(places), pixels.shape[1]))
    if pixels.dtype == np.uint8:  # in fixed point with 22 fractional bits
        weights = np.trunc(weights * (1 << 22) + np.copysign(0.5, weights)).astype(np.int64)
        total = np.full(total.shape, 1 << 21)
    for place, weight in zip(places.T, weights.T, strict=True):
        total += pixels[place] * weight[:, None]
    if pixels.dtype == np.uint8:
        total = np.clip(total >> 22, 0, 255)
    elif pixels.dtype.kind in "iu":  # halves go away from zero
        total = np.trunc(total + np.copysign(0.5, total))
        if pixels.dtype.kind == "u":  # 16 bits; Pillow before 13 lets what is above 65535 wrap
            total = np.clip(total, 0, 65535)
    with np.errstate(invalid="ignore"):  # 32-bit values may overflow; Pillow lets them
        return total.astype(pixels.dtype)


def _check(image: Image.Image) -> None:
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"image is {type(image).__name__}; expected a PIL.Image (open_image reads a file)"
        )
    if min(image.size) < 1:
        raise ValueError(f"image is {image.width} x {image.height} pixels; expected at least 1 x 1")


def _as_seen(image: Image.Image) -> Image.Image:
    """The picture upright, in RGB, on white."""
    try:
        image = ImageOps.exif_transpose(image)
    except SyntaxError:  # Pillow's error for an EXIF block that is none: it tells no orientation
        image = image.copy()
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        colours = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a deep grey picture to 8 bits (the ranges: `Preprocess.safe`)."""
    values = np.asarray(image).astype(np.float64)  # [h, w]
    if not np.isfinite(values).all():
        raise ValueError(f"image (mode {image.mode}) has values that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    ranges = [65535.0] if image.mode.startswith("I;16") else [255.0, 65535.0]
    if image.mode == "F":
        ranges.insert(0, 1.0)
    fitting = [top for top in ranges if low >= 0 and high <= top]
    if fitting:
        low, high = 0.0, fitting[0]
    grey = (values - low) * (255 / (high - low or 1.0))  # one value all over: black
    return Image.fromarray(np.rint(grey).astype(np.uint8))


@dataclass(frozen=True)
class Preprocess:
    """Turns pictures into the pixels that the image tower reads.

    Args:
        size: height and width of the square in pixels, 1 or more.
        mean: subtracted from the red, green and blue values, which lie in [0, 1].
        std: divided by, after that; positive.

    Raises:
        ValueError: an argument is out of its range.

    >>> Preprocess(size=4)(Image.new("RGB", (6, 4), "white"))[0, 0].round(3)
    array([1.93 , 2.075, 2.146], dtype=float32)
    """

    size: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size is {self.size!r}; expected a whole number, 1 or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) != (3,) or not np.isfinite(values).all():
                raise ValueError(f"{name} is {values!r}; expected three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; expected three positive numbers")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The `official` policy: bit for bit what the released code gives.

        With it come its habits: EXIF orientation is ignored, transparency turns black, palettes are
        resized by nearest neighbour, values above 255 (16-bit pictures) are clipped to white.

        Args:
            image: a picture of any mode.

        Returns:
            `[size, size, 3]` float32.

        Raises:
            ValueError: not a picture, or one without pixels.

        >>> Preprocess(size=4)(Image.new("L", (9, 7))).shape
        (4, 4, 3)

        Source: clip/clip.py: _transform.
        """
        _check(image)
        square = _centre_square(image, self.size)
        square.info.pop("transparency", None)  # conversion to RGB ignores it, with a warning
        return self._normalise(np.asarray(square.convert("RGB")))

    def safe(self, image: Image.Image) -> np.ndarray:
        """The `safe` policy: the picture as a person would see it, then the steps of `official`.

        EXIF orientation is applied (an EXIF block that cannot be read tells none), transparency is
        laid on white, and palettes become colours before they are resized. Deep grey pictures are
        scaled to 8 bits: from 0..65535 if they are 16-bit, else from the first of 0..1 (if float),
        0..255 and 0..65535 that holds all values, else from their own least and greatest value.

        Args:
            image: a picture of any mode.

        Returns:
            `[size, size, 3]` float32.

        Raises:
            ValueError: not a picture, one without pixels, or one with a value that is not finite.

        >>> white = Image.new("RGBA", (9, 7), (0, 0, 0, 0))
        >>> Preprocess(size=4).safe(white).max().round(3)
        np.float32(2.146)
        """
        _check(image)
        return self(_as_seen(image))

    def denormalise(self, pixels: np.ndarray) -> np.ndarray:
        """Undo the normalisation, for plotting: `[h, w, 3]` float to `[h, w, 3]` uint8.

        >>> preprocess = Preprocess(size=4)
        >>> preprocess.denormalise(preprocess(Image.new("RGB", (6, 4), "white"))).min()
        np.uint8(255)
        """
        values = np.asarray(pixels, np.float32) * np.asarray(self.std) + np.asarray(self.mean)
        return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)

    def _normalise(self, pixels: np.ndarray) -> np.ndarray:
        size, channels = len(pixels), 3
        # Rows [h, w c], mean and deviation as long: three values at a time would take four times
        # as long.
        rows = pixels.reshape(size, size * channels)
        mean, std = (np.tile(np.asarray(x, np.float32), size) for x in (self.mean, self.std))
        values = np.divide(rows, np.float32(255), dtype=np.float32)
        values -= mean
        values /= std
        return values.reshape(pixels.shape)  # [h, w, c]
