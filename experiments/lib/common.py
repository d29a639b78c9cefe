"""What experiments share: command lines whose errors take one line, and published figures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxclip.cli.shared import warnings_on_stderr
from jaxclip.cli.usage import parse
from jaxclip.terminal import run_program

PUBLISHED = Path(__file__).with_name("published.json")
PARITY = "test,parity"  # the helpers that the parity tests share need pytest
EXTRAS = {  # the extra that has a package which the core lacks
    "sklearn": "test",
    "resvg_py": "recipes",
    **dict.fromkeys(("jupytext", "nbclient", "ipykernel", "latex2mathml"), "docs"),
    **dict.fromkeys(("mdit_py_plugins", "pygments"), "docs"),
    **dict.fromkeys(("pytest", "torch", "torchvision", "open_clip", "transformers"), PARITY),
}


def missing_package(error: ImportError) -> ValueError:
    """One line that names the extra; raises the error again where no extra has the package."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return ValueError(f"expected the package {package}; pip install -e '.[{EXTRAS[package]}]'")


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


def published(dataset: str, model: str, metric: str) -> list[dict[str, Any]]:
    """The published figures of a model, as [{"value" (a share), "source"}]; maybe none."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["figures"]
    wanted = (dataset, model, metric)
    return [
        {"value": row["percent"] / 100, "source": row["source"]}
        for row in rows
        if (row["dataset"], row["model"], row["metric"]) == wanted
    ]
