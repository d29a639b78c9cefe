"""What experiments share: where and with what they ran, published figures, errors in one line."""

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from jaxclip.cli.shared import warnings_on_stderr
from jaxclip.cli.usage import parse
from jaxclip.terminal import complain, run_program

PUBLISHED = Path(__file__).with_name("published.json")
PARITY = "test,parity"  # the helpers that the parity tests share need pytest
EXTRAS = {  # the extra that brings a package which the core lacks
    "sklearn": "test",
    **dict.fromkeys(("pytest", "torch", "torchvision", "open_clip", "transformers"), PARITY),
}


def missing_package(error: ImportError) -> ValueError:
    """One line that names the extra; raises the error again where no extra brings the package."""
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
            told = f"expected a whole number from {low} to {high}, got {text!r}"
            raise argparse.ArgumentTypeError(told)
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
        told = f"expected a number between 0 and 1, got {text!r}"
        raise argparse.ArgumentTypeError(told)
    return number


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

    told = "interrupted; the same command goes on from here"
    return run_program(parser.prog, parse_and_work, told)


def machine() -> str:
    """The processor as the kernel names it: family and model tell the generation."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor() or "unknown"
    lines = (line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    numbers = ", ".join(f"{k} {said[k]}" for k in ("cpu family", "model") if k in said)
    return f"{said.get('model name', 'unknown')} ({numbers}), {os.cpu_count()} cores"


def surroundings() -> dict[str, str]:
    """What the numbers depend on: libraries, Python, machine, backend."""
    import jax

    names = ("jaxclip", "jax", "flax", "numpy", "pillow")
    said = {name: version(name) for name in names} | {"python": platform.python_version()}
    return said | {"machine": machine(), "backend": jax.default_backend()}


def now() -> str:
    """The date and the time, with the zone, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def published(dataset: str, model: str, metric: str) -> list[dict[str, Any]]:
    """The published figures, as [{"value" (a share), "source"}], for that very metric and model."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["figures"]
    asked = (dataset, model, metric)
    return [
        {"value": row["percent"] / 100, "source": row["source"]}
        for row in rows
        if (row["dataset"], row["model"], row["metric"]) == asked
    ]


def verdict(value: float, interval: tuple[float, float], expected: Sequence[dict[str, Any]]) -> str:
    """One line: which published figures lie inside of the interval, and how far off the others."""
    if not expected:
        return "nothing is published for this model on this data"
    told = []
    for row in expected:
        inside = interval[0] <= row["value"] <= interval[1]
        off = 100 * (value - row["value"])
        how = "within the interval" if inside else f"{off:+.1f} points from it, outside"
        told.append(f"{100 * row['value']:.1f} ({row['source']}): {how}")
    return "; ".join(told)
