"""What experiments share: command lines whose errors take one line, and published figures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxclip.cli.parsing import parse_flags
from jaxclip.cli.shared import USAGE, UsageError, warnings_on_stderr
from jaxclip.terminal import complain, run_program

T = TypeVar("T")
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


def run_experiment(
    work: Callable[[T], Any], flags: type[T], given: Sequence[str], program: str, header: str
) -> int:
    """Parse the command line, call `work` with the flags, print a failure in one line.

    Args:
        work: called with `flags`, filled; an ImportError means a package of an extra.
        flags: a dataclass, as for `parse_flags`; its method `check`, if any, is called first.
        given: the words of the command line.
        program, header: the program's name, and its module's docstring for --help.

    Returns:
        The exit code, as of `terminal.run_program`; 2 for a usage error.
    """

    def parse_and_work() -> int:
        try:
            parsed = parse_flags(flags, given, program, header)
            getattr(parsed, "check", lambda: None)()
            with warnings_on_stderr():
                work(parsed)
        except ImportError as error:
            raise missing_package(error) from error
        except UsageError as error:
            complain(program, error)
            return USAGE
        return 0

    resumable = "interrupted; the same command continues from here"
    return run_program(program, parse_and_work, resumable)


def published(dataset: str, model: str, metric: str) -> list[dict[str, Any]]:
    """The published figures of a model, as [{"value" (a share), "source"}]; maybe none."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["figures"]
    wanted = (dataset, model, metric)
    return [
        {"value": row["percent"] / 100, "source": row["source"]}
        for row in rows
        if (row["dataset"], row["model"], row["metric"]) == wanted
    ]
