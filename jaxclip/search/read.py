"""Reading picture files for an index: their facts, and their pixels if their content is new.

A file counts as unchanged while its size and both times are those that it was read with. Its time
is trusted only if it lies SETTLED before the reading: a file may change twice within one tick of
the clock. A file is read once; its digest and its vector are of the same bytes, whatever happens
to the file meanwhile.
"""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxclip import __version__
from jaxclip.data.ahead import read_ahead
from jaxclip.files import open_regular
from jaxclip.images.open import decode_image, readable_formats
from jaxclip.search.catalogue import FileFacts

SETTLED = 2_000_000_000  # nanoseconds
MOST_BYTES = 2**31  # of a picture file; the largest picture that is decoded has fewer
AHEAD = 32  # files that are read while those before them are encoded

ToPixels = Callable[[Image.Image], np.ndarray]  # -> float32 [h, w, c]


class Read(NamedTuple):
    """A file that was read: its facts, and its pixels where its content has no vector yet."""

    facts: FileFacts
    pixels: np.ndarray | None


def times(status: os.stat_result) -> tuple[int, int, int]:
    """What tells an unchanged file: its size, and both times in nanoseconds."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.cache
def decoders() -> str:
    """What decides whether a file can be read: a broken one is tried again when it changes."""
    return f"{__version__} {version('pillow')} {' '.join(readable_formats())}"


def read_picture(
    path: bytes, name: str, to_pixels: ToPixels, known: Container[bytes], reader: str
) -> Read:
    """Read a file once: its facts, and its pixels unless its content is known."""
    begun = time.time_ns()
    try:
        with open_regular(name) as file:
            status = os.fstat(file.fileno())
            content = file.read(MOST_BYTES + 1)
            after = os.fstat(file.fileno())
    except (OSError, ValueError) as error:  # perhaps only for now: no decoder found it
        return Read(FileFacts(path, 0, 0, 0, None, " ".join(str(error).split()), None), None)
    settled = times(after) == times(status) and max(times(status)[1:]) < begun - SETTLED
    size, modified, changed = times(status)
    digest = hashlib.sha256(content).digest()
    facts = FileFacts(path, size, modified, changed if settled else 0, digest, None, None)
    if digest in known:
        return Read(facts, None)
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"expected at most {MOST_BYTES:,} bytes, got more")
        return Read(facts, to_pixels(decode_image(content)))
    except ValueError as error:
        reason = " ".join(str(error).split())
        return Read(facts._replace(digest=None, error=reason, reader=reader), None)


def read_pictures(
    root: str,
    paths: Sequence[bytes],
    to_pixels: ToPixels,
    known: Container[bytes] = (),
    reader: str = "",
) -> Iterator[Read]:
    """Every file of `paths`, which are below `root`, in order, read on all cores ahead of use."""

    def read(path: bytes) -> Read:
        name = os.path.join(root, os.fsdecode(path))
        return read_picture(path, name, to_pixels, known, reader)

    parts = [paths[i : i + AHEAD] for i in range(0, len(paths), AHEAD)]
    with ThreadPoolExecutor() as pool:
        for part in read_ahead(list(pool.map(read, part)) for part in parts):
            yield from part
