"""Picture to pixels, as the released code does it, and a second policy for people's photos.

Released order (clip/clip.py: _transform): shortest side to `size` with Pillow's bicubic filter in
the picture's own mode, centre crop, RGB, divide by 255, subtract the mean, divide by the deviation.

Annotated: chapter 2, "A picture to patches".
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxclip.config import MEAN, STD
from jaxclip.images.open import load_pixels, to_rgb


def _resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shortest side is `size`; the long side is truncated."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shortest side to `size` and cut out the middle, in the picture's own mode."""
    wide, high = _resized_size(image.width, image.height, size)
    left, top = round((wide - size) / 2), round((high - size) / 2)  # a half goes to the even side
    if wide > size and image.mode in ("RGB", "L"):
        # Pillow resizes rows, rounds, then columns: crop between the two, and do fewer columns.
        rows = image.resize((wide, image.height), Image.Resampling.BICUBIC)
        middle = rows.crop((left, 0, left + size, image.height))
        return middle.resize((size, size), Image.Resampling.BICUBIC)
    resized = image.resize((wide, high), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


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
            raise ValueError(f"size: expected a whole number, 1 or more, got {self.size!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) != (3,) or not np.isfinite(values).all():
                raise ValueError(f"{name}: expected three finite numbers, got {values!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected three positive numbers, got {self.std!r}")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The pixels by the `official` policy, bit for bit those of the released code.

        Its habits are kept: EXIF orientation is ignored, transparency turns black, palettes are
        resized by nearest neighbour, values above 255 (16-bit pictures) are clipped to white.

        Args:
            image: a picture of any mode, within the limits of `images.open.check_size`.

        Returns:
            `[size, size, 3]` float32.

        Raises:
            ValueError: not a picture, damaged, or beyond the limits.

        >>> Preprocess(size=4)(Image.new("L", (9, 7))).shape
        (4, 4, 3)

        Source: clip/clip.py: _transform.
        """
        load_pixels(image)
        square = _centre_square(image, self.size)
        square.info.pop("transparency", None)  # conversion to RGB ignores it, with a warning
        return self._normalise(np.asarray(square.convert("RGB")))

    def safe(self, image: Image.Image) -> np.ndarray:
        """The pixels by the `safe` policy: the picture as a person sees it, then as `official`.

        Upright, 8 bits, on white: see `images.open.to_rgb`. Training reads pictures so.

        Args:
            image: a picture of any mode, within the limits of `images.open.check_size`.

        Returns:
            `[size, size, 3]` float32.

        Raises:
            ValueError: as `images.open.to_rgb`.

        >>> white = Image.new("RGBA", (9, 7), (0, 0, 0, 0))
        >>> Preprocess(size=4).safe(white).max().round(3)
        np.float32(2.146)
        """
        return self(to_rgb(image))

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
