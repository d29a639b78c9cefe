"""A folder of pictures with its index and a model: what index, search and similar share."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.cli.shared import UsageError, load_model, show_progress, stderr

MOST_NAMED = 9  # broken files that are named


class PictureFolder:
    """A folder of pictures, its index and the model that a command names."""

    def __init__(self, pictures: Path, where: Path | None, model: str) -> None:
        from jaxclip import convert
        from jaxclip.hub.find import find
        from jaxclip.search import index

        if not pictures.is_dir():
            raise UsageError(f"expected a folder of pictures, got {str(pictures)!r}")
        self.pictures, self.name = pictures, model
        self.where = index.index_folder(pictures, where)
        self.opened = convert.load(find(model), check_numbers=False)
        self.key = index.model_key(self.opened)

    def load(self, tower: str) -> Any:
        """One tower of the model."""
        return load_model(self.opened, of=self.name, tower=tower, arrange=True)[0]

    def tower(self) -> Any:
        """The image side of the model, loaded when there is something to encode."""
        from jaxclip.search.update import Tower

        return Tower(self.key, self.name, lambda: self.load("image").encode_image)

    def update(self, wait: bool) -> Any:
        """Bring the index up to date; the report."""
        from jaxclip.images.preprocess import Preprocess
        from jaxclip.search import index
        from jaxclip.search.update import update

        def say() -> None:
            stderr.print("another process writes this index; waiting for it ...")

        to_pixels = Preprocess.of(self.opened.config).safe
        with index.writing(self.where, say if wait else None) as catalogue:
            return update(self.pictures, self.where, catalogue, self.tower(), to_pixels, _progress)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, e], of unit length."""
        from jaxclip.evaluation.features import require_finite
        from jaxclip.reference import l2_normalize

        clip = self.load("text")
        features = np.asarray(clip.encode_text(clip.tokenize(list(texts))), np.float32)
        return np.asarray(l2_normalize(require_finite(features, "the words")))

    def encode_picture(self, path: Path, snapshot: Any) -> np.ndarray:
        """[e], of unit length; from the index where the picture is in it."""
        from jaxclip.files import read_bytes
        from jaxclip.images.open import decode_image
        from jaxclip.images.preprocess import Preprocess
        from jaxclip.search.query import unit

        content = read_bytes(path)
        kept = snapshot.vector(hashlib.sha256(content).digest())
        if kept is not None:
            return unit(kept, str(path))
        try:
            pixels = Preprocess.of(self.opened.config).safe(decode_image(content))
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from None
        return unit(np.asarray(self.load("image").encode_image(pixels[None]))[0], str(path))


def _progress(reads: Iterable[Any], total: int) -> Iterable[Any]:
    return show_progress(reads, "indexing", total) if total else reads


def _warn_broken(root: Path, report: Any) -> None:
    from jaxclip.search.query import full_path

    for path in report.new[:MOST_NAMED]:
        reason = report.broken.get(path, "gone meanwhile")
        name = repr(full_path(root, path))
        line = reason if reason.startswith(name) else f"{name}: {reason}"
        stderr.print(f"left out: {line}", soft_wrap=True)
    if len(report.new) > MOST_NAMED:
        stderr.print(f"left out: {len(report.new) - MOST_NAMED} more; --json names them all")


def update_index(folder: PictureFolder, wait: bool) -> Any:
    """The report of an update; ValueError or UsageError where there is nothing to search.

    wait: for another process that writes; else BeingWritten is raised.
    """
    try:
        report = folder.update(wait)
    except KeyboardInterrupt:
        raise ValueError("interrupted; what is indexed stays, the same command continues") from None
    _warn_broken(folder.pictures, report)
    if not report.pictures:
        if report.broken:
            raise ValueError(f"none of the {len(report.broken)} pictures could be read")
        from jaxclip.images.open import SUFFIXES

        raise UsageError(f"{folder.pictures} holds no picture ({', '.join(SUFFIXES)})")
    return report


@contextlib.contextmanager
def open_index(folder: PictureFolder, update: bool) -> Iterator[Any]:
    """The index of a folder, brought up to date where that can be done now."""
    from jaxclip.search import index
    from jaxclip.search.query import reading

    updated = False  # which checks the blocks, too
    if update:
        try:
            update_index(folder, wait=not index.exists(folder.where))
            updated = True
        except (index.BeingWritten, index.NotWritable) as error:
            if not index.exists(folder.where):
                raise
            stderr.print(f"{error}; searching what is indexed already", soft_wrap=True)
    with reading(folder.where, folder.key) as snapshot:
        if not updated:
            snapshot.require_sound()
        yield snapshot
