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
from jaxclip.cli.shared import USAGE, UsageError, flag_error, warnings_on_stderr
from jaxclip.cli.train import Flags, evaluate, train
from jaxclip.cli.weights import convert, inspect, models, verify
from jaxclip.terminal import complain, run_program
from jaxclip.training.recipe import PRESETS

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


# How tyro tells what the config of a model refused: where in the recipe, and the message.
_OF_A_CONFIG = re.compile(
    r"Error parsing \S+?\.flags\.([\w.]+): (?:\w+Config\.(\w+))?(.*?)"
    r"(?: (?:-{3,}|For full helptext).*)?$"
)


# How tyro tells that a value is no number.
_OF_A_NUMBER = re.compile(
    r"Error parsing (--\S+?): .*?(?:base 10:|to float:|instantiated from|arguments:?) "
    r"""('.*?'|".*?"|\[.*?\])\.? (?:into |Got |Argument ).*?helptext: \S+ .*?((?:INT ?)+|FLOAT)"""
)
_NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}


def _preset(arguments: Sequence[str]) -> Flags:
    """The recipe that --preset names, which gives every other flag of `train` its default."""
    found = re.findall(r"--preset[= ](\S+)", " ".join(arguments))  # the parser takes the last
    return Flags.of(PRESETS.get(found[-1] if found else "quick", PRESETS["quick"]))


def _given(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the flags on a command line, as --help spells them but for a "no-"."""
    names = (text[2:].partition("=")[0] for text in arguments if text.startswith("--"))
    return frozenset(re.sub(r"(^|\.)no-", r"\1", name.replace("_", "-")) for name in names)


def _one_line(boxed: str) -> str:
    """What the flag parser drew as boxes, as one line."""
    words = " ".join(re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", boxed).split())
    if found := _OF_A_NUMBER.search(words):
        kinds = found[3].split()
        wanted = _NUMBERS[kinds[0]] if len(kinds) == 1 else f"{len(kinds)} whole numbers"
        return f"{found[1]}: expected {wanted}, got {found[2].strip('[]')}"
    found = _OF_A_CONFIG.search(words)
    if found is None:
        return words
    path, field, said = found.groups()
    return f"--{path}.{field.replace('_', '-')}{said}" if field else f"--{path}: {said}"


def _refuse_empty(arguments: Sequence[str]) -> None:
    """UsageError that names the flag of an empty argument: a path "" would be this folder."""
    flag = ""
    for text in arguments:
        flag = text.partition("=")[0] if text.startswith("--") else flag
        if not text or text == f"{flag}=":
            what = f"{flag}: " if flag else ""
            raise UsageError(f"{what}expected a value, got an empty text; give one or leave it out")


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    """What to do, parsed; SystemExit 2 after one line about a usage error, 0 after --help."""
    if "tokenize" not in arguments[:1]:
        _refuse_empty(arguments)
    train.__kwdefaults__ = None
    defaults = train.__defaults__ or ()
    train.__defaults__ = (_preset(arguments), *defaults[1:-1], _given(arguments))
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
    except ValueError as error:  # of a layout
        raise flag_error(error) from None


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
