"""SHA-256 of what a source yields, by which a kept result is told from one of other pictures.

Every record is read whole: a picture that `cp -p` put in the place of another has its size and its
time. Reading costs little beside encoding, and is the same for files, tables, tar shards,
tensorflow-datasets and pictures in memory.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from jaxclip.data.labelled import Example

CHUNK = 1024  # records that are read ahead of their turn, at most


class Records(Protocol):
    """A sequence of `labelled.Example` or `pairs.Pair`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


class Digest(NamedTuple):
    """SHA-256 of one record's picture (its bytes and where it is) and of its label or captions."""

    picture: bytes
    words: bytes


def digests(source: Records, threads: int | None = None) -> Iterator[Digest]:
    """The `Digest` of every record, in the source's order."""

    def read(i: int) -> Digest:
        try:
            item = source[i]
        except (ValueError, OSError) as error:  # it will be left out, for this reason
            return Digest(_sha256(str(error)), b"")
        words = item.label if isinstance(item, Example) else item.captions
        where = hashlib.sha256(item.image).digest() + _encoded(item.where)
        return Digest(hashlib.sha256(where).digest(), _sha256(json.dumps(words, default=repr)))

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), CHUNK):
            yield from pool.map(read, range(start, min(start + CHUNK, len(source))))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 hold surrogates


def _sha256(text: str) -> bytes:
    return hashlib.sha256(_encoded(text)).digest()
