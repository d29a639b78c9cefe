"""Picture files: opened, decoded in full and shown in RGB, or refused in one line.

Every picture from outside, in training and evaluation, takes the same way: `open_image` or
`decode_image`, then `to_rgb` (the policy `safe`) unless the policy `official` is asked for.

Formats. Only those in FORMATS are tried, whatever a file is called: raster formats in which people
keep photographs and drawings, each recognised by its first bytes and decoded inside this process.
EPS is left out because Pillow starts Ghostscript for it, WMF because it calls Windows; FITS, HDF5,
GRIB and BUFR are data; PSD, TGA, PCX and the rest are rare, or have no first bytes to know them by.

Size. A picture has at most MOST_PIXELS pixels and is at most MOST_STRETCHED times as long as wide.
Both are judged by what the file declares, before anything is decoded. Panoramas, banners,
webtoons and long screenshots stay below 80 to 1. A picture of 100 to 1 whose shortest side becomes
336 has 11 million pixels, 45 MB; one of 10,000 x 1 would have 1.1 billion.

Damage. A truncated picture is refused, not filled up with grey.
"""

import functools
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxclip.files import open_regular
from jaxclip.images import kinds as file_kinds

MOST_PIXELS = 178_956_970  # where Pillow's own error begins
MOST_STRETCHED = 100

