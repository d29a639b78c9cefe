"""Picture to pixels, as the model's own library does it, and a second policy for people's photos.

Released order (clip/clip.py: _transform): shortest side to `size` with Pillow's bicubic filter in
the picture's own mode, centre crop, RGB, divide by 255, subtract the mean, divide by the deviation.
`PictureConfig` says how another model departs from that.

Annotated: chapter 2, "A picture to patches".
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image, ImageOps

from jaxclip.config import (
    LARGEST,
    MEAN,
    STD,
    ClipConfig,
    Interpolation,
    PictureConfig,
    Resize,
    Sides,
    Steps,
    TowerConfig,
    both_sides,
    check_sides,
)
from jaxclip.images.open import load_pixels, to_rgb

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def _resized_size(width: int, height: int, size: Sides) -> tuple[int, int]:
    """Width and height once the shortest side is `size`; the long side is truncated.

    Of a size that is not square: once one side is its own and the other is as long or longer, both
    rounded (open_clip/transform.py: ResizeKeepRatio).
    """
    if not isinstance(size, int):
        ratio = min(height / size[0], width / size[1])
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _crop_centre(image: Image.Image, size: Sides, how: PictureConfig) -> Image.Image:
    """Resize the shortest side to `size` and cut out the middle, in the picture's own mode."""
    wide, high = _resized_size(image.width, image.height, size)
    height, width = both_sides(size)
    if how.steps == "openai":  # half a pixel goes to the even side
        left, top = round((wide - width) / 2), round((high - height) / 2)
    else:
        left, top = (wide - width) // 2, (high - height) // 2
    # open_clip does not pass the filter on where the size is not square
    is_fixed = height != width and how.steps == "openai"
    chosen = FILTERS["bicubic" if is_fixed else how.interpolation]
    if wide > width and high == height and image.mode in ("RGB", "L"):
        # Pillow resizes rows, rounds, then columns: crop between the two, and do fewer columns.
        rows = image.resize((wide, image.height), chosen)
        middle = rows.crop((left, 0, left + width, image.height))
        return middle.resize((width, height), chosen)
    return image.resize((wide, high), chosen).crop((left, top, left + width, top + height))


def whole_picture(
    image: Image.Image,
    size: Sides,
    how: PictureConfig,
    shape: tuple[int, int] | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """All of a picture: squashed to the size, or its longest side resized and a border added.

    shape, box: width and height in the file, and what of `image` the picture fills, where it was
      decoded at less than its size.
    Source: open_clip/transform.py: ResizeKeepRatio, CenterCropOrPad.
    """
    tall, broad = both_sides(size)
    if how.resize == "squash":
        return image.resize((broad, tall), FILTERS[how.interpolation], box=box)
    width, height = shape or image.size
    ratio = max(height / tall, width / broad)
    wide, high = (max(1, round(side / ratio)) for side in (width, height))
    image = image.resize((wide, high), FILTERS[how.interpolation], box=box)
    across, down = broad - wide, tall - high
    border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
    bands, palette = len(image.getbands()), image.getpalette() if image.mode == "P" else None
    padded = ImageOps.expand(image, border, fill=(how.fill,) * bands if bands > 1 else how.fill)
    if palette is not None:  # the fill is an index of it
        padded.putpalette(palette)
    return padded


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB, on white where it is transparent, as transformers makes it."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colours)
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """Turns pictures into the pixels that the image tower reads.

    `Preprocess.of(config)` is that of a model.

    Args:
        size: side of the square in pixels, 1 or more; or height and width.
        mean: subtracted from the red, green and blue values, which lie in [0, 1].
        std: divided by, after that; positive.
        interpolation, resize, fill, steps: as of `PictureConfig`.

    Raises:
        ValueError: an argument is out of its range.

    >>> Preprocess(size=4)(Image.new("RGB", (6, 4), "white"))[0, 0].round(3)
    array([1.93 , 2.075, 2.146], dtype=float32)
    """

    size: Sides
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    fill: int = 0
    steps: Steps = "openai"

    def __post_init__(self) -> None:
        check_sides("size", self.size, LARGEST["image_size"])
        assert self.pictures  # its checks

    @classmethod
    def of(cls, config: ClipConfig | TowerConfig, size: Sides | None = None) -> Self:
        """The preprocessing of a model, at its own size unless another is given."""
        if config.vision is None:
            raise ValueError("expected a model with an image tower, got a text tower alone")
        return cls(config.vision.image_size if size is None else size, **vars(config.pictures))

    @property
    def pictures(self) -> PictureConfig:
        """All but the size."""
        return PictureConfig(**{k: v for k, v in vars(self).items() if k != "size"})

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The pixels by the `official` policy, bit for bit those of the model's own library.

        The released code's habits are kept: EXIF orientation is ignored, transparency turns black,
        palettes are resized by nearest neighbour, values above 255 (16-bit pictures) are clipped to
        white.

        Args:
            image: a picture of any mode, within the limits of `images.open.check_size`.

        Returns:
            `[h, w, 3]` float32.

        Raises:
            ValueError: not a picture, damaged, or beyond the limits.

        >>> Preprocess(size=4)(Image.new("L", (9, 7))).shape
        (4, 4, 3)

        Source: clip/clip.py: _transform; open_clip/transform.py: image_transform; transformers:
        PilBackend of CLIPImageProcessor and SiglipImageProcessor.
        """
        load_pixels(image)
        return self._normalise(np.asarray(self._resize(image)))

    def _resize(self, image: Image.Image) -> Image.Image:
        """The picture at its size, in RGB."""
        image, how = image if self.steps == "openai" else _on_white(image), self.pictures
        resize = _crop_centre if how.resize == "shortest" else whole_picture
        resized = resize(image, self.size, how)
        resized.info.pop("transparency", None)  # conversion to RGB ignores it, with a warning
        return resized.convert("RGB")

    def safe(self, image: Image.Image) -> np.ndarray:
        """The pixels by the `safe` policy: the picture as a person sees it, then as `official`.

        Upright, 8 bits, on white: see `images.open.to_rgb`. Training reads pictures so.

        Args:
            image: a picture of any mode, within the limits of `images.open.check_size`.

        Returns:
            `[h, w, 3]` float32.

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
        """uint8 [h, w, 3] to float32: divided by 255, less the mean, divided by the deviation."""
        height, width, channels = pixels.shape
        # Rows [h, w c], mean and deviation as long: three values at a time would take four times
        # as long.
        rows = pixels.reshape(height, width * channels)
        mean, std = (np.tile(np.asarray(x, np.float32), width) for x in (self.mean, self.std))
        values = np.divide(rows, np.float32(255), dtype=np.float32)
        values -= mean
        values /= std
        return values.reshape(pixels.shape)  # [h, w, c]
