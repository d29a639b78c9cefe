"""Picture files, opened and decoded, or refused in one line that says what was there instead."""

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

# Endings of picture files, in any case; what a file holds is seen when it is opened.
_PLAIN = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_OTHER = (".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".heic", ".heif")
SUFFIXES = (*_PLAIN, *_OTHER)

_OPENING = threading.Lock()
_PICTURES = {  # how a file starts -> what it is
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_OTHERS = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML text",
    b"{": "a JSON text",
}


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends as a picture's does.

    >>> is_picture("A.JPG"), is_picture("notes.txt")
    (True, False)
    """
    return os.path.splitext(os.fspath(path))[1].lower() in SUFFIXES


def _refusal(path: Path, came: str, cure: str) -> ValueError:
    return ValueError(f"{str(path)!r}: {came}; expected a picture (PNG, JPEG, ...); {cure}")


def _head(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file and its size; refuses what is not a file with something in it."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _refusal(path, "a directory", "name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(path, "not a regular file", "copy it to one")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise _refusal(path, "no such file", "check the path") from error
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})", "check the path") from error
    if not head:
        raise _refusal(path, "an empty file", "fetch it again")
    return head, status.st_size


def _kind(head: bytes, size: int) -> str:
    """What a file is that Pillow does not recognise, in words."""
    for start, name in _PICTURES.items():
        if head.startswith(start):
            return f"a damaged {name} of {size} bytes"
    for start, name in _OTHERS.items():
        if head.lstrip().lower().startswith(start.lower()):
            return name
    if head[4:8] == b"ftyp":
        return f"an MP4 video or a HEIC picture (brand {head[8:12].decode('latin-1')!r})"
    if head.isascii() and not set(head) & set(range(9)):
        return "a text file"
    return f"no picture that Pillow knows (it starts with {head[:8].hex(' ')})"


def _damage(head: bytes, size: int, error: Exception) -> str:
    name = next((name for start, name in _PICTURES.items() if head.startswith(start)), "picture")
    reason = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in reason.lower():
        return f"truncated {name} after {size} bytes"
    return f"a damaged {name} of {size} bytes ({reason})"


def _declared_size(path: Path, head: bytes) -> str:
    """Width and height as the file declares them; nothing is decoded."""
    for factory, accept in Image.OPEN.values():
        if accept is None or accept(head[:16]) is not True:
            continue
        # A format that does not fit after all, or one that counts the pixels itself.
        with suppress(SyntaxError, Image.DecompressionBombError), path.open("rb") as file:
            picture = factory(file, path.name)
            return f"{picture.width} x {picture.height}"
    return "too many"


@contextmanager
def _large_pictures_unannounced() -> Iterator[None]:
    """Keep Pillow's warning about size from the user; the filters belong to all threads at once."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _decode(file: IO[bytes]) -> Image.Image:
    with _large_pictures_unannounced():
        image = Image.open(file)
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
        with _large_pictures_unannounced():  # some decoders look at the size again
            image.load()
    image.load()
    return image


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open a picture file and decode all of it, so that a damaged file is noticed here.

    Args:
        path: a file that Pillow can read; of an animation the first frame is taken. Pictures above
            Pillow's limit for a warning are read, those above its limit for an error are not.

    Returns:
        The decoded picture in its own mode; the file is closed.

    Raises:
        ValueError: one line with the path, what was found there, what was expected and what to do.

    >>> open_image("no/such.png")
    Traceback (most recent call last):
    ValueError: 'no/such.png': no such file; expected a picture (PNG, JPEG, ...); check the path
    """
    path = Path(path)
    head, size = _head(path)
    try:
        with path.open("rb") as file:
            return _decode(file)
    except Image.DecompressionBombError as error:
        came = f"a decompression bomb: {_declared_size(path, head)} pixels"
        raise _refusal(path, came, "make it smaller first") from error
    except UnidentifiedImageError as error:
        raise _refusal(path, _kind(head, size), "convert it or leave it out") from error
    except Exception as error:  # decoders raise all kinds when a file is damaged
        raise _refusal(path, _damage(head, size, error), "fetch it again") from error
