"""What classify and embed share: the pictures that they are given, and those left out."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxclip.cli.shared import UsageError, stderr
from jaxclip.files import require_writable


def find_given(pictures: Sequence[str]) -> list[Path]:
    """The pictures that a command line names (`data.given`); UsageError where there is none."""
    from jaxclip.data.given import given_pictures

    try:
        return given_pictures(pictures, sys.stdin.buffer)
    except ValueError as error:
        raise UsageError(str(error)) from None


def require_free(flag: str, path: Path, force: bool) -> None:
    """UsageError unless a file may be written there."""
    if path.is_dir():
        raise UsageError(f"{flag}: expected the name of a file, got a folder, {path}")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already; add --force or another {flag}")
    require_writable(path)


class LeftOut:
    """Names broken pictures on stderr and counts them.

    total: pictures in all; where the only one is broken, that is the error.
    limit: of broken pictures; ValueError beyond.
    """

    def __init__(self, total: int, limit: int | None = None) -> None:
        self.total, self.limit, self.count = total, limit, 0

    def add(self, name: str, reason: str) -> None:
        """Name one."""
        shown = repr(name)
        line = reason if reason.startswith(shown) else f"{shown}: {reason}"
        self.count += 1
        if self.total == 1 and self.limit is None:
            raise ValueError(line)
        stderr.print(f"left out: {line}", soft_wrap=True)
        if self.limit is not None and self.count > self.limit:
            raise ValueError(f"{self.count} pictures are broken, --skip-limit is {self.limit}")

    def require_some(self) -> None:
        """ValueError if every picture was broken."""
        if self.count >= self.total:
            raise ValueError(f"none of the {self.total} pictures could be read")


@contextlib.contextmanager
def progress_bar(what: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, and what moves it by a number of items.

    Unlike `show_progress` it leaves what is printed on standard output alone.
    """
    from rich.progress import Progress

    shown = shown and stderr.is_terminal
    with Progress(console=stderr, redirect_stdout=False, disable=not shown) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
