"""A fast stand-in for a model, folders of small pictures, and what every index must hold.

`python -m tests.support.indexed FOLDER` indexes a folder, for tests that kill it.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from jaxclip.data.folders import INDEX
from jaxclip.images.open import open_image
from jaxclip.images.preprocess import Preprocess
from jaxclip.search import index, update
from jaxclip.search.catalogue import Catalogue

SIZE, WIDTH = 8, 16
PREPROCESS = Preprocess(SIZE)


def encode(pixels: np.ndarray) -> np.ndarray:
    """A random projection: [n, h, w, c] -> [n, e]."""
    rng = np.random.default_rng(7)
    matrix = rng.normal(size=(SIZE * SIZE * 3, WIDTH)).astype(np.float32)
    return pixels.reshape(len(pixels), -1) @ matrix


def tower(key: str = "a" * 64, encode: Callable[[np.ndarray], np.ndarray] = encode) -> update.Tower:
    return update.Tower(key, f"stand-in {key[0]}", lambda: encode)


def write_picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(256, size=(9, 12, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def fill(root: Path, count: int) -> list[Path]:
    """Pictures that were written a minute ago, in three folders."""
    paths = [write_picture(root / f"{i % 3}" / f"{i:05d}.png", i) for i in range(count)]
    age(root)
    return paths


def age(root: Path) -> None:
    """Make all files a minute old, so that their time is trusted."""
    before = time.time() - 60
    for path in root.rglob("*.png"):
        os.utime(path, (before, before))


def run(root: Path, tower: update.Tower | None = None) -> update.Report:
    """Bring the index beside the pictures up to date."""
    with index.writing(root / INDEX) as catalogue:
        return update.update(root, root / INDEX, catalogue, tower or _tower(), PREPROCESS.safe)


_tower = tower


def expected(path: Path) -> np.ndarray:
    feature = encode(PREPROCESS.safe(open_image(path))[None])[0]
    return feature / np.linalg.norm(feature)


def check(root: Path, key: str = "a" * 64, exactly: set[Path] | None = None) -> int:
    """The number of pictures that an index counts as done; every one has its own right vector."""
    with Catalogue(root / INDEX / index.FACTS, write=False) as catalogue:
        model = catalogue.model(key)
        if model is None:
            return 0
        blocks = catalogue.blocks(model)
        assert not index.damaged(root / INDEX, model, blocks)
        contents = catalogue.contents(model)
        vectors = index.map_rows(root / INDEX, model, index.end_of(blocks))
        rows = {digest: row for row, digest in contents}
        assert len(rows) == len(contents)  # none twice
        assert set(rows.values()) <= {b.first + i for b in blocks for i in range(b.rows)}
        files = {root / os.fsdecode(path): x for path, x in catalogue.files().items()}
    if exactly is not None:
        assert {path for path, x in files.items() if x.error is None} == exactly
    for path, facts in files.items():
        if facts.error is None:
            assert facts.digest == hashlib.sha256(path.read_bytes()).digest()
            np.testing.assert_allclose(vectors[rows[facts.digest]], expected(path), atol=1e-3)
    return len(files)


if __name__ == "__main__":

    def slowly(pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return encode(pixels)

    update.BLOCK = int(sys.argv[2])
    print("begins", flush=True)
    run(Path(sys.argv[1]), tower(encode=slowly))
    print("done", flush=True)
