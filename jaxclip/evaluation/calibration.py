"""How far a model's probabilities can be trusted, and the logit scale at which they can.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), sections 2
(expected calibration error) and 4.2 (temperature scaling).
"""

import numpy as np
from scipy.optimize import minimize_scalar

from jaxclip.reference import log_softmax, softmax

BINS = 15  # of the confidence, as in the paper's tables
LEAST, MOST = 0.0, float(np.log(1000.0))  # of a fitted log scale


def with_others(answers: np.ndarray, classes: int, count: int, seed: int = 0) -> np.ndarray:
    """Labels to choose from, [n, count]: the right class of each picture first, others at random.

    Args:
      answers: right classes, int [n].
      classes: number of classes, at least `count`.
      count: labels a picture, each class once.
      seed: of the choice.
    """
    if not 1 <= count <= classes:
        raise ValueError(f"count: expected 1 to {classes}, the number of classes, got {count}")
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(classes)[:count] for _ in answers])
    chosen[(chosen == answers[:, None]) & (np.arange(count) > 0)] = -1
    there = chosen < 0  # the right class stood elsewhere: its place takes what stood first
    chosen = np.where(there, chosen[:, :1], chosen)
    chosen[:, 0] = answers
    return chosen


def calibration_error(probabilities: np.ndarray, answers: np.ndarray) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins of confidence, weighted.

    Args:
      probabilities: [n, labels], rows sum to one.
      answers: right labels, int [n].
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == answers
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right - confidence, BINS)  # [BINS], sums over the pictures of a bin
    return float(np.abs(gaps).sum() / len(answers))


def fit_logit_scale(cosines: np.ndarray, answers: np.ndarray) -> float:
    """The log of the scale of cosines [n, labels] at which the answers [n] are most likely."""
    rows = np.arange(len(answers))

    def loss(log_scale: float) -> float:
        return float(-np.mean(log_softmax(np.exp(log_scale) * cosines)[rows, answers]))

    return float(minimize_scalar(loss, bounds=(LEAST, MOST), method="bounded").x)


def at_scale(cosines: np.ndarray, log_scale: float) -> np.ndarray:
    """The probabilities of labels [n, labels] at a log scale."""
    return softmax(np.exp(log_scale) * cosines)
