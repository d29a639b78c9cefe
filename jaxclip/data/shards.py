"""Tar shards in webdataset's layout: headers are scanned once, members are read on access."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxclip.data.folders import is_hidden
from jaxclip.data.records import MOST_PICTURE_BYTES, MOST_TEXT_BYTES, Fault
from jaxclip.data.tar_headers import Bad, read_headers
from jaxclip.files import open_regular
from jaxclip.images.open import SUFFIXES

logger = logging.getLogger(__name__)
Extent = tuple[int, int]  # where a member's bytes begin, and how many there are
Members = dict[str, Extent]  # of one example, by suffix
Read = Callable[[str], bytes]  # a member's bytes, by suffix


class Entry(NamedTuple):
    """An example of a shard: where it is, its members, or the fault that makes it unusable."""

    where: str
    members: Members
    fault: Fault | None = None


class Shards:
    """Uncompressed tar files as img2dataset writes them.

    Members that share a name up to the first dot are one example: `000123.jpg` with `000123.txt`.
    Where no such picture is, those that share a name up to the last dot are: `a.b.jpg`, `a.b.txt`.
    Each file is scanned once for its headers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.examples = [(path, entry) for path in paths for entry in _scan(path)]
        if not any(entry.members for _, entry in self.examples):
            bad = [f"; {x.where}: {x.fault.detail}" for _, x in self.examples if x.fault]
            more = f" and {len(paths) - 1} other tar files" if len(paths) > 1 else ""
            raise ValueError(f"{paths[0]}{more}: no pictures in it{bad[0] if bad else ''}")

    def __len__(self) -> int:
        return len(self.examples)

    def entry(self, i: int) -> Entry:
        """An example by its headers alone."""
        return self.examples[i][1]

    def listing(self) -> Iterator[str]:
        """Names of shards and examples, with the places of their members, in order."""
        for path, entry in self.examples:
            yield path.name + entry.where.removeprefix(str(path))
            yield from (f"{suffix} {extent}" for suffix, extent in sorted(entry.members.items()))

    @contextlib.contextmanager
    def open_example(self, i: int) -> Iterator[tuple[Members, Read, str]]:
        """(an example's members by suffix, a function that reads one, where the example is)."""
        path, entry = self.examples[i]
        with open_regular(path) as file:

            def read(suffix: str) -> bytes:
                start, size = entry.members[suffix]
                most = MOST_PICTURE_BYTES if _is_picture(suffix) else MOST_TEXT_BYTES
                if size > most:
                    raise ValueError(f".{suffix}: expected at most {most:,} bytes, got {size:,}")
                file.seek(start)
                return file.read(size)

            yield entry.members, read, entry.where


def _is_picture(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in SUFFIXES


def picture_of(members: Mapping[str, Extent]) -> str:
    """The suffix of an example's picture; every example has one."""
    return next(suffix for suffix in members if _is_picture(suffix))


def _is_hidden(name: str) -> bool:
    return any(is_hidden(part) for part in name.split("/") if part not in (".", ".."))


def _scan(path: Path) -> list[Entry]:
    """The examples with a picture, in the order of the file, and the entries that are damaged."""
    found: dict[str, Members] = {}
    bad: list[Entry] = []
    without: Counter[str] = Counter()  # endings of members that belong to no picture
    again: list[str] = []  # members of a repeated name: the last one counts
    second = 0  # pictures beside another one of their name: the first one counts
    whole = True
    with open_regular(path) as file:
        for header in read_headers(file):
            if isinstance(header, Bad) and header.last:
                message = "%s: damaged (%s); %d examples before it are used"
                logger.warning(message, path, header.reason, len(found))
                whole = False
            elif isinstance(header, Bad):
                fault = Fault("damaged tar entry", header.reason)
                bad.append(Entry(f"{path}, {header.name}", {}, fault))
            elif _is_hidden(header.name):
                without["hidden"] += 1
            else:
                directory, _, base = header.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                extent = header.start, header.size
                name = f"{directory}/{stem}" if directory else stem
                members = found.setdefault(name, {})
                if suffix.lower() in members:
                    again.append(header.name)
                members[suffix.lower()] = extent
    examples: list[Entry] = []
    for name, members in found.items():
        parts = _with_picture(name, members)
        for _, own in parts:
            second += sum(map(_is_picture, own)) - 1
        examples += [Entry(f"{path}, {part}", own) for part, own in parts]
        if not parts:
            without.update(f".{suffix}" if suffix else "no ending" for suffix in members)
    if again:
        message = "%s: %d members left out, as later ones have their name, the first: %.99r"
        logger.warning(message, path, len(again), again[0])
    if second:
        logger.warning("%s: %d pictures left out beside another of their name", path, second)
    if whole and not examples and not bad:
        logger.warning("%s: no pictures in it", path)
    if without:
        listed = ", ".join(f"{ending} {count}" for ending, count in without.most_common(9))
        logger.warning("%s: %d names without picture left out: %s", path, without.total(), listed)
    return examples + bad


def _with_picture(name: str, members: Members) -> list[tuple[str, Members]]:
    """The example of a name, or those of `name.b`, `name.c` where only such have a picture."""
    pictures = [suffix for suffix in members if _is_picture(suffix)]
    if any("." not in suffix for suffix in pictures):
        plain = {suffix: extent for suffix, extent in members.items() if "." not in suffix}
        return [(name, plain)]
    stems = dict.fromkeys(suffix.rpartition(".")[0] for suffix in pictures)
    return [
        (
            f"{name}.{stem}",
            {
                suffix.rpartition(".")[2]: extent
                for suffix, extent in members.items()
                if suffix.rpartition(".")[0] == stem
            },
        )
        for stem in stems
    ]
