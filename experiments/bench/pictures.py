"""JPEG files to measure with, of the sizes that collections have."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxclip.images.open import is_picture, open_image

ROOT = Path(__file__).parents[2]
SIDES = (300, 600)  # pixels, shortest and longest side
QUALITY = 90


def make(folder: Path, count: int, photos: Path | None = None, seed: int = 0) -> list[Path]:
    """`count` files of pieces of the pictures in `photos`, or of the examples; the same each time.

    ValueError if the folder holds no picture.
    """
    there = (photos or ROOT / "examples").iterdir()
    sources = sorted(path for path in there if path.is_file() and path.suffix != ".md")
    opened = [open_image(path).convert("RGB") for path in sources]
    if not opened:
        raise ValueError(f"{photos} holds no picture; name a folder of photographs")
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(count):
        image = opened[i % len(opened)]
        wide, high = (int(x) for x in rng.integers(SIDES[0], SIDES[1] + 1, 2))
        # a piece of half the picture's size or more, of its own proportions
        share = rng.uniform(0.5, 1)
        width, height = share * image.width, share * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        path = folder / f"{i:05d}.jpg"
        image.resize((wide, high), Image.Resampling.BICUBIC, box=box).save(path, quality=QUALITY)
        made.append(path)
    return made


def make_photographs(
    folder: Path, count: int, size: tuple[int, int], photos: Path | None = None
) -> list[Path]:
    """`count` files of one size, width and height: pieces of photographs at their own resolution.

    A photograph that is smaller goes on as its mirror image: enlarged, it would have less detail,
    and a decoder less to do. Those of scikit-learn, unless `photos` is a folder of them.
    """
    if photos is None:
        from sklearn.datasets import load_sample_images

        sources = [np.asarray(image) for image in load_sample_images().images]
    else:
        files = sorted(path for path in photos.iterdir() if is_picture(path))
        sources = [np.asarray(open_image(path).convert("RGB")) for path in files]
    rng = np.random.default_rng(0)
    width, height = size
    folder.mkdir(parents=True)
    made = []
    for i in range(count):
        pixels = sources[i % len(sources)]  # [h, w, c]
        left, top = (int(rng.integers(side)) for side in (pixels.shape[1], pixels.shape[0]))
        grown = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="symmetric")
        made.append(folder / f"{i:05d}.jpg")
        piece = grown[top : top + height, left : left + width]
        Image.fromarray(piece).save(made[-1], quality=QUALITY)
    return made
