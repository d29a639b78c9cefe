"""Bringing an index up to date: what is new, changed, moved, gone, broken; then the vectors.

A content that has a vector is not encoded again: moved, renamed and copied files cost their
reading.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxclip.data.ahead import read_ahead
from jaxclip.data.folders import Found, find_pictures
from jaxclip.images.preprocess import Preprocess
from jaxclip.reference import l2_normalize
from jaxclip.search import index
from jaxclip.search.catalogue import Block, CannotUse, Catalogue, FileFacts, Model
from jaxclip.search.read import Read, decoders, read_picture, times

BATCH = 32  # pictures a call of the model
BLOCK = 256  # rows a block at most, about
SECONDS = 5.0  # after which a block that is not full is written: what a kill may cost
HOLES = 4096  # rows without a file that a store may always have

Encode = Callable[[np.ndarray], np.ndarray]  # pixels [n, h, w, c] -> features [n, e]
Progress = Callable[[Iterable[Read], int], Iterable[Read]]


class Tower(NamedTuple):
    """The image side of a model. `load` is called when there is a picture to encode."""

    key: str
    name: str
    preprocess: Preprocess
    load: Callable[[], Encode]


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
        if len(self.pixels) == BATCH:
            self._encode()
        full = len(self.digests) >= BLOCK or len(self.files) >= 16 * BLOCK
        if full or time.monotonic() - self.committed > SECONDS:
            self.commit()

    def _encode(self) -> None:
        if self.encode is None:
            self.encode = self.tower.load()
        missing = BATCH - len(self.pixels)  # one shape, one compiled program
        filled = np.stack(self.pixels + self.pixels[:1] * missing)
        features = np.asarray(self.encode(filled), np.float32)[: len(self.pixels)]
        lengths = np.linalg.norm(features.astype(np.float64), axis=-1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError(
                f"{self.tower.name}: expected features with a direction, got zeros or no numbers; "
                "the weights are damaged"
            )
        self.vectors.append(l2_normalize(features).astype(np.float16))
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
                    self.tower.key, self.tower.name, vectors.shape[1]
                )
        if self.store is None:
            end = index.end_of(self.catalogue.blocks(self.model))
            self.store = index.Store(self.folder, self.model.store, self.model.width, end)
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
    progress: Progress = no_progress,
) -> Report:
    """Bring the index of the pictures in `root` up to date, for one model.

    Args:
      root: the folder of pictures, walked by the rule of `data.folders`.
      folder: of the index.
      catalogue: its facts, open for writing (`index.writing`).
      tower: of the model.
      progress: shows the files as they are read.

    Raises:
      ValueError: the folder cannot be read, the disk is full; what was committed stays.
    """
    found = find_pictures(root)
    found.log_left_out(used_texts=len(found.texts))
    index.require_root(catalogue, root)
    report, model = Report(), catalogue.model(tower.key)
    if model is not None:
        report.damaged = _drop_damaged(folder, catalogue, model)
    known = catalogue.digests(model) if model is not None else set[bytes]()
    kept, reader = catalogue.files(), decoders()
    todo = list(_changed(found, kept, known, reader))
    report.gone = _remove_gone(found, kept, catalogue)
    writer = Writer(folder, catalogue, tower, model)
    try:
        reads = _read_all(found.root, todo, tower.preprocess, known, reader)
        for read in progress(reads, len(todo)):
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


def _below(root: Path, path: Path) -> bytes:
    return os.fsencode(path.relative_to(root))


def _changed(
    found: Found, kept: dict[bytes, FileFacts], known: set[bytes], reader: str
) -> Iterator[bytes]:
    """The files to read, as paths below the root."""
    for path in found.pictures:
        below = _below(found.root, path)
        facts = kept.get(below)
        if facts is not None:
            try:
                same = times(os.stat(path)) == (facts.size, facts.modified, facts.changed)
            except OSError:
                same = False
            done = facts.digest in known or (facts.error is not None and facts.reader == reader)
            if same and done:
                continue
        yield below


def _remove_gone(found: Found, kept: dict[bytes, FileFacts], catalogue: Catalogue) -> int:
    here = {_below(found.root, path) for path in found.pictures}
    gone = [path for path in kept if path not in here]
    with catalogue.transaction():
        catalogue.remove_files(gone)
    return len(gone)


def _read_all(
    root: Path, paths: Sequence[bytes], preprocess: Preprocess, known: set[bytes], reader: str
) -> Iterator[Read]:
    """Every file, read on all cores ahead of the model, in order."""

    def read(path: bytes) -> Read:
        name = os.path.join(root, os.fsdecode(path))
        return read_picture(path, name, preprocess, known, reader)

    parts = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    with ThreadPoolExecutor() as pool:
        for part in read_ahead(list(pool.map(read, part)) for part in parts):
            yield from part


def _tidy(folder: Path, catalogue: Catalogue, model: Model | None) -> None:
    """Forget contents that no file has; write a store anew that is mostly holes."""
    with catalogue.transaction():
        catalogue.remove_orphans()
    if model is None:
        return
    rows, alive = index.end_of(catalogue.blocks(model)), len(catalogue.digests(model))
    if rows > 2 * alive + HOLES:
        index.compact(folder, catalogue, model, BLOCK)
