"""The `jaxclip` command: one typed function a sub-command, flags made from its arguments."""

import re
import sys
from collections.abc import Callable, Sequence

import tyro

from jaxclip.cli.ask import classify, embed, tokenize
from jaxclip.cli.evaluate import evaluate
from jaxclip.cli.interpolate import interpolate
from jaxclip.cli.parsing import defer, refuse_empty, usage_errors_in_one_line
from jaxclip.cli.plan import plan
from jaxclip.cli.shared import USAGE, UsageError, flag_error, warnings_on_stderr
from jaxclip.cli.train import Flags, train
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


def _preset(arguments: Sequence[str]) -> Flags:
    """The recipe that --preset names, which gives every other flag of `train` its default."""
    found = re.findall(r"--preset[= ](\S+)", " ".join(arguments))  # the parser takes the last
    return Flags.of(PRESETS.get(found[-1] if found else "quick", PRESETS["quick"]))


def _given(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the flags on a command line, as --help spells them but for a "no-"."""
    names = (text[2:].partition("=")[0] for text in arguments if text.startswith("--"))
    return frozenset(re.sub(r"(^|\.)no-", r"\1", name.replace("_", "-")) for name in names)


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    """What to do, parsed; SystemExit 2 after one line about a usage error, 0 after --help."""
    if "tokenize" not in arguments[:1]:
        refuse_empty(arguments)
    train.__kwdefaults__ = None
    defaults = train.__defaults__ or ()
    train.__defaults__ = (_preset(arguments), *defaults[1:-1], _given(arguments))
    commands = {f.__name__: defer(f) for f in COMMANDS}
    try:
        with usage_errors_in_one_line("jaxclip"):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="jaxclip", description=DESCRIPTION, args=list(arguments)
            )
    except ValueError as error:  # of a layout
        raise flag_error(error) from None


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
