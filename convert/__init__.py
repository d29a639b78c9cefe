"""Foreign checkpoint files, read without torch and without running code, and written for others.

Import it as `jaxclip.convert`: setup.cfg maps this folder there.
"""

from .conversion import convert
from .files import read
from .given import Given, require_agreement
from .layouts.positions import at_size
from .loading import CONVERTER, Loaded, load

__all__ = [
    "CONVERTER",
    "Given",
    "Loaded",
    "at_size",
    "convert",
    "load",
    "read",
    "require_agreement",
]
