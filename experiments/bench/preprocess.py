"""Suite `preprocess`: JPEG files to pixels, beside the official pipeline; one core, all cores."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.bench import pictures as bench_pictures
from experiments.bench.pairs import SuiteFlags, compared, in_turn, say
from experiments.lib.peers.parity_support import official_transform
from jaxclip.cli.usage import Positive
from jaxclip.images.open import open_image
from jaxclip.images.preprocess import Preprocess

SIZE = 224


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    pictures: Positive = 100
    """a turn"""
    photos: Path | None = None
    """a folder of photographs to cut pieces from"""


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """Beside the official steps in one thread; then one thread beside all cores.

    ValueError if one pixel of one picture differs.
    """
    import torch

    torch.set_num_threads(1)
    official, ours = official_transform(SIZE), Preprocess(SIZE)
    with tempfile.TemporaryDirectory() as folder:
        files = bench_pictures.make(Path(folder), flags.pictures, flags.photos)

        def one(path: Path) -> np.ndarray:
            return ours(open_image(path))

        def theirs(path: Path) -> Any:
            return official(Image.open(path))

        say(f"{len(files)} pictures")
        for path in files:
            if not np.array_equal(one(path), theirs(path).numpy().transpose(1, 2, 0)):
                raise ValueError(f"{path.name}: the pixels differ")
        sides = {
            "jaxclip": lambda: [one(path) for path in files],
            "official": lambda: [theirs(path) for path in files],
        }
        what = {"what": "JPEG files to pixels, bit-equal, one core", "pictures": len(files)}
        row = compared(what, in_turn(sides, flags.pairs))
        row["measured"] = {
            f"pictures a second, {side}": round(len(files) / value)
            for side, value in row["cpu s"].items()
        }
        yield row
        cores = os.cpu_count() or 1
        with ThreadPoolExecutor(cores) as pool:
            sides = {
                f"{cores} threads": lambda: list(pool.map(one, files)),
                "one thread": lambda: [one(path) for path in files],
            }
            what = {"what": "JPEG files to pixels, all cores beside one", "pictures": len(files)}
            yield compared(what, in_turn(sides, flags.pairs))
