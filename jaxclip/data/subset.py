"""A random subset of a source, for a quick look."""

from typing import Any

import numpy as np


class Subset:
    """`limit` records of a source in its order, drawn at random; the same ones for the same seed.

    >>> Subset("abcdefgh", 3)[2] in "abcdefgh"
    True
    """

    def __init__(self, source: Any, limit: int, seed: int = 0) -> None:
        self.source = source
        self.names: tuple[str, ...] = getattr(source, "names", ())
        order = np.random.default_rng(seed).permutation(len(source))
        self.rows = np.sort(order[:limit])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.source[int(self.rows[i])]
