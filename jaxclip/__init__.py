"""CLIP from scratch in NumPy, JAX and Flax.

The names are resolved when they are first used: importing `jaxclip` imports no jax, starts no
device and reads no file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jaxclip.convert as convert
    from jaxclip import config as config
    from jaxclip import doctor as doctor
    from jaxclip import evaluation as evaluation
    from jaxclip import hardware as hardware
    from jaxclip import losses as losses
    from jaxclip import models as models
    from jaxclip import parity as parity
    from jaxclip import reference as reference
    from jaxclip import training as training
    from jaxclip.config import ClipConfig as ClipConfig
    from jaxclip.hub.load import available_models as available_models
    from jaxclip.hub.load import load as load
    from jaxclip.images.preprocess import Preprocess as Preprocess
    from jaxclip.models.clip import Clip as Clip
    from jaxclip.models.clip import create as create
    from jaxclip.models.single import SingleTower as SingleTower
    from jaxclip.tokenizer import tokenize as tokenize

__version__ = "0.2.0"

_HOMES = {
    "Clip": "jaxclip.models.clip",
    "ClipConfig": "jaxclip.config",
    "Preprocess": "jaxclip.images.preprocess",
    "SingleTower": "jaxclip.models.single",
    "available_models": "jaxclip.hub.load",
    "create": "jaxclip.models.clip",
    "load": "jaxclip.hub.load",
    "tokenize": "jaxclip.tokenizer",
}
_SUBMODULES = (
    "config",
    "convert",
    "doctor",
    "evaluation",
    "hardware",
    "losses",
    "models",
    "parity",
    "reference",
    "training",
)

__all__ = [
    "Clip",
    "ClipConfig",
    "Preprocess",
    "SingleTower",
    "__version__",
    "available_models",
    "config",
    "convert",
    "create",
    "doctor",
    "evaluation",
    "hardware",
    "load",
    "losses",
    "models",
    "parity",
    "reference",
    "tokenize",
    "training",
]


if not TYPE_CHECKING:  # a type checker knows the names above, and reports any other

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return import_module(f"jaxclip.{name}")
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'jaxclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
