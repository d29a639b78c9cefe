"""What the commands share: exit codes, where people are told things, the flag --json, a model."""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from jaxclip.terminal import FAILED as FAILED
from jaxclip.terminal import one_line, printable


class PlainConsole(Console):
    """Rich's console for people's texts: nothing in them is markup, or steers the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, or stands in a table, comes through here."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Leave it to `terminal.run_program`, where rich would end the program itself."""
        raise BrokenPipeError


stderr = PlainConsole(stderr=True)

AsJson = Annotated[bool, tyro.conf.arg(name="json")]


class UsageError(Exception):
    """What was asked for does not make sense; the message says why."""


class _OnStderr(logging.Handler):
    """Prints a line; above a progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr.print(one_line(record.getMessage()), soft_wrap=True)


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Print what the library warns of, such as records that are left out."""
    logger, handler = logging.getLogger("jaxclip"), _OnStderr(logging.WARNING)
    before = logger.propagate
    logger.propagate = bool(logging.root.handlers)  # those that a library adds print it again
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def flag_error(error: ValueError) -> UsageError:
    """A library's "batch_size: expected ..." as what a command line says: "--batch-size: ..."."""
    name, colon, rest = str(error).partition(": expected ")
    known = colon and name.isidentifier()
    return UsageError(f"--{name.replace('_', '-')}{colon}{rest}" if known else str(error))


def require_whole_flag(flag: str, value: int, low: int, high: int = 2**31 - 1) -> None:
    """UsageError unless a flag's whole number lies within a range."""
    if not low <= value <= high:
        raise UsageError(f"{flag}: expected a whole number from {low} to {high}, got {value}")


def _import_jax() -> None:
    """Import jax and flax without Python's garbage collector.

    It would walk their hundreds of thousands of objects, which all stay, again and again: a tenth
    of the start of a command.
    """
    if "jax" in sys.modules:
        return
    gc.disable()
    try:
        import jaxclip.hub.load  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()


def open_model(name: str) -> Any:
    """A model's arrays where they lie, for `load_model` to load one tower after the other."""
    _import_jax()
    from jaxclip import convert
    from jaxclip.hub.find import find

    return convert.load(find(name), check_numbers=False)


def load_model(name: Any, *, of: str = "", **options: Any) -> tuple[Any, Any]:
    """`hub.load`, with compiled programs kept in the cache folder for the next command.

    What a command compiles costs more than what it computes. JAX_COMPILATION_CACHE_DIR names
    another folder, JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.

    Args:
        name: as `hub.load` takes it.
        of: what the arrays are from, for messages, where `name` is what `open_model` made.
    """
    _import_jax()
    import jax

    from jaxclip.hub import load as hub
    from jaxclip.hub.released import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        return hub.load(name, **options)
    except ValueError as error:
        raise ValueError(f"{of}: {error}" if of else str(error)) from None


def warn_embedded(name: str) -> None:
    """Say on stderr what the embedded model cannot do, where it is the one that answers."""
    from jaxclip.hub.find import EMBEDDED

    if name == EMBEDDED:
        print(
            "jaxclip: the embedded model knows drawings and icons only, no photographs; "
            "for those name a released model: --model ViT-B/32",
            file=sys.stderr,
        )


def show_progress(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The items, with a progress bar on standard error."""
    from rich.progress import track

    return track(items, what, total=total, console=stderr)


def print_table(table: Any) -> None:
    """Print a table on standard output."""
    PlainConsole().print(table)


def print_line(text: object) -> None:
    """Print a line on standard output, with what could steer a terminal escaped."""
    print(printable(text))


def write_page(path: Path, text: str) -> None:
    """Write a page of HTML and say so; it appears whole or not at all."""
    from jaxclip.checkpoint import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    stderr.print(f"wrote {path}", soft_wrap=True)
