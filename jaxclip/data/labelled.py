"""Sources of pictures with one class each, for evaluation and linear probes.

A labelled source is a sequence: `source[i] -> Example`, from any thread, and `names`, what the
source calls its classes. `data.classes` turns its labels into indices of a list of classes. The
same pictures give the same examples from class folders, a table, tar shards and tfds.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jaxclip.data.pairs import (
    BAD_ROW,
    describe_empty,
    find_class_pictures,
    open_drawings,
    tfds_errors_as_value_errors,
)
from jaxclip.data.records import Fault, parse_label, parse_path, read_picture
from jaxclip.data.shards import Extent, Read, Shards, picture_of
from jaxclip.data.spec import DataSpec
from jaxclip.data.tables import table_rows
from jaxclip.files import decode_text, parse_json, read_text, split_lines

NO_LABEL = -1
NAMES_FILE = "classnames.txt"  # beside a table or shards, or one folder up: a class a line
NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Example:
    """An encoded picture, its label, and where it was read from, for messages.

    The label is an index of the source's names, or a bare number where it has none. One outside of
    them (also NO_LABEL) means that the picture cannot count; `fault` says why, where that is known.
    """

    image: bytes
    label: int
    where: str
    fault: Fault | None = dataclasses.field(default=None, compare=False)


class Labelled(Protocol):
    """A sequence of examples. `names` is empty where the labels are bare numbers.

    One that took its names from its own labels or folders has `sorted_names`, True: their order is
    the alphabet's, so numbers in other data are no indices of them.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


class LabelledFiles:
    """Pictures that are files of their own; `bad` are records that are counted and left out."""

    def __init__(
        self,
        entries: Sequence[tuple[Path, int]],
        names: tuple[str, ...],
        bad: Sequence[tuple[str, Fault]] = (),
    ) -> None:
        self.entries, self.names, self.bad = entries, names, bad
        self.labels = [label for _, label in entries]
        self.sorted_names = False

    def __len__(self) -> int:
        return len(self.entries) + len(self.bad)

    def __getitem__(self, i: int) -> Example:
        if i >= len(self.entries):
            where, fault = self.bad[i - len(self.entries)]
            return Example(b"", NO_LABEL, where, fault)
        path, label = self.entries[i]
        content, fault_of_picture = read_picture(path)
        return Example(content, label, str(path), fault_of_picture)


def read_class_folders(root: Path) -> LabelledFiles:
    """Pictures in class folders, such as cat/1.jpg; an empty folder is a class too."""
    pictures, names = find_class_pictures(root)
    if not pictures:
        raise ValueError(f"{root}: no pictures in class folders, such as cat/1.jpg")
    index = {name: i for i, name in enumerate(names)}
    found = LabelledFiles([(file, index[name]) for file, name in pictures], names)
    found.sorted_names = True
    return found


def read_label_table(path: Path, image: str = "image", label: str = "label") -> LabelledFiles:
    """Pictures of a .csv (with a header), .tsv or .jsonl: a path and a class a line."""
    files: list[Path] = []
    values: list[str | int | None] = []
    bad: list[tuple[str, Fault]] = []
    for number, row in table_rows(path, (image, label)):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            file, value = path.parent / parse_path(row[image]), parse_label(row[label])
        except ValueError as error:
            bad.append((f"{path}, line {number}", Fault(BAD_ROW, str(error))))
            continue
        files.append(file)
        values.append(value)
    if not files:
        raise ValueError(describe_empty(path, "no pictures in it", bad))
    beside = _names_beside(path)
    labels, names = _numbered(values, beside)
    found = LabelledFiles(list(zip(files, labels, strict=True)), names, bad)
    found.sorted_names = bool(names and not beside)
    return found


