"""Pictures, pixels, texts and tokens to run through another program, and scripts that do it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip import __version__
from jaxclip.config import ClipConfig
from jaxclip.doctor.knobs import right_walk
from jaxclip.images.preprocess import Preprocess
from jaxclip.tokenizer import VOCAB_SIZE, tokenize

Array = np.ndarray
PICTURES = 5
TEXTS = (  # short ones first: a search on full-size models starts with them
    "a diagram",
    "A photo of a CAT, and a dog!",
    "Café crème at the Élysée: a naïve façade",
    "red fox, red fox, red fox: 3 red foxes",
    "It's the dog's ball; they've lost it (again)",
    "rocket",
    "An old wooden boat on a calm lake at dawn, with mountains and a small red house behind it",
    "The quick brown fox jumps over the lazy dog. " * 12,  # longer than the context
)
KEYS = {
    "picture_K": "uint8 [h, w, 3], red green blue, no file: give them to your preprocessing",
    "pixels": "float32 [n, 3, size, size]: the model's preprocessing of the pictures",
    "texts": "[m] strings: give them to your tokenizer; empty where the vocabulary is not CLIP's",
    "tokens": "int32 [m, context]: the model's tokens of the texts, cut to the context",
}


def digest(flat: dict[str, Array]) -> str:
    """SHA-256 over the weights, names and shapes included, in float32."""
    total = hashlib.sha256()
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name], np.float32)
        total.update(f"{name} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _noise(rng: np.random.Generator, high: int, wide: int) -> Array:
    """[high, wide, 3] in 0..1: coloured noise of four grains, the finest of single pixels."""
    total = np.zeros((high, wide, 3))
    for grain, weight in ((1, 0.14), (3, 0.16), (9, 0.2), (31, 0.25)):
        coarse = rng.uniform(-1, 1, (high // grain + 2, wide // grain + 2, 3))
        large = np.repeat(np.repeat(coarse, grain, axis=0), grain, axis=1)
        total += weight * large[:high, :wide]
    return total


def draw_picture(rng: np.random.Generator, high: int, wide: int) -> Array:
    """A picture [high, wide, 3] uint8: slopes, noise, hard edges; no symmetry, nothing grey."""
    y, x = np.mgrid[0:high, 0:wide]
    slope = np.stack([x / wide, y / high, (x + 2 * y) / (wide + 2 * high)], axis=-1)
    picture = 0.15 + 0.6 * slope * rng.uniform(0.5, 1, 3) + _noise(rng, high, wide)
    for _ in range(6):  # rectangles and discs of one colour
        cy, cx, radius = rng.uniform(0, high), rng.uniform(0, wide), rng.uniform(2, high / 4 + 3)
        square = np.maximum(np.abs(y - cy), np.abs(x - cx)) < radius
        inside = square if rng.uniform() < 0.5 else np.hypot(y - cy, x - cx) < radius
        picture[inside] = rng.uniform(0, 1, 3)
    picture[:: max(3, high // 9), wide // 2 :] = rng.uniform(0, 1, 3)  # lines one pixel thin
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _longer(size: int, short: int, about: float) -> int:
    """A long side near about * short at which each way of rounding gives another crop.

    Scaled to `size` it ends on a half or more (truncation differs from rounding), and what is cut
    leaves 3 modulo 4 (a half to the even side differs from a half down).
    """
    start = int(about * short)
    for longer in range(start, start + 40 * short):
        scaled = size * longer / short
        if scaled % 1 >= 0.5 and (int(scaled) - size) % 4 == 3:
            return longer
    return start


def make_pictures(size: int, seed: int = 0) -> list[Array]:
    """Wide, tall, smaller than the input, nearly square, large and wide; [h, w, 3] uint8 each."""
    rng = np.random.default_rng(seed)
    middle, small = size + size // 2 + 1, max(5, 3 * size // 5)
    large = 2 * size + 3
    sizes = [
        (middle, _longer(size, middle, 1.4)),
        (_longer(size, middle, 1.6), middle),
        (small, _longer(size, small, 1.3)),
        (_longer(size, size + 3, 1.05), size + 3),
        (large, _longer(size, large, 1.9)),
    ]
    return [draw_picture(rng, high, wide) for high, wide in sizes]


def random_tokens(vocab: int, context: int, seed: int = 0) -> Array:
    """Ids [m, l] for a vocabulary that is not CLIP's: start, random ids, end, zeros."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((len(TEXTS), context), np.int32)
    lengths = [min(context - 2, n) for n in (3, 6, 4, 8, 5, 1, context // 2, context - 2)]
    for row, words in zip(tokens, lengths, strict=True):
        row[0] = max(0, vocab - 2)
        row[1 : 1 + words] = rng.integers(1, max(2, vocab - 2), size=words)
        row[1 + words] = vocab - 1
    return tokens


def make_probe(
    flat: dict[str, Array], config: ClipConfig, name: str = "", seed: int = 0
) -> dict[str, Array]:
    """The arrays of a probe file for a model's flat parameters and config.

    ValueError for a model whose towers or tokenizer are not as the released ones.
    """
    right_walk(config)  # refuses what `diagnose` would
    size, text = config.vision.image_sides[0], config.text  # square: others were refused
    pictures = make_pictures(size, seed)
    from PIL import Image

    preprocess = Preprocess.of(config)
    pixels = np.stack([preprocess(Image.fromarray(picture)) for picture in pictures])
    has_words = text.vocab_size == VOCAB_SIZE
    texts = TEXTS if has_words else ("",) * len(TEXTS)
    if has_words:
        tokens = tokenize(list(texts), text.context_length, truncate=True)
    else:
        tokens = random_tokens(text.vocab_size, text.context_length, seed)
    meta: dict[str, Any] = {"format": "jaxclip-probe-1", "jaxclip": __version__, "model": name}
    meta |= {"config": json.loads(config.to_json()), "weights": digest(flat), "keys": KEYS}
    return {
        **{f"picture_{i}": picture for i, picture in enumerate(pictures)},
        "pixels": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),  # [n, c, h, w]
        "texts": np.array(texts),
        "tokens": tokens,
        "meta": np.array(json.dumps(meta)),
    }


def write(path: Path, probe: dict[str, Array]) -> None:
    """Write a probe as one npz file without pickles."""
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **probe)
