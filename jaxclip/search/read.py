"""Reading one picture file for an index: its facts, and its pixels if its content is new.

A file counts as unchanged while its size and both times are those that it was read with. Its time
is trusted only if it lies SETTLED before the reading: a file may change twice within one tick of
the clock. A file is read once; its digest and its vector are of the same bytes, whatever happens
to the file meanwhile.
"""

import hashlib
import os
import time
from collections.abc import Container
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from jaxclip.files import open_regular
from jaxclip.images.open import decode_image, readable_formats
from jaxclip.images.preprocess import Preprocess
from jaxclip.search.catalogue import FileFacts

SETTLED = 2_000_000_000  # nanoseconds
MOST_BYTES = 2**31  # of a picture file; the largest picture that is decoded has fewer


class Read(NamedTuple):
    """A file that was read: its facts, and its pixels where its content has no vector yet."""

    facts: FileFacts
    pixels: np.ndarray | None


def times(status: os.stat_result) -> tuple[int, int, int]:
    """What tells an unchanged file: its size, and both times in nanoseconds."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def decoders() -> str:
    """What decides whether a file can be read: a broken one is tried again when it changes."""
    return f"{version('jaxclip')} {version('pillow')} {' '.join(readable_formats())}"


def read_picture(
    path: bytes, name: str, preprocess: Preprocess, known: Container[bytes], reader: str
) -> Read:
    """Read a file once: facts, and pixels by the policy `safe` unless its content is known."""
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
        return Read(facts, preprocess.safe(decode_image(content)))
    except ValueError as error:
        reason = " ".join(str(error).split())
        return Read(facts._replace(digest=None, error=reason, reader=reader), None)
