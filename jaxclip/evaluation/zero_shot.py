"""Zero-shot classification with prompt ensembles (paper section 3.1.4)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxclip.data.labelled import Example
from jaxclip.evaluation.prompts import checked

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


def sound(features: np.ndarray, what: str) -> np.ndarray:
    """The features [n, d], unless a row has no direction: then ValueError, naming `what`."""
    with np.errstate(over="ignore"):  # a length that overflows makes every cosine zero
        lengths = np.linalg.norm(features, axis=-1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(
            f"features of {what} are zero, too large or no numbers; the weights are damaged or "
            "have diverged"
        )
    return features


def unusable(example: Example, classes: int) -> str | None:
    """Why a labelled picture cannot count, whatever it shows; for `features.streamed`."""
    return None if 0 <= example.label < classes else "label out of range"


def prompted(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, a class's texts together: p * c texts.

    >>> prompted(["cat", "dog"], ["a {}.", "my {}."])
    ['a cat.', 'my cat.', 'a dog.', 'my dog.']
    """
    return [template.format(name) for name in classes for template in checked(templates)]


def ensemble(features: np.ndarray, classes: int) -> np.ndarray:
    """One unit vector a class [c, e] from the text_features [c * p, e] of `prompted`.

    The released order (notebook Prompt_Engineering_for_ImageNet: zeroshot_classifier): normalise
    each prompt's embedding, average over the prompts, normalise again.
    """
    embeds = unit(features).reshape(classes, -1, features.shape[-1])  # [c, p, e]
    return unit(embeds.mean(axis=1))


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
    return ensemble(encode_text(prompted(labels, prompts)), len(labels))
