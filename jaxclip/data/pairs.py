"""Where pictures with captions come from: tables, folders, tar shards, tensorflow-datasets, memory.

A source is a sequence: `len(source)`, `source[i] -> Pair`, from any thread. It reads names and
captions when it is made and a picture's bytes when it is asked for it; nothing is decoded here.
"""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from jaxclip.data.place import Place
from jaxclip.data.shards import SUFFIXES, Extent, Read, Shards, picture_of
from jaxclip.data.sources import Pictures, emoji, unseen_artist

TEMPLATE = "a photo of a {}."  # what a class's name is put into (section 3.1.4)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An encoded picture, all its captions, and where it came from, for messages."""

    image: bytes
    captions: tuple[str, ...]
    where: str


class Source(Protocol):
    """A sequence of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Pair: ...


class Files:
    """Pictures that are files of their own: what `folder`, `classes` and `table` make."""

    def __init__(self, entries: Iterable[tuple[Path, tuple[str, ...]]], origin: Path) -> None:
        self.entries = list(entries)
        if not self.entries:
            raise ValueError(f"{origin}: no pictures with captions in it")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Pair:
        path, captions = self.entries[i]
        # a file that is gone is a broken picture, to be counted like the others
        content = path.read_bytes() if path.is_file() else b""
        return Pair(content, captions, str(path))


def pictures_below(root: Path) -> list[Path]:
    """The picture files of a folder and of those in it, sorted."""
    if not root.is_dir():
        raise ValueError(f"{root}: a folder with pictures was expected")
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)


def folder(root: Path) -> Files:
    """Pictures with a text file beside each: x.jpg and x.txt, one caption a line."""

    def captions(picture: Path) -> tuple[str, ...]:
        text = picture.with_suffix(".txt")
        return tuple(text.read_text(encoding="utf-8").splitlines()) if text.is_file() else ()

    return Files(((file, captions(file)) for file in pictures_below(root)), root)


def classes(root: Path, templates: Sequence[str] = (TEMPLATE,)) -> Files:
    """Pictures in folders that are named as what they show: `tabby_cat/1.jpg`."""

    def captions(picture: Path) -> tuple[str, ...]:
        name = picture.relative_to(root).parts[0].replace("_", " ")
        return tuple(template.format(name) for template in templates)

    below = [file for file in pictures_below(root) if file.parent != root]
    return Files(((file, captions(file)) for file in below), root)


def table(path: Path, image: str = "image", caption: str = "caption") -> Files:
    """A .csv (with a header), .tsv or .jsonl: a caption a line, and a path from the table's folder.

    In JSON lines the caption may be a list of several. Lines of one picture are put together.
    """
    found: dict[Path, tuple[str, ...]] = {}
    for number, row in table_rows(path):
        if not isinstance(row.get(image), str) or row.get(caption) is None:
            raise ValueError(f"{path}, line {number}: expected the fields {image!r}, {caption!r}")
        value = row[caption]
        captions = tuple(value) if isinstance(value, list) else (value,)
        picture = path.parent / row[image]
        found[picture] = found.get(picture, ()) + captions
    return Files(found.items(), path)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row by column) of a .csv (with a header), .tsv or .jsonl."""
    return _json_lines(path) if path.suffix == ".jsonl" else _csv_rows(path)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for row in reader:
            yield reader.line_num, row


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object was expected")
            yield number, row


# Tar shards ---------------------------------------------------------------------------------------


class TarShards(Shards):
    """Tar shards whose captions are in `.txt`, or in the field `caption` of `.json`."""

    def __getitem__(self, i: int) -> Pair:
        with self.opened(i) as (members, read, where):
            return Pair(read(picture_of(members)), _captions(members, read), where)


def _captions(members: dict[str, Extent], read: Read) -> tuple[str, ...]:
    if "txt" in members:
        return tuple(read("txt").decode("utf-8", "replace").splitlines())
    if "json" in members:
        try:
            value = json.loads(read("json")).get("caption") or ""
        except (ValueError, AttributeError):
            return ()
        return tuple(value) if isinstance(value, list) else (str(value),)
    return ()


# tensorflow-datasets ------------------------------------------------------------------------------


class TensorflowDataset:
    """A prepared data set of tensorflow-datasets, read through `tfds.data_source`: no TensorFlow.

    Args:
      name: as `tfds.data_source` takes it.
      split: such as "train" or "train[:1000]".
      data_dir: where it was prepared, as array_record files.
      image: the feature with the picture.
      caption: the feature with a caption or several; a class label is turned into its name. Unless
        given, "caption" or "label", whichever there is.
      template: what a class's name is put into.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: Path | None = None,
        *,
        image: str = "image",
        caption: str | None = None,
        template: str = TEMPLATE,
    ) -> None:
        import tensorflow_datasets as tfds  # the extra `tfds`

        builder = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
        if caption is None:
            caption = "caption" if "caption" in features else "label"
        if image not in features or caption not in features:
            known = ", ".join(features)
            raise ValueError(f"{name} has the features {known}; {image!r}, {caption!r} expected")
        decoders = {image: tfds.decode.SkipDecoding()}
        self.rows = builder.as_data_source(split=split, decoders=decoders)
        self.names: list[str] | None = getattr(features[caption], "names", None)
        self.image, self.caption, self.template = image, caption, template
        self.origin = f"{name}, {split}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Pair:
        row = self.rows[i]
        value = row[self.caption]
        values: list[bytes | str]
        if self.names is not None:
            values = [self.template.format(self.names[int(value)].replace("_", " "))]
        else:
            values = [value] if isinstance(value, bytes | str) else list(value)
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
        return Pair(bytes(row[self.image]), tuple(texts), f"{self.origin}, row {i}")


# In memory ----------------------------------------------------------------------------------------


class Drawings:
    """Named pictures in memory; the caption of each is its name."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures.names)

    def __getitem__(self, i: int) -> Pair:
        file = io.BytesIO()
        Image.fromarray(self.pictures.images[i]).save(file, "png", compress_level=0)
        return Pair(file.getvalue(), (self.pictures.names[i],), self.pictures.files[i])


def drawings(split: str) -> Drawings:
    """The embedded pictures of a split; of "test" those that `jaxclip evaluate` asks about."""
    return Drawings(unseen_artist() if split == "test" else emoji(split))


# By place -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def telling(found: Place) -> Iterator[None]:
    """What tensorflow-datasets raises when a set cannot be opened, as one ValueError."""
    try:
        yield
    except ImportError:
        raise ValueError(f"{found.name} needs pip install 'jaxclip[tfds]'") from None
    except (RuntimeError, KeyError, AssertionError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise  # one of ours; theirs list all the sets there are
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"tfds:{found.name}:{found.split} cannot be read: {cause}; it has to be "
        raise ValueError(message + "prepared, as array_record files, in --data-dir") from None


def opened(found: Place, data_dir: Path | None = None) -> Source:
    """The pairs of a place; the names of classes are put into the template TEMPLATE.

    Raises:
      ValueError: it holds no pictures with captions, or is not what it was said to be.
    """
    if found.kind == "tfds":
        with telling(found):
            return TensorflowDataset(found.name, found.split, data_dir)
    if found.kind == "tar":
        return TarShards(found.paths)
    if found.kind == "emoji":
        return drawings(found.split)
    ways: dict[str, Callable[[Path], Source]] = {
        "classes": classes,
        "captions": folder,
        "table": table,
    }
    return ways[found.kind](found.paths[0])
