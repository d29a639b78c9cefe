"""Pairs to image embeddings, caption embeddings and the picture index of each caption."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxclip.data.pairs import Pair
from jaxclip.evaluation.features import require_finite
from jaxclip.reference import l2_normalize


def captions(pair: Pair) -> list[str]:
    """The captions of a pair that are not blank."""
    return [caption.strip() for caption in pair.captions if caption.strip()]


def why_unusable(pair: Pair) -> str | None:
    """Why a pair cannot count, whatever its picture is; None if it can."""
    return None if captions(pair) else "no caption"


def embed_pairs(
    blocks: Iterable[tuple[np.ndarray, Sequence[Sequence[str]]]],
    encode_text: Callable[[Sequence[str]], Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image embeds [n, e], text embeds [m, e], owner int [m]: the picture index of each text).

    Args:
      blocks: (features [b, e], the captions of each of the b pictures); b may be 0.
      encode_text: texts -> text_features [m, e].

    ValueError when there is no usable pair.
    """
    features: list[np.ndarray] = []
    texts: list[Sequence[str]] = []
    for image_features, of_pictures in blocks:
        if of_pictures:
            features.append(image_features)
            texts += of_pictures
    if not texts:
        raise ValueError("expected a picture with a caption, got none that can be used")
    owner = np.repeat(np.arange(len(texts)), [len(of_picture) for of_picture in texts])
    flat = [caption for of_picture in texts for caption in of_picture]
    T_f = require_finite(np.asarray(encode_text(flat), np.float32), "the captions")
    return l2_normalize(np.concatenate(features)), l2_normalize(T_f), owner
