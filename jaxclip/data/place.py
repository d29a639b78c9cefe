"""What `--data` says: one text that names a data set, wherever it lies and however it is kept.

    tfds:oxford_iiit_pet:test      a prepared data set of tensorflow-datasets, and its split
    pictures/                      a folder: class folders, pictures with captions, or tar shards
    pairs.csv (.tsv, .jsonl)       a table of paths and captions
    shards/*.tar                   tar shards; also one .tar file
    emoji:test                     the embedded pictures of a split, in memory

`classes:`, `captions:`, `table:` or `tar:` in front of a path says what it is, where a look is not
enough.
"""

import dataclasses
from pathlib import Path

TABLES = (".csv", ".tsv", ".jsonl")
PREFIXES = ("classes", "captions", "table", "tar")
EXPECTED = "expected tfds:NAME:SPLIT, a folder, a table (.csv, .tsv, .jsonl) or tar shards"


@dataclasses.dataclass(frozen=True)
class Place:
    """A data set by kind: "tfds", "emoji", "classes", "captions", "table" or "tar".

    paths: the folder or table (one), or the tar files; none for "tfds" and "emoji".
    name, split: for "tfds"; split: for "emoji".
    """

    kind: str
    paths: tuple[Path, ...] = ()
    name: str = ""
    split: str = ""


def place(text: str) -> Place:
    """Where that data set is; ValueError when nothing is there.

    >>> place("tfds:oxford_iiit_pet:test")
    Place(kind='tfds', paths=(), name='oxford_iiit_pet', split='test')
    """
    prefix, _, rest = text.partition(":")
    if prefix == "tfds":
        # a version or a slice may hold colons: "tfds:mnist:3.0.1:test[:100]"
        bare, bracket, slice_ = rest.partition("[")
        name, _, split = bare.rpartition(":")
        if not (name and split):
            raise ValueError(f"data {text!r} came; tfds:NAME:SPLIT was expected")
        return Place("tfds", name=name, split=split + bracket + slice_)
    if prefix == "emoji" and rest:
        return Place("emoji", split=rest)
    if prefix in PREFIXES:
        return _forced(prefix, rest, text)
    return _looked_at(text)


def _forced(kind: str, where: str, text: str) -> Place:
    if kind == "tar":
        return Place("tar", _shards(where, text))
    path = Path(where)
    there = path.is_file() if kind == "table" else path.is_dir()
    if not there:
        what = "table" if kind == "table" else "folder"
        raise ValueError(f"data {text!r} came, and no {what} is there; {EXPECTED}")
    return Place(kind, (path,))


def _looked_at(text: str) -> Place:
    path = Path(text)
    if path.suffix in TABLES and path.is_file():
        return Place("table", (path,))
    if path.suffix == ".tar":
        return Place("tar", _shards(text, text))
    if not path.is_dir():
        raise ValueError(f"data {text!r} came, and nothing is there; {EXPECTED}")
    if any(path.glob("*.tar")):
        return Place("tar", _shards(text, text))
    folders = any(child.is_dir() for child in path.iterdir())
    captions = next(path.rglob("*.txt"), None) is not None
    return Place("classes" if folders and not captions else "captions", (path,))


def _shards(where: str, text: str) -> tuple[Path, ...]:
    """The tar files that a file, a folder or a pattern in the last part of a path stands for."""
    path = Path(where)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not found:
        raise ValueError(f"data {text!r} came, and no tar file is there; {EXPECTED}")
    return tuple(found)
