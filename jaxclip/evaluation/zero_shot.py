"""Zero-shot classifiers: class names in prompt templates (paper section 3.1.4).

Annotated: chapter 11, "Zero-shot and prompts".
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxclip.data.labelled import Example
from jaxclip.evaluation.prompts import require_slots
from jaxclip.reference import l2_normalize


def why_unusable(example: Example, classes: int) -> str | None:
    """Why a labelled picture cannot count, whatever it shows; None if it can."""
    return None if 0 <= example.label < classes else "label out of range"


def fill_templates(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, a class's texts together: p * c texts.

    >>> fill_templates(["cat", "dog"], ["a {}.", "my {}."])
    ['a cat.', 'my cat.', 'a dog.', 'my dog.']
    """
    return [template.format(name) for name in classes for template in require_slots(templates)]


def average_prompts(features: np.ndarray, classes: int) -> np.ndarray:
    """One unit vector a class [c, e] from the text_features [c * p, e] of `fill_templates`.

    The released order (notebook Prompt_Engineering_for_ImageNet: zeroshot_classifier): normalise
    each prompt's embedding, average over the prompts, normalise again.
    """
    embeds = l2_normalize(features).reshape(classes, -1, features.shape[-1])  # [c, p, e]
    return l2_normalize(embeds.mean(axis=1))


def build_classifier(
    encode_text: Callable[[Sequence[str]], np.ndarray],
    classes: Sequence[str],
    templates: Sequence[str],
) -> np.ndarray:
    """One unit vector a class, the normalised mean over its prompts -> [c, e].

    Args:
      encode_text: texts -> text_features [n, e], normalised or not.
      classes: names.
      templates: each with one slot "{}".
    """
    return average_prompts(encode_text(fill_templates(classes, templates)), len(classes))
