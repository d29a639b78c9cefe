"""Foreign checkpoint files, read without torch and without running code, and written for others.

Import it as `jaxclip.convert`: setup.cfg maps this folder there.
"""

from .conversion import convert
from .files import read
from .layouts.positions import at_size
from .loading import CONVERTER, Given, Loaded, agree, load

__all__ = ["CONVERTER", "Given", "Loaded", "agree", "at_size", "convert", "load", "read"]
