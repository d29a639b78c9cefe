"""Labels as indices of a list of classes, whatever a source calls its classes."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from jaxclip.data.labelled import NAMES_FILE, NO_LABEL, NUMBER, Example, Labelled


class Relabelled:
    """A labelled source with its labels as indices of another list of classes, `names`."""

    def __init__(self, source: Labelled, names: Sequence[str], to: Mapping[int, int]) -> None:
        self.source, self.names, self.to = source, tuple(names), to

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        example = self.source[i]
        return dataclasses.replace(example, label=self.to.get(example.label, NO_LABEL))


def _key(name: str) -> str:
    """The name in lower case, with "_", "-" and "/" as spaces."""
    return " ".join(re.sub(r"[_/-]", " ", name.lower()).split())


def align_labels(
    source: Labelled, classes: Sequence[str] = (), folders: Sequence[str] = ()
) -> Relabelled:
    """The source with its labels as indices of a list of classes.

    The source's names are matched with `classes` (case, "_", "-", "/" aside), then with `folders`,
    other names of the same classes such as wordnet ids, and then read as numbers, as ImageNet-V2
    numbers its folders. The first way that fits all of them is used. Classes that the source lacks
    stay without pictures.

    Args:
      source: with names, or with bare numbers: names where `classes` has all of them ("1", "2",
        "3"), else indices of `classes`.
      classes: in the wanted order; the source's own names by default.
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
        return Relabelled(source, _readable(source.names), _in_order(source.names))
    if not source.names:
        return Relabelled(source, classes, _indices_of_numbers(source, classes))
    for candidates, key in ((classes, _key), (folders, str)):
        counts = Counter(key(name) for name in candidates)
        index = {key(name): i for i, name in enumerate(candidates) if counts[key(name)] == 1}
        if all(key(name) in index for name in source.names):
            to = {i: index[key(name)] for i, name in enumerate(source.names)}
            return Relabelled(source, classes, to)
    if all(NUMBER.fullmatch(x) and 0 <= int(x) < len(classes) for x in source.names):
        return Relabelled(source, classes, {i: int(name) for i, name in enumerate(source.names)})
    raise ValueError(_mismatch(source.names, classes))


def _in_order(names: Sequence[str]) -> dict[int, int]:
    return {i: i for i in range(len(names))}


def _indices_of_numbers(source: Labelled, classes: Sequence[str]) -> dict[int, int]:
    """{label: index in classes} of a source whose labels are bare numbers."""
    numbers = [int(name) if NUMBER.fullmatch(name) else NO_LABEL for name in classes]
    counts = Counter(numbers)
    named = {x: i for i, x in enumerate(numbers) if x >= 0 and counts[x] == 1}
    labels = set(getattr(source, "labels", ())) - {NO_LABEL}
    return named if labels and labels <= named.keys() else _in_order(classes)


def _readable(names: Sequence[str]) -> list[str]:
    """The names with spaces for "_"; ValueError where two become one text: the first would win."""
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
    listed = ", ".join(map(repr, strange[:5])) or "a name twice"
    return (
        f"expected classes such as {classes[0]!r}, got {listed}: {len(strange)} of the data's "
        f"{len(names)} classes are not among the {len(classes)} expected; is --dataset right?"
    )
