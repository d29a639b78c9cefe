"""Where pictures and words come from: today the embedded emoji, read straight from one zip file."""

import dataclasses
import functools
import json
import zipfile
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from jaxclip.files import split_lines
from jaxclip.images.open import decode_image


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Named pictures of one size, in memory.

    images: uint8 [n, h, w, 4], red, green, blue and opacity; what is transparent is black.
    names: n names, each what the picture shows; several pictures may share one.
    keywords: n tuples of further words.
    files: n paths inside the source, the artist's name first.
    """

    images: np.ndarray
    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]

    def select(self, chosen: np.ndarray) -> "Pictures":
        """The pictures at the indices `chosen` [m], in that order."""
        return Pictures(
            self.images[chosen],
            tuple(self.names[i] for i in chosen),
            tuple(self.keywords[i] for i in chosen),
            tuple(self.files[i] for i in chosen),
        )


def _decode(content: bytes) -> np.ndarray:
    """Opacity is kept and what is transparent is black, unlike `pictures.to_rgb`."""
    picture = np.asarray(decode_image(content).convert("RGBA"))
    return picture * (picture[..., 3:] > 0)


def _open() -> Any:
    return (files("jaxclip") / "data_files" / "emoji.zip").open("rb")


def _records(archive: zipfile.ZipFile, split: str) -> list[dict[str, Any]]:
    lines = split_lines(archive.read("pictures.jsonl").decode())
    records = [r for r in map(json.loads, lines) if r["split"] == split]
    if not records:
        raise ValueError(f"split {split!r} came; train, validation or test was expected")
    return records


@functools.cache
def emoji(split: str) -> Pictures:
    """The embedded pictures of one split: "train", "validation" (the same artists) or "test".

    The test pictures are by an artist whom neither of the others contains (NOTICE has all names).
    """
    with _open() as file, zipfile.ZipFile(file) as archive:
        records = _records(archive, split)
        images = np.stack([_decode(archive.read(record["file"])) for record in records])
    return Pictures(
        images,
        tuple(record["name"] for record in records),
        tuple(tuple(record["keywords"]) for record in records),
        tuple(record["file"] for record in records),
    )


def known(pictures: Pictures, names: Sequence[str]) -> Pictures:
    """The pictures whose name is among `names`."""
    there = set(names)
    return pictures.select(np.array([i for i, n in enumerate(pictures.names) if n in there]))


def unseen_artist() -> Pictures:
    """The test pictures whose name some training or validation picture has."""
    with _open() as file, zipfile.ZipFile(file) as archive:
        there = [r["name"] for part in ("train", "validation") for r in _records(archive, part)]
    return known(emoji("test"), there)
