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
import logging
import stat
from collections import Counter
from pathlib import Path

from jaxclip.data.folders import find_pictures, is_hidden
from jaxclip.data.tables import TABLES
from jaxclip.files import KINDS

logger = logging.getLogger(__name__)
PREFIXES = ("classes", "captions", "table", "tar")
BESIDE_SHARDS = (".json", ".parquet", ".idx", ".txt", ".md")
COMPRESSED = {".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"}
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
    _refuse_special(path)
    there = path.is_file() if kind == "table" else path.is_dir()
    if not there:
        what = "table" if kind == "table" else "folder"
        raise ValueError(f"data {text!r} came, and no {what} is there; {EXPECTED}")
    return Place(kind, (path,))


def _looked_at(text: str) -> Place:
    path = Path(text)
    _refuse_special(path)
    if path.suffix.lower() in TABLES and path.is_file():
        return Place("table", (path,))
    if _is_tar(path):
        return Place("tar", _shards(text, text))
    if path.is_file():
        unpack = "; unpack it" if path.suffix.lower() in COMPRESSED else ""
        raise ValueError(f"{text!r}: {EXPECTED}, got another file{unpack}")
    if not path.is_dir():
        raise ValueError(f"data {text!r} came, and nothing is there; {EXPECTED}")
    if any(_is_tar(child) and child.is_file() for child in path.iterdir()):
        return Place("tar", _shards(text, text))
    return Place(_kind_of_folder(path), (path,))


def _kind_of_folder(root: Path) -> str:
    """The kind: captions where a picture has a text beside it, else classes if folders have any."""
    found = find_pictures(root)
    captioned = any(found.text_of(picture) for picture in found.pictures)
    captioned = captioned or (not found.pictures and bool(found.texts))
    in_folders = any(found.class_of(picture) for picture in found.pictures)
    bare = bool(found.pictures) and not in_folders  # beside empty folders
    return "classes" if found.folders and not captioned and not bare else "captions"


def _refuse_special(path: Path) -> None:
    """ValueError for a named pipe, a socket or a device: nothing is read from these."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # there is none, or the name holds a null byte
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{str(path)!r}: expected a regular file or a folder, got {kind}")


def _is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and not is_hidden(path.name)


def _shards(where: str, text: str) -> tuple[Path, ...]:
    """The tar files that a file, a folder or a pattern in the last part of a path stands for."""
    path = Path(where)
    _refuse_special(path)
    if path.is_file():
        return (path,)
    if path.is_dir():
        there = [child for child in path.iterdir() if not is_hidden(child.name)]
        found = sorted(child for child in there if _is_tar(child))
        _log_others(path, [child for child in there if not _is_tar(child)])
    else:
        found = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    regular = tuple(file for file in found if file.is_file())
    if not regular:
        raise ValueError(f"data {text!r} came, and no tar file is there; {EXPECTED}")
    for file in found:
        if not file.is_file():
            logger.warning("%s: left out: expected a tar file, got no regular file", file)
    return regular


def _log_others(folder: Path, others: list[Path]) -> None:
    """Count what lies beside the shards of a folder, which are all that is read of it."""
    kinds = Counter("folder" if x.is_dir() else x.suffix.lower() or "no ending" for x in others)
    for kind in BESIDE_SHARDS:  # what img2dataset writes there
        del kinds[kind]
    if kinds:
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(9))
        logger.warning("%s: left out beside its tar files: %s", folder, listed)
