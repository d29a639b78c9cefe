"""A small zip of icons, packed as `experiments/recipes/make_icons.py` does: sheets of 2 x 2."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, PER_SIDE = 8, 2
# (set, caption, 0 colour or 1 black, usefulness)
ROWS = (
    ("painter", "red house", 0, 0),
    ("twemoji", "house", 0, 0),
    ("painter", "green tree", 0, 0),
    ("game-icons", "castle", 1, 0),
    ("lines", "castle", 1, 0),
    ("lines", "arrow left", 1, 1),
    ("lines", "split v", 1, 3),
    ("iconmind", "red house", 1, 1),
    ("dots", "flaky", 1, 2),
)


def drawing(number: int, kind: int, size: int = SIZE) -> np.ndarray:
    """uint8 [size, size, 4 or 1], different for every number; transparent in its first row."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(1, 256, (size, size, 1 if kind else 4), dtype=np.uint8)
    pixels[0, :, -1] = 0
    return pixels


def write_icons(
    path: Path, rows: Sequence[tuple[str, str, int, int]] = ROWS, size: int = SIZE
) -> Path:
    """The zip; rows in colour stand before those in black."""
    sets, captions = (sorted({row[i] for row in rows}) for i in (0, 1))
    sheets: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(path, "w") as archive:
        for kind, title in enumerate(("colour", "black")):
            numbers = [n for n, row in enumerate(rows) if row[2] == kind]
            for sheet in range(0, len(numbers), PER_SIDE**2):
                part = numbers[sheet : sheet + PER_SIDE**2]
                canvas = np.zeros((PER_SIDE**2, size, size, 1 if kind else 4), np.uint8)
                canvas[: len(part)] = [drawing(n, kind, size) for n in part]
                tiled = canvas.reshape(PER_SIDE, PER_SIDE, size, size, -1).swapaxes(1, 2)
                pixels = tiled.reshape(PER_SIDE * size, PER_SIDE * size, -1)
                pixels = np.repeat(pixels, 3, axis=2) if kind else pixels
                packed = io.BytesIO()
                Image.fromarray(pixels).save(packed, "WEBP", lossless=True, exact=True)
                name = f"{title}/{sheet // PER_SIDE**2:04d}.webp"
                archive.writestr(name, packed.getvalue())
                sheets[name] = (part[0], part[-1] + 1)
        index = {
            "size": size,
            "per_side": PER_SIDE,
            "sets": [{"prefix": prefix} for prefix in sets],
            "captions": captions,
            "keywords": {"castle": ["fort", "tower"]},
            "sheets": sheets,
            "set": [sets.index(row[0]) for row in rows],
            "caption": [captions.index(row[1]) for row in rows],
            "kind": [row[2] for row in rows],
            "usefulness": [row[3] for row in rows],
        }
        archive.writestr("index.json", json.dumps(index))
    return path
