"""The `jaxclip` command: one typed function a sub-command, flags made from its arguments."""

import contextlib
import dataclasses
import functools
import io
import operator
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from jaxclip.cli.classify import classify
from jaxclip.cli.demo import demo
from jaxclip.cli.doctor import doctor
from jaxclip.cli.embed import embed
from jaxclip.cli.evaluate import evaluate
from jaxclip.cli.interpolate import interpolate
from jaxclip.cli.plan import plan
from jaxclip.cli.search import index, search, similar
from jaxclip.cli.shared import UsageError, flag_error, warnings_on_stderr
from jaxclip.cli.tokens import tokenize
from jaxclip.cli.train import train
from jaxclip.cli.train_flags import TrainFlags
from jaxclip.cli.usage import USAGE, defer, refuse_empty, usage_errors_in_one_line
from jaxclip.cli.verify import verify
from jaxclip.cli.weights import convert, inspect, models
from jaxclip.terminal import FAILED, complain, run_program

DESCRIPTION = (
    "CLIP in NumPy, JAX and Flax: classify pictures by words, train, load and check any weights. "
    "`jaxclip --version` prints the version."
)
COMMANDS = (
    classify,
    search,
    similar,
    index,
    embed,
    tokenize,
    train,
    evaluate,
    models,
    inspect,
    convert,
    verify,
    doctor,
    plan,
    interpolate,
    demo,
)


@dataclasses.dataclass(frozen=True)
class _PresetFlag:
    preset: str = "quick"


def _preset(arguments: Sequence[str]) -> str:
    """The value of --preset, which gives the other flags of `train` their defaults."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        found, _ = tyro.cli(_PresetFlag, args=arguments, return_unknown_args=True, add_help=False)
        return found.preset
    return "quick"  # --preset without a value: the whole command line is refused for it


def _given(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the flags on a command line, as --help spells them but for a "no-"."""
    names = (text[2:].partition("=")[0] for text in arguments if text.startswith("--"))
    return frozenset(re.sub(r"(^|\.)no-", r"\1", name.replace("_", "-")) for name in names)


def _subcommands(arguments: Sequence[str]) -> Any:
    """The type that tyro parses: a union with one member a command."""
    train_defaults = TrainFlags.with_defaults(_preset(arguments), _given(arguments))
    members = {
        f.__name__: Annotated[Any, tyro.conf.subcommand(f.__name__, constructor=defer(f))]
        for f in COMMANDS
    }
    members["train"] = Annotated[TrainFlags, tyro.conf.subcommand("train", default=train_defaults)]
    return functools.reduce(operator.or_, members.values())


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    """The command to run; SystemExit 2 after one line about a usage error, 0 after --help."""
    if "tokenize" not in arguments[:1]:
        refuse_empty(arguments)
    try:
        with usage_errors_in_one_line("jaxclip"):
            parsed = tyro.cli(
                _subcommands(arguments),
                prog="jaxclip",
                description=DESCRIPTION,
                args=list(arguments),
            )
    except ValueError as error:  # of an Execution
        raise flag_error(error) from None
    return functools.partial(train, parsed) if isinstance(parsed, TrainFlags) else parsed


def _is_of_a_device(error: RuntimeError) -> bool:
    """Whether it comes from a device or the compiler for it."""
    jax = sys.modules.get("jax")  # not every command loads it
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError)


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
        except RuntimeError as error:
            if not _is_of_a_device(error):
                raise
            said = str(error).partition("\n")[0]
            complain("jaxclip", f"the device failed: {said}; try the same with JAX_PLATFORMS=cpu")
            return FAILED

    return run_program("jaxclip", work)
