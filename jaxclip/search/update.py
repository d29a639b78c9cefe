"""Bringing an index up to date: what is new, changed, moved, gone, broken; then the vectors.

A content that has a vector is not encoded again: moved, renamed and copied files cost their
reading.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jaxclip.data.folders import find_pictures
from jaxclip.evaluation.features import require_finite
from jaxclip.reference import l2_normalize
from jaxclip.search import index
from jaxclip.search.catalogue import Block, CannotUse, Catalogue, FileFacts, Model
from jaxclip.search.read import Read, ToPixels, decoders, read_pictures, times

BATCH = 32  # pictures a call of the model
BLOCK = 256  # rows a block at most, about
SECONDS = 5.0  # after which a block that is not full is written: what a kill may cost
HOLES = 4096  # rows without a file that a store may always have

Encode = Callable[[np.ndarray], np.ndarray]  # pixels [n, h, w, c] -> features [n, e]
Progress = Callable[[Iterable[Read], int], Iterable[Read]]


def unit_vectors(features: np.ndarray) -> np.ndarray:
    """The rows of an index: float16 [n, e] of unit length."""
    return np.asarray(l2_normalize(features), np.float16)


class Tower(NamedTuple):
    """One side of a model.

    load: called when there is something to encode.
    to_rows: features [n, e] float32 -> the rows to keep, float16 or float32.
    batch: inputs a call of the model.
    """

    key: str
    name: str
    load: Callable[[], Encode]
    to_rows: Callable[[np.ndarray], np.ndarray] = unit_vectors
    batch: int = BATCH


@dataclasses.dataclass
class Report:
    """What an update found and did.

    pictures: in the index now. encoded: new vectors. known: new or changed files whose
    content had a vector. gone: files that are in the folder no more. damaged: blocks made again.
    broken: {path: reason} of all files that cannot be read; new: those that this update found.
    """

    pictures: int = 0
    encoded: int = 0
    known: int = 0
    gone: int = 0
    damaged: int = 0
    broken: dict[bytes, str] = dataclasses.field(default_factory=dict)
    new: list[bytes] = dataclasses.field(default_factory=list)


def no_progress(reads: Iterable[Read], total: int) -> Iterable[Read]:
    """The files as they are: the default where no progress bar is wanted."""
    return reads


class Writer:
    """Collects what was read and commits it block by block: vectors first, then the facts."""

    def __init__(
        self, folder: Path, catalogue: Catalogue, tower: Tower, model: Model | None
    ) -> None:
        self.folder, self.catalogue, self.tower, self.model = folder, catalogue, tower, model
        self.store: index.Store | None = None
        self.encode: Encode | None = None
        self.pixels: list[np.ndarray] = []
        self.digests: list[bytes] = []
        self.vectors: list[np.ndarray] = []
        self.files: list[FileFacts] = []
        self.written, self.committed = 0, time.monotonic()

    def add(self, read: Read) -> None:
        """Take a file that was read; now and then a block is encoded and committed."""
        self.files.append(read.facts)
        if read.pixels is not None:
            assert read.facts.digest is not None
            self.pixels.append(read.pixels)
            self.digests.append(read.facts.digest)
        if len(self.pixels) == self.tower.batch:
            self._encode()
        full = len(self.digests) >= BLOCK or len(self.files) >= 16 * BLOCK
        if full or time.monotonic() - self.committed > SECONDS:
            self.commit()

    def _encode(self) -> None:
        if self.encode is None:
            self.encode = self.tower.load()
        missing = self.tower.batch - len(self.pixels)  # one shape, one compiled program
        filled = np.stack(self.pixels + self.pixels[:1] * missing)
        features = np.asarray(self.encode(filled), np.float32)[: len(self.pixels)]
        self.vectors.append(self.tower.to_rows(require_finite(features, self.tower.name)))
        self.pixels = []

    def commit(self) -> None:
        """Write what was collected; all of it counts from now on, or nothing."""
        if self.pixels:
            self._encode()
        block = self._append(np.concatenate(self.vectors)) if self.vectors else None
        with self.catalogue.transaction():
            if block is not None:
                assert self.model is not None
                self.catalogue.add_block(self.model, block, self.digests)
            self.catalogue.put_files(self.files)
        self.written += len(self.files)
        self.vectors, self.digests, self.files = [], [], []
        self.committed = time.monotonic()

    def _append(self, vectors: np.ndarray) -> Block:
        if self.model is None:
            with self.catalogue.transaction():
                self.model = self.catalogue.add_model(
                    self.tower.key, self.tower.name, vectors.shape[1], vectors.dtype
                )
        if self.store is None:
            end = index.end_of(self.catalogue.blocks(self.model))
            self.store = index.Store(self.folder, self.model, end)
        return self.store.append(vectors)

    def close(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.file.close()


def update(
    root: Path,
    folder: Path,
    catalogue: Catalogue,
    tower: Tower,
    to_pixels: ToPixels,
    progress: Progress = no_progress,
) -> Report:
    """Bring the index of the pictures in `root` up to date, for one model.

    Args:
      root: the folder of pictures, walked by the rule of `data.folders`.
      folder: of the index.
      catalogue: its facts, open for writing (`index.writing`).
      tower: the image side of the model.
      to_pixels: picture -> float32 [h, w, c].
      progress: shows the files as they are read.

    Raises:
      ValueError: the folder cannot be read, the disk is full; what was committed stays.
    """
    found = find_pictures(root)
    found.log_left_out(used_texts=len(found.texts))
    index.require_root(catalogue, root)
    paths = [os.fsencode(path.relative_to(found.root)) for path in found.pictures]
    return encode_items(Files(str(root), paths, to_pixels), folder, catalogue, tower, progress)


class Items(Protocol):
    """What is to be encoded, each by a name of its own: files, or the lines of a text."""

    @property
    def names(self) -> Sequence[bytes]:
        """All of them, each once."""

    def changed(self, kept: dict[bytes, FileFacts], known: set[bytes]) -> list[bytes]:
        """Those to read: not `kept` as they are now, or of a content that is not `known`."""

    def read(self, todo: Sequence[bytes], known: set[bytes]) -> Iterator[Read]:
        """Those, in order; without what the model takes where their content is `known`."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Picture files by their paths below `root`."""

    root: str
    names: Sequence[bytes]
    to_pixels: ToPixels

    def changed(self, kept: dict[bytes, FileFacts], known: set[bytes]) -> list[bytes]:
        """Those that are new, whose size or times changed, or that may be readable by now."""
        return [path for path in self.names if not self._is_done(path, kept.get(path), known)]

    def _is_done(self, path: bytes, facts: FileFacts | None, known: set[bytes]) -> bool:
        if facts is None:
            return False
        try:
            now = times(os.stat(os.path.join(self.root, os.fsdecode(path))))
        except OSError:
            return False
        if now != (facts.size, facts.modified, facts.changed):
            return False
        return facts.digest in known or (facts.error is not None and facts.reader == decoders())

    def read(self, todo: Sequence[bytes], known: set[bytes]) -> Iterator[Read]:
        """Every file once, on all cores ahead of use."""
        return read_pictures(self.root, todo, self.to_pixels, known, decoders())


