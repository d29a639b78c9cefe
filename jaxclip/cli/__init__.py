"""The `jaxclip` command: one typed function a sub-command, flags made from its arguments."""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from jaxclip.cli.ask import classify, embed, tokenize
from jaxclip.cli.interpolate import interpolate
from jaxclip.cli.plan import plan
from jaxclip.cli.shared import USAGE, UsageError, warnings_on_stderr
from jaxclip.cli.train import evaluate, train
from jaxclip.cli.weights import convert, inspect, models, verify
from jaxclip.terminal import complain, run_program
from jaxclip.training.recipe import PRESETS, TrainConfig

DESCRIPTION = (
    "CLIP in NumPy, JAX and Flax: ask pictures with words, train, load and check any weights."
)
COMMANDS = (
    classify,
    embed,
    tokenize,
    train,
    evaluate,
    models,
    inspect,
    convert,
    verify,
    plan,
    interpolate,
)


def _preset(arguments: Sequence[str]) -> TrainConfig:
    """The recipe that --preset names, which gives every other flag of `train` its default."""
    found = re.search(r"--preset[= ](\S+)", " ".join(arguments))
    return PRESETS.get(found[1] if found else "quick", PRESETS["quick"])


def _one_line(boxed: str) -> str:
    """What the flag parser drew as boxes, as one line."""
    words = re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", boxed).split()
    return " ".join(words)


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    """What to do, parsed; SystemExit 2 after one line about a usage error, 0 after --help."""
    train.__kwdefaults__ = None
    train.__defaults__ = (_preset(arguments), *train.__defaults__[1:])  # type: ignore[index]
    commands = {f.__name__: _later(f) for f in COMMANDS}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="jaxclip", description=DESCRIPTION, args=list(arguments)
            )
    except SystemExit as stop:
        if stop.code:
            complain("jaxclip", _one_line(told.getvalue()))
            raise SystemExit(USAGE) from None
        raise


def _later(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The same signature and help, but calling it only remembers the call."""

    @functools.wraps(function)
    def remember(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return lambda: function(*args, **kwargs)

    return remember


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 1 (failed, one line says why) or 2 (usage).

    141 where the reader of the output has gone, as `| head` does.
    """

    def work() -> int:
        try:
            command = _command(sys.argv[1:] if arguments is None else arguments)
            with warnings_on_stderr():
                return command()
        except UsageError as error:
            complain("jaxclip", error)
            return USAGE

    return run_program("jaxclip", work)
