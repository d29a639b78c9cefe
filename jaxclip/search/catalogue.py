"""The facts of an index, in one SQLite file: pictures, models, blocks of vectors, rows.

- `files`: one row a picture: path below the root (bytes, as the system has it), size, times, the
  SHA-256 of its content, or why it cannot be read.
- `models`: one row a model with its preprocessing; its vectors are in the file `store`.
- `blocks`: ranges of rows of a store, each with its CRC-32. A store is only appended to, and a row
  counts only once its block is in this table: what a killed process left behind is never read.
- `vectors`: the row of a content. Two files of one content share it.

SQLite's rollback journal, not its write-ahead log: readers need no write access.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

VERSION = 1
ENDINGS: dict[np.dtype, str] = {
    np.dtype(np.float16): ".f16",
    np.dtype(np.float32): ".f32",
}  # of stores
WAIT = 600.0  # seconds for another process's transaction, which takes milliseconds
MOST_VARIABLES = 500  # of one statement: old SQLite takes 999
TABLES = """
CREATE TABLE facts(name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE files(path BLOB PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL,
  changed INTEGER NOT NULL, digest BLOB, error TEXT, reader TEXT) WITHOUT ROWID;
CREATE INDEX files_by_digest ON files(digest);
CREATE TABLE models(id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
  width INTEGER NOT NULL, store TEXT UNIQUE NOT NULL);
CREATE TABLE blocks(model INTEGER, first INTEGER, rows INTEGER, checksum INTEGER,
  PRIMARY KEY(model, first)) WITHOUT ROWID;
CREATE TABLE vectors(model INTEGER, row INTEGER, digest BLOB NOT NULL,
  PRIMARY KEY(model, row), UNIQUE(model, digest)) WITHOUT ROWID;
"""


class FileFacts(NamedTuple):
    """One picture file as it was read. Times in nanoseconds; `changed` is 0 if not settled."""

    path: bytes
    size: int
    modified: int
    changed: int
    digest: bytes | None
    error: str | None
    reader: str | None  # the decoders that found the error


class Model(NamedTuple):
    """A model with its preprocessing, and the file of its vectors, [rows, width]."""

    id: int
    key: str
    name: str
    width: int
    store: str

    @property
    def dtype(self) -> np.dtype:
        """Of the vectors, by the ending of the file."""
        return next(x for x, ending in ENDINGS.items() if self.store.endswith(ending))


class Block(NamedTuple):
    """Rows `first` to `first + rows - 1` of a store, and the CRC-32 of their bytes."""

    first: int
    rows: int
    checksum: int


class CannotUse(ValueError):
    """SQLite cannot read or write the facts now: a full disk, a folder that is read-only."""


@contextlib.contextmanager
def _errors_in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise CannotUse(f"{str(path)!r}: the index cannot be used ({error})") from None
        raise ValueError(
            f"{str(path)!r}: expected the facts of an index, got a damaged file ({error}); remove "
            f"{str(path.parent)!r} and index again"
        ) from None


class Catalogue:
    """An open SQLite file of facts.

    Args:
      path: of the file; made if it is missing and `write`.
      write: open for writing; a reader needs no write access and changes nothing.

    Raises:
      ValueError: it is damaged, cannot be opened, or is of another version of the program.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        with _errors_in_one_line(path):
            name = path.absolute().as_uri() + ("" if write else "?mode=ro")
            self.connection = sqlite3.connect(name, timeout=WAIT, isolation_level=None, uri=True)
            try:
                self._require_version(write)
            except BaseException:
                self.connection.close()
                raise

    def _require_version(self, write: bool) -> None:
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and write:
            self.connection.executescript(
                f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"
            )
        elif version != VERSION:
            raise ValueError(
                f"{str(self.path)!r}: expected an index of version {VERSION}, got {version}; "
                "remove it and index again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or none; while it lasts a reader sees one state."""
        with _errors_in_one_line(self.path):
            self.connection.execute("BEGIN")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def fact(self, name: str) -> bytes | None:
        """A fact about the whole index."""
        found = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,))
        return next((value for (value,) in found), None)

    def set_fact(self, name: str, value: bytes) -> None:
        """Set a fact about the whole index."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def files(self) -> dict[bytes, FileFacts]:
        """All files by path."""
        rows = self.connection.execute("SELECT * FROM files")
        return {row[0]: FileFacts(*row) for row in rows}

    def put_files(self, files: Iterable[FileFacts]) -> None:
        """Add or replace files."""
        self.connection.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?)", files)

    def remove_files(self, paths: Iterable[bytes]) -> None:
        """Remove the files of these paths."""
        self.connection.executemany("DELETE FROM files WHERE path = ?", ((x,) for x in paths))

    def models(self) -> list[Model]:
        """All models, in the order in which they were added."""
        return [Model(*row) for row in self.connection.execute("SELECT * FROM models ORDER BY id")]

    def model(self, key: str) -> Model | None:
        """The model of that key; None if it has no vectors yet."""
        return next((model for model in self.models() if model.key == key), None)

    def add_model(self, key: str, name: str, width: int, dtype: np.dtype) -> Model:
        """The model of that key, added if it is missing."""
        columns = "INSERT OR IGNORE INTO models(key, name, width, store) VALUES (?, ?, ?, ?)"
        store = f"{key[:16]}-1{ENDINGS[dtype]}"
        self.connection.execute(columns, (key, name, width, store))
        found = self.model(key)
        assert found is not None
        return found

    def blocks(self, model: Model) -> list[Block]:
        """The blocks of a model's store, by row."""
        query = "SELECT first, rows, checksum FROM blocks WHERE model = ? ORDER BY first"
        return [Block(*row) for row in self.connection.execute(query, (model.id,))]

    def add_block(self, model: Model, block: Block, digests: Sequence[bytes]) -> None:
        """Add a block and the contents of its rows, one each."""
        self.connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", (model.id, *block))
        rows = ((model.id, block.first + i, digest) for i, digest in enumerate(digests))
        self.connection.executemany("INSERT INTO vectors VALUES (?, ?, ?)", rows)

    def remove_block(self, model: Model, block: Block) -> None:
        """Remove a block; its contents have to be encoded again."""
        last = block.first + block.rows - 1
        where = (model.id, block.first, last)
        self.connection.execute(
            "DELETE FROM vectors WHERE model = ? AND row BETWEEN ? AND ?", where
        )
        self.connection.execute("DELETE FROM blocks WHERE model = ? AND first = ?", where[:2])

    def digests(self, model: Model) -> set[bytes]:
        """The contents that have a vector."""
        query = "SELECT digest FROM vectors WHERE model = ?"
        return {digest for (digest,) in self.connection.execute(query, (model.id,))}

    def remove_orphans(self) -> None:
        """Remove the vectors of contents that no file has any more; their rows become holes."""
        self.connection.execute(
            "DELETE FROM vectors WHERE digest NOT IN "
            "(SELECT digest FROM files WHERE digest IS NOT NULL)"
        )

    def contents(self, model: Model) -> list[tuple[int, bytes]]:
        """(row, digest) of every vector, by row."""
        query = "SELECT row, digest FROM vectors WHERE model = ? ORDER BY row"
        return list(self.connection.execute(query, (model.id,)))

    def replace_store(
        self, model: Model, store: str, blocks: Sequence[tuple[Block, Sequence[bytes]]]
    ) -> Model:
        """The model with another store, which holds these blocks and their contents."""
        for table in ("vectors", "blocks"):
            self.connection.execute(f"DELETE FROM {table} WHERE model = ?", (model.id,))
        for block, digests in blocks:
            self.add_block(model, block, digests)
        self.connection.execute("UPDATE models SET store = ? WHERE id = ?", (store, model.id))
        return model._replace(store=store)

    def row(self, model: Model, digest: bytes) -> int | None:
        """The row of a content; None where it has no vector."""
        query = "SELECT row FROM vectors WHERE model = ? AND digest = ?"
        return next((row for (row,) in self.connection.execute(query, (model.id, digest))), None)

    def paths(self, model: Model, rows: Sequence[int]) -> list[tuple[int, bytes]]:
        """(row, path) of every file of these rows."""
        found: list[tuple[int, bytes]] = []
        for start in range(0, len(rows), MOST_VARIABLES):
            part = [int(row) for row in rows[start : start + MOST_VARIABLES]]
            query = (
                "SELECT v.row, f.path FROM vectors v JOIN files f ON f.digest = v.digest "
                f"WHERE v.model = ? AND v.row IN ({', '.join('?' * len(part))})"
            )
            found += self.connection.execute(query, (model.id, *part))
        return found
