"""Files and inputs of the golden model whose pictures are not square; without torch."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxclip.config import PictureConfig

FOLDER = Path(__file__).parent / "open_clip-tall"
RESULTS = Path(__file__).parent / "open_clip-tall.npz"
SIZE = (30, 18)
HOW = {
    "shortest": PictureConfig(interpolation="bilinear"),  # which open_clip does not heed
    "squash": PictureConfig(resize="squash", interpolation="bilinear"),
    "longest": PictureConfig(resize="longest", fill=77),
}


def make_pictures() -> list[Image.Image]:
    """A wide one and a tall one, of random pixels."""
    rng = np.random.default_rng(5)
    sizes = ((61, 40), (25, 90))  # width and height
    return [Image.frombytes("RGB", size, rng.bytes(3 * size[0] * size[1])) for size in sizes]
