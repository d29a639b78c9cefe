"""Dataset specs: one text that names a dataset, whatever its format.

    tfds:oxford_iiit_pet:test      a prepared dataset of tensorflow-datasets, and its split
    pictures/                      a folder: class folders, pictures with captions, or tar shards
    pairs.csv (.tsv, .jsonl)       a table of paths and captions, or of paths and classes
    shards/*.tar                   tar shards; also one .tar file
    emoji:test                     the embedded pictures of a split, in memory

Prefix a path with `classes:`, `captions:`, `table:` or `tar:` where the format cannot be detected.
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
class DataSpec:
    """A dataset by kind: "tfds", "emoji", "classes", "captions", "table" or "tar".

    paths: the folder or table (one), or the tar files; none for "tfds" and "emoji".
    name, split: for "tfds"; split: for "emoji".
    """

    kind: str
    paths: tuple[Path, ...] = ()
    name: str = ""
    split: str = ""


def parse_spec(text: str) -> DataSpec:
    """The spec that a text stands for; ValueError when there is no such dataset.

    >>> parse_spec("tfds:oxford_iiit_pet:test")
    DataSpec(kind='tfds', paths=(), name='oxford_iiit_pet', split='test')
    """
    prefix, _, rest = text.partition(":")
    if prefix == "tfds":
        # a version or a slice may hold colons: "tfds:mnist:3.0.1:test[:100]"
        bare, bracket, slice_ = rest.partition("[")
        name, _, split = bare.rpartition(":")
        if not (name and split):
            raise ValueError(f"data: expected tfds:NAME:SPLIT, got {text!r}")
        return DataSpec("tfds", name=name, split=split + bracket + slice_)
    if prefix == "emoji" and rest:
        return DataSpec("emoji", split=rest)
    if prefix in PREFIXES:
        return _explicit(prefix, rest, text)
    return _detect(text)


def _explicit(kind: str, where: str, text: str) -> DataSpec:
    """The spec of a path whose prefix names its kind."""
    if kind == "tar":
        return DataSpec("tar", _shards(where, text))
    path = Path(where)
    _refuse_special(path)
    if not (path.is_file() if kind == "table" else path.is_dir()):
        what = "table" if kind == "table" else "folder"
        raise ValueError(f"data {text!r}: {EXPECTED}, got no {what} of that name")
    return DataSpec(kind, (path,))


def _detect(text: str) -> DataSpec:
    """The spec of a path without a prefix, by what the path holds."""
    path = Path(text)
    _refuse_special(path)
    if path.suffix.lower() in TABLES and path.is_file():
        return DataSpec("table", (path,))
    if _is_tar(path):
        return DataSpec("tar", _shards(text, text))
    if path.is_file():
        unpack = "; unpack it" if path.suffix.lower() in COMPRESSED else ""
        raise ValueError(f"{text!r}: {EXPECTED}, got another file{unpack}")
    if not path.is_dir():
        raise ValueError(f"data {text!r}: {EXPECTED}, got a path where nothing is there")
    if any(_is_tar(child) and child.is_file() for child in path.iterdir()):
        return DataSpec("tar", _shards(text, text))
    return DataSpec(_kind_of_folder(path), (path,))


def _kind_of_folder(root: Path) -> str:
    """The kind: "captions" where a picture has a text beside it, else "classes" if in folders."""
    found = find_pictures(root)
    captioned = any(found.text_of(picture) for picture in found.pictures)
    captioned = captioned or (not found.pictures and bool(found.texts))
    in_folders = any(found.class_of(picture) for picture in found.pictures)
    bare = bool(found.pictures) and not in_folders  # beside empty folders
    return "classes" if found.folders and not captioned and not bare else "captions"


def _refuse_special(path: Path) -> None:
    """ValueError for a named pipe, a socket or a device: none of them is read."""
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
    """The tar files of a file, a folder, or a pattern in the last part of a path."""
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
        raise ValueError(f"data {text!r}: {EXPECTED}, got a path without tar files")
    for file in found:
        if not file.is_file():
            logger.warning("%s: left out: expected a tar file, got no regular file", file)
    return regular


def _log_others(folder: Path, others: list[Path]) -> None:
    """Warn of the files beside the shards of a folder, which are not read."""
    kinds = Counter("folder" if x.is_dir() else x.suffix.lower() or "no ending" for x in others)
    for kind in BESIDE_SHARDS:  # what img2dataset writes there
        del kinds[kind]
    if kinds:
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(9))
        logger.warning("%s: left out beside its tar files: %s", folder, listed)
