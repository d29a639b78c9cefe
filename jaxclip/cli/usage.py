"""Flags from typed arguments, by tyro; a usage error takes one line and exit code 2."""

import contextlib
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from jaxclip.cli.shared import UsageError
from jaxclip.terminal import complain

USAGE = 2
T = TypeVar("T")

# How tyro reports what the config of a model refused: where in the recipe, and the message.
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
# How tyro reports what a type of `whole` or `share` refused, and what is no choice.
_OF_OURS = re.compile(r"Error parsing (--\S+?): (expected .*?) Argument helptext:")
# How tyro reports what it does not know: a flag or a value, or a command and those that there are.
_UNKNOWN = re.compile(r"Unrecognized options: (\S+?),? .*?run:? (\S.*? --help)")
_COMMANDS = re.compile(r"Available subcommands: (.*?) For full")
_OF_A_CHOICE = re.compile(r"invalid choice (.*?) for argument '(.*?)'\. Expected one of \((.*?)\)")


def usage_line(boxed: str) -> str:
    """What the flag parser drew as boxes, as one line."""
    words = " ".join(re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", boxed).split())
    if found := _OF_OURS.search(words):
        return f"{found[1]}: {found[2]}"
    if found := _UNKNOWN.search(words):
        commands = _COMMANDS.search(words)
        expected = f"one of {commands[1]}" if commands else "a flag that is known"
        return f"expected {expected}, got {found[1]}; see {found[2]}"
    if found := _OF_A_CHOICE.search(words):
        choices = sorted(set(re.findall(r"'(.*?)'", found[3])) - {"None"})
        return f"{found[2]}: expected one of {', '.join(choices)}, got {found[1]}"
    if found := _OF_A_NUMBER.search(words):
        kinds = found[3].split()
        wanted = _NUMBERS[kinds[0]] if len(kinds) == 1 else f"{len(kinds)} whole numbers"
        return f"{found[1]}: expected {wanted}, got {found[2].strip('[]')}"
    found = _OF_A_CONFIG.search(words)
    if found is None:
        return words
    path, field, message = found.groups()
    return f"--{path}.{field.replace('_', '-')}{message}" if field else f"--{path}: {message}"


@contextlib.contextmanager
def usage_errors_in_one_line(prog: str) -> Iterator[None]:
    """Print the boxes of tyro's usage errors as one line; SystemExit 2, or 0 after --help."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if stop.code:
            complain(prog, usage_line(printed.getvalue()))
            raise SystemExit(USAGE) from None
        raise


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


def _refuse_nothing(parsed: Any) -> None:
    """ValueError where a flag that takes one value or more was given none."""
    for field in dataclasses.fields(parsed):
        if getattr(parsed, field.name) == () != field.default:
            raise ValueError(f"{field.name.replace('_', '-')}: expected a value, got none")


def parse(flags: Callable[..., T] | type[T], given: Sequence[str], prog: str, header: str) -> T:
    """The dataclass `flags`, filled from a command line.

    Args:
      flags: its fields are the flags, their docstrings the help.
      given: the words of the command line.
      prog: the name of the program, for messages.
      header: the docstring of its module, which --help shows.

    Raises:
      SystemExit: 2 after one line about a usage error, 0 after --help.
    """
    if {"-h", "--help"} & set(given):
        print(header)  # as it is: tyro would join its lines
    try:
        refuse_empty(given)
        with usage_errors_in_one_line(prog):
            config = (tyro.conf.FlagCreatePairsOff,)
            parsed = tyro.cli(flags, args=list(given), prog=prog, description="", config=config)
        _refuse_nothing(parsed)
    except (UsageError, ValueError) as error:
        complain(prog, error)
        raise SystemExit(USAGE) from None
    return parsed


def whole(low: int, high: int) -> tyro.constructors.PrimitiveConstructorSpec[int]:
    """The annotation of a flag that takes a whole number within a range."""

    def read(words: list[str]) -> int:
        if not re.fullmatch(r"[+-]?\d+", words[0]) or not low <= int(words[0]) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, got {words[0]!r}")
        return int(words[0])

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def _share(words: list[str]) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(words[0]) < 1:
            return float(words[0])
    raise ValueError(f"expected a number between 0 and 1, got {words[0]!r}")


Positive = Annotated[int, whole(1, 2**20)]  # a batch, a count
Natural = Annotated[int, whole(0, 2**31 - 1)]  # a limit
Seed = Annotated[int, whole(0, 2**32 - 1)]
Share = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=_share,
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    ),
]