FORMATS = {  # Pillow's name -> endings; JPEG includes MPO, HEIF needs pillow-heif
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "ICO": (".ico",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_PILLOW = re.compile(r"PIL\.|pillow_heif")
_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_TILE_SIDES = (322, 323)  # of a TIFF: a picture of 9 x 9 may declare a tile of gigabytes


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file's ending is that of a picture; the file itself is not looked at.

    >>> is_picture("photos/A.JPG"), is_picture("photos/a.eps")
    (True, False)
    """
    return PurePath(path).suffix.lower() in SUFFIXES


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that this installation reads: old Pillow lacks AVIF, HEIF is a package."""
    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _pillow_unheard() -> Iterator[None]:
    """Keep Pillow's warnings (size, EXIF, palettes) from the user; from any thread.

    `warnings.catch_warnings` exchanges the filters of all threads and may put old ones back. Here
    every thread adds one filter and takes one away, so the list ends as it began.
    """
    filters = cast(list[Any], warnings.filters)
    ignored = ("ignore", None, Warning, _PILLOW, 0)
    filters.insert(0, ignored)
    try:
        yield
    finally:
        with suppress(ValueError):  # somebody reset the filters
            filters.remove(ignored)


def _refusal(got: str, cure: str) -> ValueError:
    return ValueError(f"expected a picture (PNG, JPEG, ...), got {got}; {cure}")


def _damage(error: Exception, name: str) -> ValueError:
    """What a decoder's error means; decoders raise all kinds when a file is damaged."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", reason)
        return _too_many(f"{int(pixels[1]):,}" if pixels else "more")
    truncated = "truncated" in reason.lower()
    got = f"a truncated {name}" if truncated else f"a damaged {name} ({reason})"
    return _refusal(got, "fetch it again")


def _too_many(got: str) -> ValueError:
    return ValueError(
        f"expected a picture of at most {MOST_PIXELS:,} pixels, got {got}; make it smaller"
    )


def check_size(width: int, height: int) -> None:
    """Refuse a picture that is empty, or larger or longer than the limits of this module.

    >>> check_size(10_000, 1)
    Traceback (most recent call last):
    ValueError: expected a picture at most 100 times as long as wide, got 10000 x 1; crop it
    """
    if min(width, height) < 1:
        raise ValueError(f"expected a picture of at least 1 x 1 pixels, got {width} x {height}")
    if width * height > MOST_PIXELS:
        raise _too_many(f"{width} x {height}")
    if max(width, height) > MOST_STRETCHED * min(width, height):
        raise ValueError(
            f"expected a picture at most {MOST_STRETCHED} times as long as wide, "
            f"got {width} x {height}; crop it"
        )


def load_pixels(image: Image.Image) -> None:
    """Decode a picture that Pillow has opened, once its size is found to be within the limits.

    Raises:
        ValueError: not a picture, too large, too long, or damaged.
    """
    if not isinstance(image, Image.Image):
        got = type(image).__name__
        raise ValueError(f"expected a PIL.Image (open_image reads a file), got {got}")
    check_size(*image.size)
    width, height = (getattr(image, "tag_v2", {}).get(tag) for tag in _TILE_SIDES)
    if isinstance(width, int) and isinstance(height, int) and width * height > MOST_PIXELS:
        raise _too_many(f"tiles of {width} x {height}")
    try:
        with _pillow_unheard():
            image.load()
    except Exception as error:
        raise _damage(error, image.format or "picture") from error
    check_size(*image.size)  # an ICO's true size is known only now


def identify(file: BinaryIO) -> Image.Image:
    """The picture in an open file, its pixels not decoded yet."""
    head = file.read(64)
    size = file.seek(0, io.SEEK_END)
    if not head:
        raise _refusal("an empty file", "fetch it again")
    try:
        with _pillow_unheard():
            return Image.open(file, formats=readable_formats())
    except UnidentifiedImageError as error:
        raise _refusal(*file_kinds.describe(head, size, readable_formats())) from error
    except Exception as error:
        raise _damage(error, file_kinds.picture_format(head) or "picture") from error


def _decode(file: BinaryIO) -> Image.Image:
    image = identify(file)
    load_pixels(image)
    return image


def decode_image(content: bytes) -> Image.Image:
    """Decode a picture file's bytes, all of them, so that damage is noticed here.

    Args:
        content: of a file in one of FORMATS; of an animation the first frame is taken.

    Returns:
        The decoded picture in its own mode.

    Raises:
        ValueError: one line with what was expected, what it got and what to do.

    >>> decode_image(b"")
    Traceback (most recent call last):
    ValueError: expected a picture (PNG, JPEG, ...), got an empty file; fetch it again
    """
    return _decode(io.BytesIO(content))


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open a picture file and decode all of it, by the rules of `decode_image`.

    Args:
        path: a regular file; a named pipe or a device is refused without waiting for it.

    Raises:
        ValueError: one line with the path, what was expected, what it got and what to do.

    >>> open_image("no/such.png")
    Traceback (most recent call last):
    ValueError: 'no/such.png': expected a file, got none of that name
    """
    with open_regular(path) as file:
        try:
            return _decode(file)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a person sees it: upright, 8 bits a channel, in RGB, on white.

    Training reads every picture so, and so does evaluation by the policy `safe`.

    - EXIF orientation is applied; an EXIF block that cannot be read tells none.
    - Deep grey is scaled to 8 bits: from 0..65535 if it is 16-bit (a PGM too), else from the first
      of 0..1 (if float), 0..255 and 0..65535 that holds all values, else from its extremes.
    - What is transparent, by an alpha channel, a palette or a key colour, is laid on white.
    - Palettes, CMYK, YCbCr, LAB and the like become RGB by Pillow's conversion. ICC profiles are
      ignored, as the released code ignores them.

    Args:
        image: a picture of any mode, decoded or not.

    Returns:
        A picture of mode RGB, with width and height as seen; `image` itself if it is one already.

    Raises:
        ValueError: as `load_pixels`, or a value is not finite.

    >>> to_rgb(Image.new("LA", (2, 1), (0, 51))).getpixel((0, 0))
    (204, 204, 204)
    """
    load_pixels(image)
    with _pillow_unheard():
        try:
            return _as_seen(image)
        except Exception as error:
            raise _damage(error, f"picture of mode {image.mode}") from error


def _as_seen(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        colours = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF raises all kinds; the picture is good
        return 1
    return found if isinstance(found, int) else 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a deep grey picture to 8 bits (the ranges: `to_rgb`)."""
    values = np.asarray(image)  # [h, w]
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    known = image.mode.startswith("I;16") or image.format == "PPM"  # Pillow scales a deep PGM so
    ranges = [65535.0] if known else [255.0, 65535.0]
    if image.mode == "F":
        ranges.insert(0, 1.0)
    fitting = [top for top in ranges if low >= 0 and high <= top]
    if fitting:
        low, high = 0.0, fitting[0]
    scale = 255 / (high - low or 1.0)  # one value all over: black
    grey = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 64):  # float64 of the whole picture would take gigabytes
        part = values[row : row + 64].astype(np.float64)
        grey[row : row + 64] = np.rint((part - low) * scale)
    key = image.info.get("transparency")  # a PNG's grey that is transparent
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)