def encode_items(
    items: Items,
    folder: Path,
    catalogue: Catalogue,
    tower: Tower,
    progress: Progress = no_progress,
) -> Report:
    """Bring the rows of `items` up to date, for one model; all other items are forgotten.

    Raises:
      ValueError: the disk is full; what was committed stays.
    """
    report, model = Report(), catalogue.model(tower.key)
    if model is not None:
        report.damaged = _drop_damaged(folder, catalogue, model)
    known = catalogue.digests(model) if model is not None else set[bytes]()
    kept = catalogue.files()
    todo = items.changed(kept, known)
    report.gone = _remove_gone(items.names, kept, catalogue)
    writer = Writer(folder, catalogue, tower, model)
    try:
        for read in progress(items.read(todo, known), len(todo)):
            if read.facts.error is not None:
                report.new.append(read.facts.path)
            elif read.pixels is None or read.facts.digest in known:
                read = read._replace(pixels=None)
                before = kept.get(read.facts.path)
                report.known += before is None or before.digest != read.facts.digest
            else:
                assert read.facts.digest is not None
                known.add(read.facts.digest)
                report.encoded += 1
            writer.add(read)
        writer.commit()
        _tidy(folder, catalogue, writer.model)
    except (OSError, CannotUse) as error:
        raise ValueError(
            f"{str(folder)!r}: cannot be written ({error}); {writer.written} of {len(todo)} files "
            "are done and stay; make room, and the same command continues"
        ) from None
    finally:
        writer.close()
    files = catalogue.files().values()
    report.broken = {file.path: file.error for file in files if file.error is not None}
    report.pictures = len(files) - len(report.broken)
    return report


def _drop_damaged(folder: Path, catalogue: Catalogue, model: Model) -> int:
    bad = index.damaged(folder, model, catalogue.blocks(model))
    with catalogue.transaction():
        for block in bad:
            catalogue.remove_block(model, block)
    return len(bad)


def _remove_gone(names: Sequence[bytes], kept: dict[bytes, FileFacts], catalogue: Catalogue) -> int:
    here = set(names)
    gone = [path for path in kept if path not in here]
    with catalogue.transaction():
        catalogue.remove_files(gone)
    return len(gone)


def _tidy(folder: Path, catalogue: Catalogue, model: Model | None) -> None:
    """Forget contents that no file has; write a store anew that is mostly holes."""
    with catalogue.transaction():
        catalogue.remove_orphans()
    if model is None:
        return
    rows, alive = index.end_of(catalogue.blocks(model)), len(catalogue.digests(model))
    if rows > 2 * alive + HOLES:
        index.compact(folder, catalogue, model, BLOCK)
