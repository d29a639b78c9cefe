"""Icons by many artists: the zip that `experiments/recipes/make_icons.py` packs, read into memory.

    index.json        column by column: set, caption, kind and usefulness of each picture
    colour/0000.webp  a sheet of 16 x 16 drawings, RGBA
    black/0000.webp   a sheet of drawings in black, grey levels: their opacity

The emoji's own artists are left out: their pictures, with what is held out of them, are embedded.
"""

import dataclasses
import functools
import json
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxclip.data.emoji.pictures import EmojiPictures, load_emoji
from jaxclip.images.open import decode_image

HELD_OUT = ("game-icons", "iconmind")  # artists who are never trained on
ICON_SHARES = (0.4, 0.4, 0.2)  # of the icons of a batch: `Icons`, in its order
COMMON = 2  # usefulness below which the caption of a black drawing is made of common words
# Letters, numbers and directions: mirrored, such a picture no longer shows its caption.
SIDED = re.compile(
    r"\d|\b(left|right|clock|arrows?|letters?|flag|text|numbers?|numeric|digit|alphabet|keycap|"
    r"button|sign|symbol|currency|dollar|euro|format|align|indent|forward|back|backward|next|"
    r"previous|undo|redo|reply|login|logout|log|sign|import|export|enter|exit|east|west|turn|"
    r"playlist|percent|question|music|note|exposure|[a-z])\b"
)
COLUMNS = ("set", "caption", "kind", "usefulness")


class Icons(NamedTuple):
    """What an artist drew in colour, and in black: uint8 [n, h, w, 4] and [n, h, w, 1], opacity.

    common: what is black and named by common words; rare: what else is black.
    """

    colour: EmojiPictures
    common: EmojiPictures
    rare: EmojiPictures


def is_icons(path: Path) -> bool:
    """Whether a file is a zip of icons."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        return "index.json" in archive.namelist()


def load_icons(path: Path) -> Icons:
    """The icons to train on, without those of the artists in HELD_OUT.

    Raises:
      ValueError: the file is no zip of icons.
    """
    with _Reader(path) as reader:
        free = reader.free()
        black, is_common = reader.kind == 1, reader.usefulness < COMMON
        return Icons(
            reader.read(free & ~black),
            reader.read(free & black & is_common),
            reader.read(free & black & ~is_common),
        )


@functools.cache
def caption_names(path: Path) -> frozenset[str]:
    """The captions of the icons to train on."""
    with _Reader(path) as reader:
        return frozenset(reader.captions[c] for c in np.unique(reader.caption[reader.free()]))


def load_held_out(path: Path, artist: str, names: Collection[str]) -> EmojiPictures:
    """The icons of one artist whose caption is among `names`, in RGBA.

    Raises:
      ValueError: the file is no zip of icons, or has none of them.
    """
    with _Reader(path) as reader:
        wanted = np.array([prefix == artist for prefix in reader.prefixes])[reader.set]
        known = set(names)
        wanted &= np.array([caption in known for caption in reader.captions])[reader.caption]
        if not wanted.any():
            raise ValueError(f"{str(path)!r}: expected icons of {artist!r}, got none")
        pictures = reader.read(wanted)
    return dataclasses.replace(pictures, images=as_rgba(pictures.images))


def as_rgba(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 4] as it is; [n, h, w, 1], opacity alone, in black -> [n, h, w, 4]."""
    if images.shape[-1] == 4:
        return images
    return np.concatenate([np.zeros((*images.shape[:3], 3), np.uint8), images], axis=-1)


class _Reader:
    """An open zip of icons, its index in columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
            index = json.loads(self.archive.read("index.json"))
            self.captions: list[str] = index["captions"]
            self.prefixes: list[str] = [found["prefix"] for found in index["sets"]]
            self.keywords: dict[str, list[str]] = index["keywords"]
            self.sheets: dict[str, tuple[int, int]] = index["sheets"]
            self.size, self.per_side = int(index["size"]), int(index["per_side"])
            columns = (np.array(index[name], np.int64) for name in COLUMNS)
            self.set, self.caption, self.kind, self.usefulness = columns
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise self._error(error) from None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def _error(self, what: object) -> ValueError:
        return ValueError(
            f"{str(self.path)!r}: expected a zip of icons, as experiments/recipes/make_icons.py "
            f"makes it, got something else ({what})"
        )

    def free(self) -> np.ndarray:
        """Whether each picture may be trained on, bool [n]."""
        own = {file.split("/")[0] for file in load_emoji("train").files}
        left_out = own | set(HELD_OUT)
        return np.array([prefix not in left_out for prefix in self.prefixes])[self.set]

    def read(self, wanted: np.ndarray) -> EmojiPictures:
        """The `wanted` (bool [n]) pictures, of one kind -> uint8 [m, h, w, channels]."""
        chosen = np.flatnonzero(wanted)
        place = np.full(len(wanted), -1)
        place[chosen] = np.arange(len(chosen))
        channels = 1 if len(chosen) and self.kind[chosen[0]] == 1 else 4
        images = np.zeros((len(chosen), self.size, self.size, channels), np.uint8)
        for name, (first, last) in self.sheets.items():
            here = place[first:last]
            if (here >= 0).any():
                images[here[here >= 0]] = self._sheet(name, channels)[: last - first][here >= 0]
        names = [self.captions[c] for c in self.caption[chosen]]
        sets = [self.prefixes[s] for s in self.set[chosen]]
        return EmojiPictures(
            images,
            tuple(names),
            tuple(tuple(self.keywords.get(name, ())) for name in names),
            tuple(f"{prefix}/{name}" for prefix, name in zip(sets, names, strict=True)),
        )

    def _sheet(self, name: str, channels: int) -> np.ndarray:
        """The drawings of a sheet, row by row [per_side^2, size, size, channels]."""
        try:
            picture = decode_image(self.archive.read(name))
            pixels = np.asarray(picture.convert("RGBA" if channels == 4 else "L"))
            side, many = self.size, self.per_side
            cut = pixels.reshape(many, side, many, side, channels).swapaxes(1, 2)
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise self._error(f"{name}: {error}") from None
        cut = cut.reshape(-1, side, side, channels)
        return cut * (cut[..., 3:] > 0) if channels == 4 else cut
