"""The folder of an index: who writes, where the vectors are, what has been damaged.

    .jaxclip/facts.sqlite    `catalogue.Catalogue`
    .jaxclip/lock.sqlite     locked by the process that writes; a killed process holds no lock
    .jaxclip/KEY-1.f16       the vectors of one model, float16 [rows, width], appended to

A block of vectors is written and flushed to the disk first, its facts are committed after. So a
process may be killed, or the disk be full, at any moment: rows without facts are overwritten.
"""

import contextlib
import hashlib
import json
import mmap
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import fingerprint
from jaxclip.data.folders import INDEX
from jaxclip.search.catalogue import ENDINGS, Block, Catalogue, Model

FACTS, LOCK = "facts.sqlite", "lock.sqlite"
FORMAT = "jaxclip vectors 1"  # part of a model's key: the policy `safe`, unit length, float16
POLL = 0.2  # seconds between two tries to become the writer


class BeingWritten(ValueError):
    """Another process writes the index now."""


class NotWritable(ValueError):
    """The folder of the index cannot be made or written to."""


def model_key(loaded: Any, form: str = FORMAT, side: str = "visual.") -> str:
    """SHA-256 of what a vector depends on: one tower, config with preprocessing, form.

    Not the device, nor the versions of jax and Pillow: they change the last bits only.

    Args:
      loaded: what `convert.load` made of a checkpoint.
      form: of the vectors: policy, length, dtype.
      side: how the names of the tower's parameters begin.
    """
    tower = {name: x for name, x in loaded.flat.items() if name.startswith(side)}
    return hashlib.sha256(
        fingerprint(tower, json.dumps([form, loaded.config.to_json()])).encode()
    ).hexdigest()


def index_folder(root: Path, folder: Path | None) -> Path:
    """Where the index of the pictures in `root` is: in `folder`, else beside them."""
    return root / INDEX if folder is None else folder


def exists(folder: Path) -> bool:
    """Whether a folder holds an index."""
    return (folder / FACTS).is_file()


@contextlib.contextmanager
def writing(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[Catalogue]:
    """The facts of an index, open for the one process that writes; the folder is made if need be.

    Args:
      folder: of the index.
      wait: called once before waiting for another writer; without it BeingWritten is raised.

    Raises:
      NotWritable: the folder cannot be made or written to.
      BeingWritten: another process writes, and `wait` is None.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "ab"):
            pass
    except OSError as error:
        raise NotWritable(
            f"{str(folder)!r}: expected a folder to write the index to, got an error "
            f"({error.strerror}); give another one with --index FOLDER"
        ) from None
    with contextlib.closing(sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)) as db:
        while not _lock(db):
            if wait is None:
                raise BeingWritten(f"{str(folder)!r}: another process writes this index")
            wait()
            wait = _say_nothing
            time.sleep(POLL)
        with Catalogue(folder / FACTS, write=True) as catalogue:
            yield catalogue


def _say_nothing() -> None:
    pass


def _lock(db: sqlite3.Connection) -> bool:
    try:
        db.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return False
        raise NotWritable(f"the index cannot be locked ({error})") from None
    return True


def require_root(catalogue: Catalogue, root: Path) -> None:
    """Note whose pictures an index elsewhere is of; ValueError where it is another folder's.

    A folder that is there no more has been renamed.
    """
    here, kept = os.fsencode(root.resolve()), catalogue.fact("root")
    if kept is not None and kept != here and os.path.isdir(kept):
        raise ValueError(
            f"{str(catalogue.path.parent)!r}: expected the index of {str(root)!r}, got that of "
            f"{os.fsdecode(kept)!r}; give each folder an --index of its own"
        )
    if kept != here:
        with catalogue.transaction():
            catalogue.set_fact("root", here)


def map_rows(folder: Path, model: Model, rows: int) -> np.ndarray:
    """The vectors of a model where they lie, [rows or fewer, width], not read yet."""
    path = folder / model.store
    size = path.stat().st_size if path.is_file() else 0
    bytes_a_row = model.dtype.itemsize * model.width
    rows = min(rows, size // bytes_a_row)
    if not rows:
        return np.zeros((0, model.width), model.dtype)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), rows * bytes_a_row, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, model.dtype).reshape(rows, model.width)


def end_of(blocks: Sequence[Block]) -> int:
    """The row after the last block."""
    return max((block.first + block.rows for block in blocks), default=0)


def damaged(folder: Path, model: Model, blocks: Sequence[Block]) -> list[Block]:
    """The blocks whose bytes are missing or not those that were written."""
    vectors = map_rows(folder, model, end_of(blocks))

    def is_damaged(block: Block) -> bool:
        rows = vectors[block.first : block.first + block.rows]
        return len(rows) < block.rows or zlib.crc32(rows.data) != block.checksum

    with ThreadPoolExecutor() as pool:
        return [x for x, bad in zip(blocks, pool.map(is_damaged, blocks), strict=True) if bad]


class Store:
    """The file of a model's vectors, open for appending blocks. Close it after use."""

    def __init__(self, folder: Path, model: Model, end: int) -> None:
        self.end, self.dtype = end, model.dtype
        self.bytes_a_row = model.dtype.itemsize * model.width
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self.file = os.fdopen(os.open(folder / model.store, flags, 0o644), "r+b", buffering=0)

    def append(self, vectors: np.ndarray) -> Block:
        """Write [rows, width] after the last block; on the disk when it returns."""
        content = np.ascontiguousarray(vectors, self.dtype).data.cast("B")
        self.file.seek(self.end * self.bytes_a_row)
        left = content
        while left:
            left = left[self.file.write(left) :]
        os.fsync(self.file.fileno())
        block = Block(self.end, len(vectors), zlib.crc32(content))
        self.end += len(vectors)
        return block


def compact(folder: Path, catalogue: Catalogue, model: Model, rows_a_block: int) -> Model:
    """The model in a new store without holes; readers keep the old one until they close it."""
    contents = catalogue.contents(model)
    vectors = map_rows(folder, model, end_of(catalogue.blocks(model)))
    stem, _, number = Path(model.store).stem.rpartition("-")
    name = f"{stem}-{int(number) + 1}{ENDINGS[model.dtype]}"
    store = Store(folder, model._replace(store=name), 0)
    blocks = []
    with store.file:
        for start in range(0, len(contents), rows_a_block):
            part = contents[start : start + rows_a_block]
            block = store.append(vectors[[row for row, _ in part]])
            blocks.append((block, [digest for _, digest in part]))
        store.file.truncate(store.end * store.bytes_a_row)
    with catalogue.transaction():
        moved = catalogue.replace_store(model, name, blocks)
    with contextlib.suppress(OSError):
        (folder / model.store).unlink()
    return moved
