"""Pictures and labels: cosines, probabilities, and whether any label fits at all.

Softmax makes the probabilities of the given labels add up to 1, also where none of them fits. So
the best label's cosine is compared with those of 100 unrelated words, the class names of CIFAR-100,
in the same templates. With c labels, `none_fits` says that the best of them is not above what the
best of c unrelated words reaches in 95 of 100 cases, if a picture's cosines with words are normal.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from jaxclip.evaluation import prompts
from jaxclip.evaluation.classifier_cache import cached_classifier, cached_words, text_checksum
from jaxclip.evaluation.features import require_finite
from jaxclip.reference import l2_normalize

UNRELATED = "cifar100"  # whose class names are everyday nouns
CONFIDENCE = 0.95
LEAST_WORDS = 30  # that a model must know, else there is no mark
MOST_TEMPLATES = 8  # for the unrelated words: 80 templates would be 8,000 texts

Scores = Literal["probability", "cosine"]


@dataclasses.dataclass(frozen=True)
class LabelScore:
    """A label's scores for one picture: the logit is the cosine, scaled (and shifted by a bias)."""

    label: str
    probability: float
    cosine: float
    logit: float


@dataclasses.dataclass(frozen=True)
class ClassifiedPicture:
    """A picture's path and its labels, best first.

    none_fits: whether the best label is within the noise of unrelated words; None where the model
    knows too few of them to tell.
    """

    picture: str
    labels: tuple[LabelScore, ...]
    none_fits: bool | None

    @property
    def remarks(self) -> list[str]:
        """What a person has to be told about the labels."""
        found = ["no label has the score that was asked for"] * (not self.labels)
        return found + ["no label fits: within the noise of unrelated words"] * bool(self.none_fits)

    def select(
        self, top: int | None = None, threshold: float | None = None, by: Scores = "probability"
    ) -> "ClassifiedPicture":
        """The same with its `top` best labels only, and with those of a score of `threshold`."""
        kept = self.labels[:top]
        if threshold is not None:
            kept = tuple(x for x in kept if getattr(x, by) >= threshold)
        return dataclasses.replace(self, labels=kept)


def unrelated_words(
    model: Any, templates: Sequence[str], cache: Path | None, weights: str = ""
) -> np.ndarray:
    """Unit vectors [w, e] of the unrelated words that the model knows, in a few of the templates.

    Arguments as of `cached_words`.
    """
    few = templates[:: -(-len(templates) // MOST_TEMPLATES)]
    return cached_words(model, prompts.load(UNRELATED).classes, few, cache, weights=weights)


@dataclasses.dataclass(frozen=True)
class LabelClassifier:
    """Labels as vectors: embeds [c, e] of unit length, and words [w, e], unrelated ones."""

    labels: tuple[str, ...]
    embeds: np.ndarray
    words: np.ndarray

    @classmethod
    def make(
        cls, model: Any, labels: Sequence[str], templates: Sequence[str], cache: Path | None
    ) -> "LabelClassifier":
        """The classifier of a `Clip` with a text tower; what is kept in `cache` is used again.

        Raises:
          ValueError: a template without its slot, or a text too long for the model.
        """
        weights = text_checksum(model)
        embeds = cached_classifier(model, labels, templates, cache, weights=weights)
        return cls(tuple(labels), embeds, unrelated_words(model, templates, cache, weights))

    def rank(
        self, model: Any, pictures: Sequence[str], features: np.ndarray
    ) -> list[ClassifiedPicture]:
        """Every picture with all labels, best first.

        Args:
          model: the `Clip`, of which no tower is used.
          pictures: n paths.
          features: image_features [n, e], normalised or not.
        """
        image_embeds = l2_normalize(require_finite(features, "the pictures"))
        logits = np.asarray(model.logits(image_embeds, self.embeds))  # [n, c]
        probabilities = np.asarray(model.probabilities(logits))
        cosines = image_embeds @ self.embeds.T
        marks = self._none_fits(image_embeds, cosines.max(axis=1))
        rows = zip(pictures, probabilities, cosines, logits, marks, strict=True)
        return [
            ClassifiedPicture(picture, self._labels(*scores), none_fits)
            for picture, *scores, none_fits in rows
        ]

    def _labels(
        self, probabilities: np.ndarray, cosines: np.ndarray, logits: np.ndarray
    ) -> tuple[LabelScore, ...]:
        return tuple(
            LabelScore(self.labels[i], float(probabilities[i]), float(cosines[i]), float(logits[i]))
            for i in np.argsort(-logits, kind="stable")
        )

    def _none_fits(self, image_embeds: np.ndarray, best: np.ndarray) -> list[bool | None]:
        if len(self.words) < LEAST_WORDS:
            return [None] * len(best)
        noise = image_embeds @ self.words.T  # [n, w]
        sigmas = ndtri(CONFIDENCE ** (1 / len(self.labels)))  # which the best of c words reaches
        return [bool(x) for x in best <= noise.mean(axis=1) + sigmas * noise.std(axis=1)]
