"""Pictures with a class each, wherever they lie: what is evaluated, and what a probe learns from.

A labelled source is a sequence: `source[i] -> Example`, from any thread, and `names`, what the
source calls its classes. `aligned` turns its labels into places in a list of classes. The same
pictures give the same examples from a class folder, a table, tar shards and tensorflow-datasets.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jaxclip.data.pairs import BAD_ROW, class_pictures, drawings, none_left, telling
from jaxclip.data.records import Fault, parse_label, parse_path, read_picture
from jaxclip.data.shards import Extent, Read, Shards, picture_of
from jaxclip.data.spec import Place
from jaxclip.data.tables import table_rows
from jaxclip.files import decode_text, parse_json, read_text, split_lines

NO_LABEL = -1
NAMES_FILE = "classnames.txt"  # beside a table or shards, or one folder up: a class a line
NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Example:
    """An encoded picture, its label, and where it came from, for messages.

    The label is a place in the source's names, or a bare number where it has none. One outside of
    them (also NO_LABEL) means that the picture cannot count; `fault` says why, where that is known.
    """

    image: bytes
    label: int
    where: str
    fault: Fault | None = dataclasses.field(default=None, compare=False)


class Labelled(Protocol):
    """A sequence of examples. `names` is empty where the labels are bare numbers.

    One that took its names from its own labels or folders has `sorted_names`, True: they have no
    order but the alphabet's, so that numbers elsewhere do not mean places in them.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


class Files:
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


def class_folders(root: Path) -> Files:
    """Pictures in folders that are named as what they show; an empty folder is a class too."""
    pictures, names = class_pictures(root)
    if not pictures:
        raise ValueError(f"{root}: no pictures in class folders, such as cat/1.jpg")
    place = {name: i for i, name in enumerate(names)}
    found = Files([(file, place[name]) for file, name in pictures], names)
    found.sorted_names = True
    return found


def label_table(path: Path, image: str = "image", label: str = "label") -> Files:
    """A .csv (with a header), .tsv or .jsonl with a path and a class, by name or number, a line."""
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
        raise ValueError(none_left(path, "no pictures in it", bad))
    beside = _names_beside(path)
    labels, names = _numbered(values, beside)
    found = Files(list(zip(files, labels, strict=True)), names, bad)
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
        with self.shards.opened(i) as (members, read, _):
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
        with self.shards.opened(i) as (members, read, where):
            try:
                return Example(read(picture_of(members)), label, where)
            except ValueError as error:
                return Example(b"", label, where, Fault("broken picture", str(error)))


def _class_in(members: Mapping[str, Extent], read: Read) -> str | int | None:
    """What a shard says about an example's class; None if nothing, ValueError for no class."""
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
    place = {name: i for i, name in enumerate(names)}
    return [place.get(word, NO_LABEL) if word is not None else NO_LABEL for word in words], names


class TensorflowDataset:
    """A prepared data set of tensorflow-datasets with a class label, read without TensorFlow."""

    def __init__(
        self, name: str, split: str, data_dir: Path | None, image: str, label: str
    ) -> None:
        import tensorflow_datasets as tfds  # the extra `tfds`

        builder = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
        if image not in features or label not in features:
            there = ", ".join(features)
            raise ValueError(f"{name} has the features {there}; {image!r}, {label!r} were expected")
        names = getattr(features[label], "names", None)
        if names is None:
            raise ValueError(f"{name}: the feature {label!r} is no class label")
        decoders = {image: tfds.decode.SkipDecoding()}
        self.rows = builder.as_data_source(split=split, decoders=decoders)
        self.names, self.image, self.label = tuple(names), image, label
        self.origin = f"{name}, {split}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Example:
        row = self.rows[i]
        return Example(bytes(row[self.image]), int(row[self.label]), f"{self.origin}, row {i}")


class NamedDrawings:
    """The embedded pictures of a split; every name is a class."""

    def __init__(self, split: str) -> None:
        self.pairs = drawings(split)
        self.names = tuple(sorted(set(self.pairs.pictures.names)))
        self.place = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Example:
        pair = self.pairs[i]
        return Example(pair.image, self.place[pair.captions[0]], pair.where)


