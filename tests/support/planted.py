"""A planted model: it tells plain colours apart without fail, so every confusion is known exactly.

The image tower is a tiny random ViT; the text tower a bag of words in which the colour's word has
been given the features of the colour, and all other words have none. So a plain picture's nearest
name is its colour's, with a cosine of 1, whatever templates are used.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip, parameters
from jaxclip.tokenizer import tokenize
from tests.support import tiny

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 160, 40),
    "blue": (30, 60, 220),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "yellow": (230, 220, 40),
}
SIZE, WIDTH = 20, 16
CONFIG = ClipConfig(
    VisionConfig(image_size=SIZE, patch_size=5, width=24, layers=2, heads=3),
    TextConfig(width=WIDTH, context_length=13, vocab_size=49408, kind="cbow"),
    embed_dim=WIDTH,
)
# label down, answer across: nothing regular, a class without a picture, one never named
TABLE = np.array(
    [
        [7, 2, 0, 0, 1, 0],
        [0, 4, 3, 0, 0, 0],
        [1, 0, 5, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [2, 2, 2, 0, 6, 0],
        [0, 1, 0, 0, 0, 9],
    ]
)


def png(colour: str) -> bytes:
    """A plain picture; the size differs with the colour, so that resizing takes part."""
    file = io.BytesIO()
    Image.new("RGB", (21 + len(colour), 24), COLOURS[colour]).save(file, "png")
    return file.getvalue()


def write(path: Path) -> Path:
    """The planted model as a checkpoint."""
    # text layers 1: a bag of words has none; kept small
    params = tiny.params(
        3, vision_layers=2, text_width=WIDTH, embed=WIDTH, vocab=49408, context=13, text="cbow"
    )
    params["text"]["text_projection"] = np.eye(WIDTH)
    flat = {k: np.asarray(v, np.float32) for k, v in checkpoint.flatten(params).items()}
    model = parameters.from_flat(flat, clip.abstract(CONFIG, remat="none"))
    preprocess = Preprocess(SIZE)
    pixels = np.stack([preprocess(Image.open(io.BytesIO(png(colour)))) for colour in COLOURS])
    features = np.asarray(jax.jit(lambda m, x: m.encode_image(x))(model, pixels))
    table = np.zeros((49408, WIDTH), np.float32)
    for colour, feature in zip(COLOURS, features, strict=True):
        table[tokenize(colour)[0, 1]] = feature
    flat["text.token_embedding.embedding"] = table
    checkpoint.save(path, flat, CONFIG, {"source": "planted"})
    return path


def rows(table: np.ndarray = TABLE) -> list[tuple[str, str]]:
    """(label, colour) of every picture: the table is what a planted model makes of them."""
    names = list(COLOURS)
    return [
        (names[i], names[j]) for i, j in np.ndindex(*table.shape) for _ in range(int(table[i, j]))
    ]


def class_folders(root: Path, pictures: Sequence[tuple[str, str]]) -> Path:
    """Pictures in folders by label; every colour has a folder."""
    for colour in COLOURS:
        (root / colour).mkdir(parents=True)
    for number, (label, colour) in enumerate(pictures):
        (root / label / f"{number:03d}.png").write_bytes(png(colour))
    return root


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar file of these members."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
