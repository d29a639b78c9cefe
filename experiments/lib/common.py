"""What experiments share: command lines whose errors take one line, and published figures."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, Protocol, TypeVar

from jaxclip.cli.parsing import parse_flags
from jaxclip.cli.shared import USAGE, UsageError, warnings_on_stderr
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


F = TypeVar("F", bound="Flags")


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
natural = whole(0, 2**31 - 1)  # a limit
seed = whole(0, 2**32 - 1)


def share(text: str) -> float:
    """A flag's number between 0 and 1, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        message = f"expected a number between 0 and 1, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return number


def run(parser: Parser, work: Callable[[argparse.Namespace], Any], given: Sequence[str]) -> int:
    """Parse, work, and print a failure in one line: the exit code, as `terminal.run_program`'s."""
    return _run_program(parser.prog, lambda: work(parser.parse_args(given)))


class Flags(Protocol):
    """A dataclass of flags that check themselves."""

    def check(self) -> None:
        """UsageError for a value out of range."""


def parse(flags: type[F], module: ModuleType, given: Sequence[str]) -> F:
    """The flags of an experiment, from its command line; its docstring is the help."""
    return parse_flags(flags, _program(module), module.__doc__ or "", given)


def run_flags(
    flags: type[F], work: Callable[[F], Any], module: ModuleType, given: Sequence[str]
) -> int:
    """Parse, check, work, and print a failure in one line: the exit code, 2 for usage errors."""

    def parse_and_work() -> None:
        parsed = parse(flags, module, given)
        parsed.check()
        work(parsed)

    return _run_program(_program(module), parse_and_work)


def _program(module: ModuleType) -> str:
    return Path(str(module.__file__)).stem


def _run_program(program: str, work: Callable[[], Any]) -> int:
    def work_and_warn() -> int:
        try:
            with warnings_on_stderr():
                work()
        except ImportError as error:
            raise missing_package(error) from error
        except UsageError as error:
            complain(program, error)
            return USAGE
        return 0

    return run_program(program, work_and_warn, "interrupted; the same command goes on from here")


def published(dataset: str, model: str, metric: str) -> list[dict[str, Any]]:
    """The published figures of a model, as [{"value" (a share), "source"}]; maybe none."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["figures"]
    wanted = (dataset, model, metric)
    return [
        {"value": row["percent"] / 100, "source": row["source"]}
        for row in rows
        if (row["dataset"], row["model"], row["metric"]) == wanted
    ]
