"""What experiments share: command lines whose errors take one line, and published figures."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxclip.cli.shared import warnings_on_stderr
from jaxclip.cli.usage import parse
from jaxclip.terminal import complain, run_program

PUBLISHED = Path(__file__).with_name("published.json")
PARITY = "test,parity"  # the helpers that the parity tests share need pytest
EXTRAS = {  # the extra that has a package which the core lacks
    "sklearn": "test",
    **dict.fromkeys(("pytest", "torch", "torchvision", "open_clip", "transformers"), PARITY),
}


def missing_package(error: ImportError) -> ValueError:
    """One line that names the extra; raises the error again where no extra has the package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return ValueError(f"expected the package {package}; pip install -e '.[{EXTRAS[package]}]'")


class Parser(argparse.ArgumentParser):
    """Argparse whose usage errors take one line; the exit code is 2."""

    def error(self, message: str) -> NoReturn:
        complain(self.prog, message)
        raise SystemExit(2)


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of a flag that takes a whole number within a range, for argparse."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            message = f"expected a whole number from {low} to {high}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return number

    return read


positive = whole(1, 2**20)  # a batch, a count
seed = whole(0, 2**32 - 1)


def run_experiment(
    work: Callable[[Any], Any], flags: type, given: Sequence[str], prog: str, header: str
) -> int:
    """Parse the command line, call `work` with the flags, print a failure in one line.

    Args:
        work: called with `flags`, filled; ImportError means a package of an extra.
        flags: a dataclass, as for `jaxclip.cli.usage.parse`.
        given: the words of the command line.
        prog, header: the program's name, and its module's docstring for --help.

    Returns:
        The exit code, as of `terminal.run_program`.
    """

    def parse_and_work() -> int:
        parsed = parse(flags, given, prog, header)
        try:
            with warnings_on_stderr():
                work(parsed)
        except ImportError as error:
            raise missing_package(error) from error
        return 0

    return run_program(prog, parse_and_work, "interrupted; the same command continues from here")


def run(parser: Parser, work: Callable[[argparse.Namespace], Any], given: Sequence[str]) -> int:
    """Parse, work, and print a failure in one line: the exit code, as `terminal.run_program`'s."""

    def parse_and_work() -> int:
        arguments = parser.parse_args(given)
        try:
            with warnings_on_stderr():
                work(arguments)
        except ImportError as error:
            raise missing_package(error) from error
        return 0

    return run_program(
        parser.prog, parse_and_work, "interrupted; the same command goes on from here"
    )


def published(dataset: str, model: str, metric: str) -> list[dict[str, Any]]:
    """The published figures of a model, as [{"value" (a share), "source"}]; maybe none."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["figures"]
    wanted = (dataset, model, metric)
    return [
        {"value": row["percent"] / 100, "source": row["source"]}
        for row in rows
        if (row["dataset"], row["model"], row["metric"]) == wanted
    ]
