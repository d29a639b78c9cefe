"""The endless global order of examples: which example is at a position, computed without state.

Batch k is positions k * batch_size to (k + 1) * batch_size - 1. Sources share the positions by
weight. The guarantee for a source depends on its share, the most of its examples in a batch:

  two shares or more   each example once an epoch, each epoch in another order, and no example twice
                       in a batch, also where an epoch ends within the batch
  less than that       every batch draws anew from all examples; no example is drawn a second time
                       before all of them have been

Each order follows from (seed, source, epoch or batch), so no two of them are alike.
"""

import bisect
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

ROUNDS = 6
_WORD = 2**64 - 1


class Shuffled:
    """A random order of 0 ... length - 1 in constant memory: a Feistel network, walked in cycles.

    >>> sorted(Shuffled(5, [7])[i] for i in range(5))
    [0, 1, 2, 3, 4]
    """

    def __init__(self, length: int, key: Sequence[int]) -> None:
        self.length = length
        # at least 8 bits in all: on fewer, few orders can be reached
        self.half = max(4, ((length - 1).bit_length() + 1) // 2)
        state = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
        self.keys = [int(word) for word in state]

    def __getitem__(self, i: int) -> int:
        half, mask = self.half, (1 << self.half) - 1
        while True:
            left, right = i >> half, i & mask
            for key in self.keys:
                mixed = (right + key) * 0x9E3779B97F4A7C15 & _WORD
                mixed = (mixed ^ mixed >> 32) * 0xC2B2AE3D27D4EB4F & _WORD
                left, right = right, left ^ mixed >> 64 - half
            i = left << half | right
            if i < self.length:
                return i


class Order:
    """An endless sequence of (source, index in it).

    Args:
      lengths: of the sources.
      weights: of the sources, in examples.
      batch_size: examples of a batch.
      seed: not negative.

    Raises:
      ValueError: a weight is not positive and finite, or the sources hold fewer examples than a
        batch, which would then have to hold one twice.

    >>> order = Order([9], [1.0], batch_size=3, seed=0)
    >>> sorted(order[i] for i in range(9)) == [(0, i) for i in range(9)]
    True
    """

    def __init__(
        self, lengths: Sequence[int], weights: Sequence[float], batch_size: int, seed: int
    ) -> None:
        if len(weights) != len(lengths) or not all(0 < w < math.inf for w in weights):
            raise ValueError(
                f"weights: expected {len(lengths)} positive numbers, one a data set, "
                f"got {list(weights)}"
            )
        if sum(lengths) < batch_size:
            raise ValueError(
                f"batch_size: expected at most {sum(lengths)}, as many pairs as the data hold (one "
                f"that is in a batch twice would count as its own wrong answer), got {batch_size}"
            )
        exact = [Fraction(weight) for weight in weights]
        common = math.lcm(*(weight.denominator for weight in exact))
        self.weights = [int(weight * common) for weight in exact]
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.shares = self._shares()
        self._by_source = [
            (_Epochs if length >= 2 * share else _Draws)(self, source)
            for source, (length, share) in enumerate(zip(lengths, self.shares, strict=True))
        ]

    def counts(self, positions: int) -> list[int]:
        """Of the first `positions` positions, each source's number; none shrinks as they grow."""
        found, rest = [], sum(self.weights)
        for weight in self.weights:
            others = positions * (rest - weight) // rest
            found.append(positions - others)
            positions, rest = others, rest - weight
        return found

    def _shares(self) -> list[int]:
        """The most positions of a batch that each source can have, rounded as in `counts`."""
        found, positions, rest = [], self.batch_size, sum(self.weights)
        for weight in self.weights:
            found.append(-(-positions * weight // rest))
            positions, rest = -(-positions * (rest - weight) // rest), rest - weight
        return found

    def repeats(self, source: int) -> int:
        """How often one example of a source can be in a batch; 1 but for small sources."""
        return -(-self.shares[source] // self.lengths[source])

    def patience(self) -> int:
        """Positions within which every source has yielded all its examples, nearly certainly."""
        positions = [
            length * sum(self.weights) // w
            for length, w in zip(self.lengths, self.weights, strict=True)
        ]
        return 2 * max(positions) + 20 * self.batch_size

    def __getitem__(self, position: int) -> tuple[int, int]:
        before, after = self.counts(position), self.counts(position + 1)
        source = next(i for i, count in enumerate(before) if after[i] > count)
        return source, self._by_source[source].at(position, before[source])


class _Epochs:
    """A source of two shares or more: once an epoch, and never twice in a batch.

    Where an epoch ends within a batch, examples of its end that are also in that batch's part of
    the next epoch are swapped with others from its middle.
    """

    def __init__(self, order: Order, source: int) -> None:
        self.order, self.source, self.length = order, source, order.lengths[source]
        self.shuffled = functools.lru_cache(4)(self._shuffled)
        self.moved = functools.lru_cache(4)(self._moved)

    def at(self, position: int, i: int) -> int:
        """The index at a position, which is the i-th of this source."""
        epoch, within = divmod(i, self.length)
        return self.shuffled(epoch)[self.moved(epoch).get(within, within)]

    def _shuffled(self, epoch: int) -> Shuffled:
        return Shuffled(self.length, [self.order.seed, self.source, epoch])

    def _seam(self, epoch: int) -> tuple[int, int]:
        """Of the batch within which an epoch begins: positions before and after; (0, 0) if none."""
        begin, size = epoch * self.length, self.order.batch_size

        def until(batch: int) -> int:
            return self.order.counts(batch * size)[self.source]

        batch = bisect.bisect_right(range(2**62), begin, key=until) - 1
        before = begin - until(batch)
        return (before, until(batch + 1) - begin) if before else (0, 0)

    def _moved(self, epoch: int) -> dict[int, int]:
        head = self._seam(epoch)[1]
        before, after = self._seam(epoch + 1)
        own, next_ = self.shuffled(epoch), self.shuffled(epoch + 1)
        coming = {next_[i] for i in range(after)}
        end = self.length - before
        tail = [i for i in range(end, self.length) if own[i] in coming]
        middle = (i for i in range(head, end) if own[i] not in coming)
        swaps = dict(zip(tail, middle, strict=False))
        return swaps | {new: old for old, new in swaps.items()}


class _Draws:
    """A source of less than two shares: each batch takes the first examples of its own order."""

    def __init__(self, order: Order, source: int) -> None:
        self.order, self.source, self.length = order, source, order.lengths[source]
        self.shuffled = functools.lru_cache(16)(self._shuffled)

    def at(self, position: int, i: int) -> int:
        """The index at a position, which is the i-th of this source."""
        batch = position // self.order.batch_size
        first = self.order.counts(batch * self.order.batch_size)[self.source]
        turn, within = divmod(i - first, self.length)
        return self.shuffled(batch, turn)[within]

    def _shuffled(self, batch: int, turn: int) -> Shuffled:
        return Shuffled(self.length, [self.order.seed, self.source, batch, turn])