class LabelShards:
    """Tar shards in webdataset's layout: the class is in `.cls`, in `.json` or in `.txt`.

    `.cls` holds a number or a name, `.json` the field `cls` or `label`, `.txt` a name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shards = Shards(paths)
        found = [self._read_class(i) for i in range(len(self.shards))]
        self.faults = [fault for _, fault in found]
        beside = _names_beside(paths[0])
        self.labels, self.names = _numbered([value for value, _ in found], beside)
        self.sorted_names = bool(self.names and not beside)

    def _read_class(self, i: int) -> tuple[str | int | None, Fault | None]:
        fault = self.shards.entry(i).fault
        if fault is not None:
            return None, fault
        with self.shards.open_example(i) as (members, read, _):
            try:
                return _class_in(members, read), None
            except ValueError as error:
                return None, Fault("bad class", str(error))

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> Example:
        label, fault = self.labels[i], self.faults[i]
        if fault is not None:
            return Example(b"", label, self.shards.entry(i).where, fault)
        with self.shards.open_example(i) as (members, read, where):
            try:
                return Example(read(picture_of(members)), label, where)
            except ValueError as error:
                return Example(b"", label, where, Fault("broken picture", str(error)))


def _class_in(members: Mapping[str, Extent], read: Read) -> str | int | None:
    """The class of an example in a shard; None if there is none, ValueError if it is no class."""
    if "cls" in members:
        return parse_label(decode_text(read("cls"), ".cls"))
    if "json" in members:
        record = parse_json(decode_text(read("json"), ".json"))
        if isinstance(record, dict) and ("cls" in record or "label" in record):
            return parse_label(record.get("cls", record.get("label")))
    if "txt" in members:
        return parse_label(decode_text(read("txt"), ".txt"))
    return None


def _names_beside(path: Path) -> tuple[str, ...]:
    for folder in (path.parent, path.parent.parent):
        file = folder / NAMES_FILE
        if file.exists():
            lines = [line.strip() for line in split_lines(read_text(file).rstrip())]
            if "" in lines:  # without it the classes below would have other numbers
                where = f"{file}, line {lines.index('') + 1}"
                raise ValueError(f"{where}: expected a class, got an empty line; remove it")
            return tuple(lines)
    return ()


def _numbered(
    values: Sequence[str | int | None], names: tuple[str, ...]
) -> tuple[list[int], tuple[str, ...]]:
    """(labels, names) of classes given as names or, if all are, numbers; None becomes NO_LABEL.

    Names go before numbers: where `names` has all of "1", "2", "3", these are names.
    """
    words = [None if value is None else str(value) for value in values]
    known = {word for word in words if word is not None}
    if not (names and known <= set(names)) and all(map(NUMBER.fullmatch, known)):
        return [NO_LABEL if word is None else int(word) for word in words], names
    names = names or tuple(sorted(known))
    counts = Counter(names)
    twice = sorted(name for name in known if counts[name] > 1)
    if twice:
        raise ValueError(
            f"{NAMES_FILE}: expected each class that the data name once, got {twice[0]!r} "
            f"{counts[twice[0]]} times; number the classes in the data instead"
        )
    index = {name: i for i, name in enumerate(names)}
    return [index.get(word, NO_LABEL) if word is not None else NO_LABEL for word in words], names


class TfdsExamples:
    """Examples of a prepared dataset of tensorflow-datasets, read without TensorFlow."""

    def __init__(
        self, name: str, split: str, data_dir: Path | None, image: str, label: str
    ) -> None:
        import tensorflow_datasets as tfds  # the extra `tfds`

        builder = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
        if image not in features or label not in features:
            there = ", ".join(features)
            raise ValueError(f"{name}: expected the features {image!r}, {label!r}, got {there}")
        names = getattr(features[label], "names", None)
        if names is None:
            raise ValueError(f"{name}: expected a class label, got the feature {label!r}")
        decoders = {image: tfds.decode.SkipDecoding()}
        self.rows = builder.as_data_source(split=split, decoders=decoders)
        self.names, self.image, self.label = tuple(names), image, label
        self.origin = f"{name}, {split}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        row = self.rows[i]
        return Example(bytes(row[self.image]), int(row[self.label]), f"{self.origin}, row {i}")


class LabelledDrawings:
    """The embedded pictures of a split; every name is a class."""

    def __init__(self, split: str) -> None:
        self.pairs = open_drawings(split)
        self.names = tuple(sorted(set(self.pairs.pictures.names)))
        self.index = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Example:
        pair = self.pairs[i]
        return Example(pair.image, self.index[pair.captions[0]], pair.where)


def open_labelled(
    spec: DataSpec, data_dir: Path | None = None, *, image: str = "image", label: str = "label"
) -> Labelled:
    """The examples of a dataset.

    Args:
      spec: as `parse_spec` returns it.
      data_dir: where datasets of tensorflow-datasets were prepared.
      image, label: the features of a tfds dataset, or the columns of a table.

    Raises:
      ValueError: it holds no pictures with classes, or is of another kind than its spec says.
    """
    if spec.kind == "tfds":
        with tfds_errors_as_value_errors(spec):
            return TfdsExamples(spec.name, spec.split, data_dir, image, label)
    if spec.kind == "emoji":
        return LabelledDrawings(spec.split)
    if spec.kind == "tar":
        return LabelShards(spec.paths)
    if spec.kind == "table":
        return read_label_table(spec.paths[0], image, label)
    if spec.kind == "classes":
        return read_class_folders(spec.paths[0])
    raise ValueError(
        f"{spec.paths[0]} holds pictures without classes; expected a folder for each class, a "
        "table with the columns image and label, tar shards with .cls, or tfds:NAME:SPLIT"
    )