def labelled(
    found: Place, data_dir: Path | None = None, *, image: str = "image", label: str = "label"
) -> Labelled:
    """The examples of a place.

    Args:
      found: what `place` made of --data.
      data_dir: where data sets of tensorflow-datasets were prepared.
      image, label: the features of a tensorflow-datasets set, or the columns of a table.

    Raises:
      ValueError: there are no pictures with classes, or it is not what it was said to be.
    """
    if found.kind == "tfds":
        with telling(found):
            return TensorflowDataset(found.name, found.split, data_dir, image, label)
    if found.kind == "emoji":
        return NamedDrawings(found.split)
    if found.kind == "tar":
        return LabelShards(found.paths)
    if found.kind == "table":
        return label_table(found.paths[0], image, label)
    if found.kind == "classes":
        return class_folders(found.paths[0])
    raise ValueError(
        f"{found.paths[0]} holds pictures without classes; expected a folder for each class, a "
        "table with the columns image and label, tar shards with .cls, or tfds:NAME:SPLIT"
    )


# Labels as places in a list of classes -----------------------------------------------------------


class Aligned:
    """A labelled source whose labels are places in `names`, a list of classes from elsewhere."""

    def __init__(self, source: Labelled, names: Sequence[str], to: Mapping[int, int]) -> None:
        self.source, self.names, self.to = source, tuple(names), to

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        example = self.source[i]
        return dataclasses.replace(example, label=self.to.get(example.label, NO_LABEL))


def _key(name: str) -> str:
    """The name without what folders write otherwise: case, "_", "-" and "/"."""
    return " ".join(re.sub(r"[_/-]", " ", name.lower()).split())


def aligned(source: Labelled, classes: Sequence[str] = (), folders: Sequence[str] = ()) -> Aligned:
    """The source with its labels as places in a list of classes.

    The source's names are looked for among `classes` (case, "_", "-", "/" aside), then among
    `folders`, other names of the same classes such as wordnet ids, and then taken as numbers, as
    ImageNet-V2 numbers its folders. Whichever way is taken fits all of them. Classes that the
    source lacks stay without pictures.

    Args:
      source: with names, or with bare numbers: names where `classes` has all of them ("1", "2",
        "3"), else places in `classes`.
      classes: in the order that is wanted; the source's own names if none are given.
      folders: one for each of `classes`, or none.

    Raises:
      ValueError: the names do not fit the classes; the message has some that do not.
    """
    if not classes:
        if not source.names:
            raise ValueError(
                f"the labels are numbers and nothing names them; put {NAMES_FILE}, a class a line, "
                "beside the data, or name a --dataset"
            )
        return Aligned(source, _readable(source.names), _in_order(source.names))
    if not source.names:
        return Aligned(source, classes, _places_of_numbers(source, classes))
    for candidates, key in ((classes, _key), (folders, str)):
        counts = Counter(key(name) for name in candidates)
        place = {key(name): i for i, name in enumerate(candidates) if counts[key(name)] == 1}
        if all(key(name) in place for name in source.names):
            to = {i: place[key(name)] for i, name in enumerate(source.names)}
            return Aligned(source, classes, to)
    if all(NUMBER.fullmatch(x) and 0 <= int(x) < len(classes) for x in source.names):
        return Aligned(source, classes, {i: int(name) for i, name in enumerate(source.names)})
    raise ValueError(_mismatch(source.names, classes))


def _in_order(names: Sequence[str]) -> dict[int, int]:
    return {i: i for i in range(len(names))}


def _places_of_numbers(source: Labelled, classes: Sequence[str]) -> dict[int, int]:
    """{label: place in classes} of a source whose labels are bare numbers."""
    numbers = [int(name) if NUMBER.fullmatch(name) else NO_LABEL for name in classes]
    counts = Counter(numbers)
    named = {x: i for i, x in enumerate(numbers) if x >= 0 and counts[x] == 1}
    labels = set(getattr(source, "labels", ())) - {NO_LABEL}
    return named if labels and labels <= named.keys() else _in_order(classes)


def _readable(names: Sequence[str]) -> list[str]:
    """The names as words; ValueError where two are one text: the first would always win."""
    words = [name.replace("_", " ") for name in names]
    first: dict[str, str] = {}
    for name, text in zip(names, words, strict=True):
        other = first.setdefault(" ".join(text.lower().split()), name)
        if other != name:
            raise ValueError(
                f"expected classes of different texts, got {other!r} and {name!r}; rename one"
            )
    return words


def _mismatch(names: Sequence[str], classes: Sequence[str]) -> str:
    there = {_key(name) for name in classes}
    strange = [name for name in names if _key(name) not in there]
    told = ", ".join(map(repr, strange[:5])) or "a name that stands twice"
    return (
        f"{len(strange)} of the data's {len(names)} classes are not among the {len(classes)} that "
        f"were asked for: {told}; expected names such as {classes[0]!r}; is it the right --dataset?"
    )
