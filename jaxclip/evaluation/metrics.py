"""Metrics over scores, block by block, in NumPy: memory does not grow with the pictures.

Ties. Among classes the first in the list wins, as with NumPy's and PyTorch's argmax: the released
ImageNet list names two classes "missile" and two "sunglasses", which no model can tell apart, and
the published figures count them so. In retrieval, whose candidates have no order, a tie counts as
lost. A score that is not a number never wins.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np


def ranks(scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The number of wrong candidates that score at least as high as the right one.

    scores [n, m], answers [n] in 0..m-1 -> [n]; 0 is a hit. A tie counts as lost, so a constant
    score earns nothing; neither does a score that is not a number.
    """
    right = scores[np.arange(len(scores)), answers]
    return (~(scores < right[:, None])).sum(axis=1) - 1


def recall(rank: np.ndarray, k: int) -> float:
    """Share of queries whose answer is among the first k: ranks [n] -> scalar in 0..1."""
    return float(np.mean(rank < k))


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best classes of every row, best first; ties go to the earlier class.

    scores [n, c] -> (classes int [n, min(k, c)], their scores [n, min(k, c)]).
    """
    k = min(k, scores.shape[1])
    if not np.isfinite(scores).all():
        number = np.where(np.isnan(scores), -np.inf, scores)
        classes = np.argsort(-number, axis=1, kind="stable")[:, :k]
        return classes, np.take_along_axis(scores, classes, axis=1)
    left, rows = scores.copy(), np.arange(len(scores))
    classes = np.empty((len(scores), k), np.int64)
    for column in range(k):  # for few k many times as fast as sorting
        classes[:, column] = left.argmax(axis=1)
        left[rows, classes[:, column]] = -np.inf
    return classes, scores[rows[:, None], classes]


class Tally:
    """The confusion matrix of a classifier, and every metric that follows from it.

    confusion: int64 [c, c], label down, answer across.
    among_five: int64 [c], by label, answers with the label among the first five.
    """

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)
        self.among_five = np.zeros(classes, np.int64)

    def add(self, labels: np.ndarray, top: np.ndarray) -> None:
        """Count a block: labels int [n] in 0..c-1, top int [n, k] as `top_k` returns it.

        ValueError for a label or an answer that is no class.
        """
        classes = len(self.confusion)
        for name, values in (("label", labels), ("answer", top)):
            if values.size and not (values.min() >= 0 and values.max() < classes):
                raise ValueError(f"{name}: expected 0..{classes - 1}, got one outside")
        cells = labels * classes + top[:, 0]
        self.confusion += np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        found = (top[:, :5] == labels[:, None]).any(axis=1)
        self.among_five += np.bincount(labels[found], minlength=classes)

    @property
    def counts(self) -> np.ndarray:
        """Pictures of every class, [c]."""
        return self.confusion.sum(axis=1)

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    def per_class(self) -> np.ndarray:
        """Accuracy of every class, [c]; not a number where it has no picture."""
        counts = self.counts
        hits = np.diagonal(self.confusion)
        return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)

    def metrics(self) -> dict[str, float]:
        """top1, top5, mean_per_class (over the classes that have pictures), shares in 0..1.

        ValueError when nothing was counted.
        """
        if self.n == 0:
            raise ValueError("expected pictures that count, got none; there is nothing to measure")
        return {
            "top1": float(np.trace(self.confusion) / self.n),
            "top5": float(self.among_five.sum() / self.n),
            "mean_per_class": float(np.nanmean(self.per_class())),
        }

    def interval(self, metric: str, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval, 95 %, of "top1", "top5" or "mean_per_class".

        Pictures are drawn with replacement: for a share that is a binomial count, and for the mean
        over classes a multinomial one over (class, hit or miss), drawn from the tally itself.
        """
        rng = np.random.default_rng(seed)
        hits = self.among_five if metric == "top5" else np.diagonal(self.confusion)
        if metric in ("top1", "top5"):
            drawn = rng.binomial(self.n, hits.sum() / self.n, size=draws) / self.n
        elif metric == "mean_per_class":
            drawn = self._drawn_means(rng, hits, draws)
        else:
            raise ValueError(f"metric: expected top1, top5 or mean_per_class, got {metric!r}")
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(low), float(high)

    def _drawn_means(self, rng: np.random.Generator, hits: np.ndarray, draws: int) -> np.ndarray:
        cells = np.concatenate([hits, self.counts - hits])  # [2 c]
        means = np.empty(draws)
        for i in range(draws):
            hit, miss = rng.multinomial(self.n, cells / self.n).reshape(2, -1)
            seen = hit + miss > 0
            means[i] = (hit[seen] / (hit + miss)[seen]).mean()
        return means


# Retrieval ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """Ranks of the right answers; 0 is a hit.

    image_to_text: int [n], of the best of a picture's captions among all captions.
    text_to_image: int [m], of a caption's picture among all pictures.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray

    def metrics(self) -> dict[str, float]:
        """image_to_text_r1, _r5, _r10 and text_to_image_r1, _r5, _r10, shares in 0..1."""
        return {
            f"{way}_r{k}": recall(rank, k)
            for way, rank in (
                ("image_to_text", self.image_to_text),
                ("text_to_image", self.text_to_image),
            )
            for k in (1, 5, 10)
        }

    def interval(
        self, metric: str, owner: np.ndarray, draws: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """Bootstrap interval, 95 %, of one of `metrics`; pictures are drawn, with their captions.

        owner: int [m], the picture that each caption belongs to.
        """
        way, _, k = metric.rpartition("_r")
        rng = np.random.default_rng(seed)
        n = len(self.image_to_text)
        if way == "image_to_text":
            hits, size = (self.image_to_text < int(k)).astype(float), np.ones(n)
        else:
            found = self.text_to_image < int(k)
            hits, size = np.bincount(owner, found, n), np.bincount(owner, minlength=n).astype(float)
        drawn = np.empty(draws)
        for i in range(draws):
            times = rng.multinomial(n, np.full(n, 1 / n))
            drawn[i] = (times @ hits) / max(times @ size, 1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(low), float(high)


def retrieve(I_e: np.ndarray, T_e: np.ndarray, owner: np.ndarray, block: int = 1024) -> Retrieved:
    """Ranks both ways between pictures and their captions, a block of queries at a time.

    Args:
      I_e: image embeds [n, e].
      T_e: text embeds [m, e].
      owner: int [m] in 0..n-1, the picture that each caption belongs to; a picture may have several
        captions, and has at least one.
      block: queries at a time; scores are [block, m] and [block, n].
    """
    n = len(I_e)
    if owner.min() < 0 or owner.max() >= n or len(np.unique(owner)) < n:
        raise ValueError(
            f"owner: expected each of the pictures 0..{n - 1} at least once, got others"
        )
    image_ranks = np.concatenate(
        [_best_own(I_e[s] @ T_e.T, owner[None] == np.arange(n)[s, None]) for s in _slices(n, block)]
    )
    text_ranks = np.concatenate([ranks(T_e[s] @ I_e.T, owner[s]) for s in _slices(len(T_e), block)])
    return Retrieved(image_ranks, text_ranks)


def _slices(n: int, block: int) -> Iterator[slice]:
    return (slice(start, start + block) for start in range(0, n, block))


def _best_own(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """scores [b, m], own bool [b, m] -> [b]: others that score at least as high as the best own."""
    number = np.where(np.isnan(scores), -np.inf, scores)
    right = np.where(own, number, -np.inf).max(axis=1, keepdims=True)  # [b, 1]
    return (~own & ~(scores < right)).sum(axis=1)
