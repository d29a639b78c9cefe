"""Small data sets in the format of Fashion-MNIST's four files, and what their checksums are."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np

from experiments.recipes.fashion_mnist import PACKED, first_header

SIDE = 28
COUNTS = {"train": 60, "t10k": 30}


def packed(array: np.ndarray) -> bytes:
    """uint8 [...] as an idx file, big-endian."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 28, 28] and labels [n], all ten equally often: a bar whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
    images = rng.integers(0, 60, (count, SIDE, SIDE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 4 : 2 * label + 6] = 250
    return images, labels


def write(folder: Path, *, labels: np.ndarray | None = None) -> dict[str, str]:
    """The four files with a bare gzip header, as Debian has them; the sums they are registered by.

    labels: of the training set, instead of right ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    registered = {}
    for seed, (start, count) in enumerate(COUNTS.items()):
        images, right = pictures(count, seed)
        chosen = labels if labels is not None and start == "train" else right
        for name, array in (("images-idx3", images), ("labels-idx1", chosen)):
            file = f"{start}-{name}-ubyte"
            content = gzip.compress(packed(array), mtime=PACKED[start] + 99)
            (folder / f"{file}.gz").write_bytes(content)
            registered[file] = hashlib.sha256(first_header(content, file)).hexdigest()
    return registered
