"""SHA-256 of all records of a source, by which a kept result is matched with its pictures.

Every record is read in full: size and time do not tell a picture from one that `cp -p` put over it.
Reading costs little beside encoding, and is the same for files, tables, tar shards,
tensorflow-datasets and pictures in memory.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from jaxclip.data.labelled import Example

CHUNK = 1024  # records read at a time


class Records(Protocol):
    """A sequence of `labelled.Example` or `pairs.Pair`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


class Digest(NamedTuple):
    """SHA-256 of one record's picture (its bytes and its path) and of its label or captions."""

    picture: bytes
    words: bytes


def digests(source: Records, threads: int | None = None) -> Iterator[Digest]:
    """The `Digest` of every record, in the source's order."""

    def read(i: int) -> Digest:
        try:
            item = source[i]
        except (ValueError, OSError) as error:  # the record will be skipped for this reason
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
