"""Zero-shot classification with prompt ensembles (paper section 3.1.4)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Encode = Callable[[np.ndarray], Any]


def in_blocks(encode: Encode, rows: np.ndarray, block: int) -> np.ndarray:
    """`encode` over `block` rows at a time: [n, ...] -> [n, e].

    The last block is filled up with its first row, so that one shape is compiled, and cut again.
    """
    parts = []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        missing = block - len(part)
        filled = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
        parts.append(np.asarray(encode(filled))[: len(part)])
    return np.concatenate(parts)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one: [..., e] -> [..., e]."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def classifier(
    encode_text: Callable[[Sequence[str]], np.ndarray],
    labels: Sequence[str],
    prompts: Sequence[str],
) -> np.ndarray:
    """One unit vector a label, the normalised mean over prompts -> [classes, e].

    Args:
      encode_text: texts -> text_features [n, e], normalised or not.
      labels: class names.
      prompts: templates, each with one slot "{}".
    """
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ValueError(f"prompt {prompt!r} needs exactly one slot {{}} for the label")
    texts = [prompt.format(label) for prompt in prompts for label in labels]
    embeds = unit(encode_text(texts)).reshape(len(prompts), len(labels), -1)
    return unit(embeds.mean(axis=0))
