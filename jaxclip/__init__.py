"""CLIP from scratch in NumPy, JAX and Flax.

The names are resolved when they are first used: importing `jaxclip` imports no jax, starts no
device and reads no file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jaxclip.convert as convert
    from jaxclip import losses as losses
    from jaxclip import reference as reference
    from jaxclip.hub.load import available_models, load
    from jaxclip.images.preprocess import Preprocess
    from jaxclip.tokenizer import tokenize as tokenize

__version__ = "0.2.0"

__all__ = [
    "Preprocess",
    "__version__",
    "available_models",
    "convert",
    "load",
    "losses",
    "reference",
    "tokenize",
]

_HOMES = {
    "Preprocess": "jaxclip.images.preprocess",
    "available_models": "jaxclip.hub.load",
    "load": "jaxclip.hub.load",
    "tokenize": "jaxclip.tokenizer",
}
_SUBMODULES = ("convert", "losses", "reference")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"jaxclip.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
