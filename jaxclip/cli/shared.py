"""What the commands share: exit codes, where people are told things, the flag --json, a model."""

import gc
import os
import sys
from typing import Annotated, Any

import tyro
from rich.console import Console

FAILED, USAGE = 1, 2
stderr = Console(stderr=True)

AsJson = Annotated[bool, tyro.conf.arg(name="json")]


class UsageError(Exception):
    """What was asked for does not make sense; the message says why."""


def _import_jax() -> None:
    """Import jax and flax without Python's garbage collector.

    It would walk their hundreds of thousands of objects, which all stay, again and again: a tenth
    of the start of a command.
    """
    if "jax" in sys.modules:
        return
    gc.disable()
    try:
        import jaxclip.hub  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()


def open_model(name: str) -> Any:
    """A model's arrays where they lie, for `load_model` to load one tower after the other."""
    _import_jax()
    from jaxclip import convert, hub

    return convert.load(hub.find(name))


def load_model(name: Any, **options: Any) -> tuple[Any, Any]:
    """`hub.load`, with compiled programs kept in the cache folder for the next command.

    What a command compiles costs more than what it computes. JAX_COMPILATION_CACHE_DIR names
    another folder, JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
    """
    _import_jax()
    import jax

    from jaxclip import hub
    from jaxclip.downloads import cache_folder

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return hub.load(name, **options)


def warn_embedded(name: str) -> None:
    """Say on stderr what the embedded model cannot do, where it is the one that answers."""
    from jaxclip.hub import EMBEDDED

    if name == EMBEDDED:
        print(
            "jaxclip: the embedded model knows drawings like emoji only, no photographs; "
            "for those name a released model: --model ViT-B/32",
            file=sys.stderr,
        )


def print_table(table: Any) -> None:
    """A table on standard output; what looks like rich's markup in a cell is somebody's text."""
    Console(markup=False, emoji=False, highlight=False).print(table)
