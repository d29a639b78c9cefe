"""Typed functions and dataclasses as command lines, by tyro: usage errors take one line, exit 2."""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from jaxclip.cli.shared import USAGE, UsageError
from jaxclip.terminal import complain

# How tyro reports that the config of a model was refused: where in the recipe, and the message.
_OF_A_CONFIG = re.compile(
    r"Error parsing \S+?\.(?:flags|recipe)\.([\w.]+): (?:\w+Config\.(\w+))?(.*?)"
    r"(?: (?:-{3,}|For full helptext).*)?$"
)


# How tyro reports that a value is no number.
_OF_A_NUMBER = re.compile(
    r"Error parsing (--\S+?): .*?(?:base 10:|to float:|instantiated from|arguments:?) "
    r"""('.*?'|".*?"|\[.*?\])\.? (?:into |Got |Argument ).*?helptext: \S+ .*?((?:INT ?)+|FLOAT)"""
)
_NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}


def usage_message(boxed: str) -> str:
    """One line from the boxes that tyro prints for a usage error."""
    words = " ".join(re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", boxed).split())
    if found := _OF_A_NUMBER.search(words):
        kinds = found[3].split()
        wanted = _NUMBERS[kinds[0]] if len(kinds) == 1 else f"{len(kinds)} whole numbers"
        return f"{found[1]}: expected {wanted}, got {found[2].strip('[]')}"
    found = _OF_A_CONFIG.search(words)
    if found is None:
        return words
    path, field, message = found.groups()
    return f"--{path}.{field.replace('_', '-')}{message}" if field else f"--{path}: {message}"


def refuse_empty(arguments: Sequence[str]) -> None:
    """UsageError that names the flag of an empty argument: a path "" would be this folder."""
    flag = ""
    for text in arguments:
        flag = text.partition("=")[0] if text.startswith("--") else flag
        if not text or text == f"{flag}=":
            what = f"{flag}: " if flag else ""
            raise UsageError(f"{what}expected a value, got an empty text; give one or leave it out")


def defer(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """A function with the same signature and help that returns the call instead of making it."""

    @functools.wraps(function)
    def remember(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return lambda: function(*args, **kwargs)

    return remember


@contextlib.contextmanager
def usage_errors_in_one_line(program: str) -> Any:
    """Print tyro's usage error as one line of `program`, then SystemExit 2; --help passes."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if stop.code:
            complain(program, usage_message(printed.getvalue()))
            raise SystemExit(USAGE) from None
        raise


def parse_flags(flags: Any, program: str, description: str, arguments: Sequence[str]) -> Any:
    """A `flags` (a dataclass) from a command line; UsageError or SystemExit 2 for a usage error."""
    refuse_empty(arguments)
    with usage_errors_in_one_line(program):
        return tyro.cli(flags, prog=program, description=description, args=list(arguments))
