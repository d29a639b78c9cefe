"""The embedded emoji: pictures with names and keywords, read from one zip file."""

import dataclasses
import functools
import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from jaxclip.files import split_lines
from jaxclip.images.open import decode_image


@dataclasses.dataclass(frozen=True)
class EmojiPictures:
    """Named pictures of one size, in memory.

    images: uint8 [n, h, w, 4], red, green, blue and opacity; what is transparent is black.
    names: n names, each of what its picture shows; several pictures may share one.
    keywords: n tuples of further words.
    files: n paths inside the source, the artist's name first.
    """

    images: np.ndarray
    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]

    def listing(self) -> Iterator[str]:
        """Files and names, in order."""
        return itertools.chain.from_iterable(zip(self.files, self.names, strict=True))

    def select(self, chosen: np.ndarray) -> "EmojiPictures":
        """The pictures at the indices `chosen` [m], in that order."""
        return EmojiPictures(
            self.images[chosen],
            tuple(self.names[i] for i in chosen),
            tuple(self.keywords[i] for i in chosen),
            tuple(self.files[i] for i in chosen),
        )


def _decode(content: bytes) -> np.ndarray:
    """RGBA, black where transparent; `images.open.to_rgb` would put it on white."""
    picture = np.asarray(decode_image(content).convert("RGBA"))
    return picture * (picture[..., 3:] > 0)


def _open() -> Any:
    return (files("jaxclip") / "data_files" / "emoji.zip").open("rb")


def _records(archive: zipfile.ZipFile, split: str) -> list[dict[str, Any]]:
    lines = split_lines(archive.read("pictures.jsonl").decode())
    records = [r for r in map(json.loads, lines) if r["split"] == split]
    if not records:
        raise ValueError(f"split: expected train, validation or test, got {split!r}")
    return records


@functools.cache
def load_emoji(split: str) -> EmojiPictures:
    """The embedded pictures of one split: "train", "validation" (the same artists) or "test".

    The test pictures are by an artist whom neither of the others contains (NOTICE has all names).
    """
    with _open() as file, zipfile.ZipFile(file) as archive:
        records = _records(archive, split)
        images = np.stack([_decode(archive.read(record["file"])) for record in records])
    return EmojiPictures(
        images,
        tuple(record["name"] for record in records),
        tuple(tuple(record["keywords"]) for record in records),
        tuple(record["file"] for record in records),
    )


def select_names(pictures: EmojiPictures, names: Sequence[str]) -> EmojiPictures:
    """The pictures whose name is among `names`."""
    wanted = set(names)
    return pictures.select(np.flatnonzero([name in wanted for name in pictures.names]))


def load_unseen_artist() -> EmojiPictures:
    """The test pictures whose name is the name of a training or validation picture, too."""
    with _open() as file, zipfile.ZipFile(file) as archive:
        splits = ("train", "validation")
        names = [record["name"] for split in splits for record in _records(archive, split)]
    return select_names(load_emoji("test"), names)
