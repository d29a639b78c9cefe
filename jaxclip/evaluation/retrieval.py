"""Pairs to what retrieval compares: every picture's embedding, every caption's, and whose it is."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxclip.data.pairs import Pair
from jaxclip.evaluation.zero_shot import sound, unit


def words(pair: Pair) -> list[str]:
    """The captions that hold something."""
    return [caption.strip() for caption in pair.captions if caption.strip()]


def unusable(pair: Pair) -> str | None:
    """Why a pair cannot count, whatever its picture is: for `features.streamed`."""
    return None if words(pair) else "no caption"


def embedded(
    blocks: Iterable[tuple[np.ndarray, Sequence[Sequence[str]]]],
    encode_text: Callable[[Sequence[str]], Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image embeds [n, e], text embeds [m, e], int [m]: the picture that each text belongs to).

    Args:
      blocks: (features [b, e], the captions of each of the b pictures); b may be 0.
      encode_text: texts -> text_features [m, e].

    ValueError when no pair could be used.
    """
    features: list[np.ndarray] = []
    texts: list[Sequence[str]] = []
    for image_features, captions in blocks:
        if captions:
            features.append(image_features)
            texts += captions
    if not texts:
        raise ValueError("no picture with a caption could be used")
    owner = np.repeat(np.arange(len(texts)), [len(captions) for captions in texts])
    flat = [caption for captions in texts for caption in captions]
    T_e = unit(sound(np.asarray(encode_text(flat), np.float32), "the captions"))
    return unit(np.concatenate(features)), T_e, owner
