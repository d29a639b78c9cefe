"""Tar shards in webdataset's layout: what belongs together, found once, read when asked for."""

import contextlib
import logging
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
BLOCK = 512  # bytes; headers and contents begin at multiples of it
Extent = tuple[int, int]  # where a member's bytes begin, and how many there are
Read = Callable[[str], bytes]  # a member's bytes, by suffix


class Shards:
    """Uncompressed tar files as img2dataset writes them.

    Members that share a name up to the first dot are one example: `000123.jpg` with `000123.txt`.
    Each file is scanned once for its headers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.examples = [(path, found) for path in paths for found in _scan(path)]
        if not self.examples:
            raise ValueError(f"no pictures in {len(paths)} tar files")

    def __len__(self) -> int:
        return len(self.examples)

    @contextlib.contextmanager
    def opened(self, i: int) -> Iterator[tuple[dict[str, Extent], Read, str]]:
        """An example's members by suffix, what reads one of them, and where it is."""
        path, (name, members) = self.examples[i]
        with path.open("rb") as file:

            def read(suffix: str) -> bytes:
                start, size = members[suffix]
                file.seek(start)
                return file.read(size)

            yield members, read, f"{path}, {name}"


def picture_of(members: dict[str, Extent]) -> str:
    """The suffix of an example's picture; every example has one."""
    return next(suffix for suffix in members if f".{suffix}" in SUFFIXES)


def _scan(path: Path) -> list[tuple[str, dict[str, Extent]]]:
    """(name, {suffix: extent}) of every example with a picture, in the order of the file."""
    found: dict[str, dict[str, Extent]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    directory, _, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    extent = member.offset_data, member.size
                    found.setdefault(f"{directory}/{stem}", {})[suffix.lower()] = extent
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
        with path.open("rb") as file:
            file.seek(end)
            if any(file.read(BLOCK)):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"no header at byte {end}")
    except (tarfile.TarError, OSError, EOFError) as error:
        logger.warning("%s: damaged (%s); %d examples before it are used", path, error, len(found))
    with_picture = [
        (name, members)
        for name, members in found.items()
        if any(f".{suffix}" in SUFFIXES for suffix in members)
    ]
    if len(with_picture) < len(found):
        logger.warning("%s: %d names without picture", path, len(found) - len(with_picture))
    return with_picture
