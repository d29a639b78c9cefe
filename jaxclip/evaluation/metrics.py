"""Metrics over scores, ties decided against the model, in NumPy."""

import numpy as np


def ranks(scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """How many wrong candidates score at least as high as the right one.

    scores [n, m], answers [n] in 0..m-1 -> [n]; 0 is a hit. A tie counts as lost, so a constant
    score earns nothing; neither does a score that is not a number.
    """
    right = scores[np.arange(len(scores)), answers]
    return (~(scores < right[:, None])).sum(axis=1) - 1


def recall(rank: np.ndarray, k: int) -> float:
    """Share of queries whose answer is among the first k: ranks [n] -> scalar in 0..1."""
    return float(np.mean(rank < k))
