"""Near-duplicates: groups of pictures whose vectors' cosine is at least a threshold.

Every pair is compared, a tile of rows with a tile of rows on the device. A chain makes one group:
a near b and b near c join a, b and c, however far a is from c.
"""

import numpy as np

from jaxclip.search.query import Snapshot, product

TILE = 2048  # rows


def _join(parents: np.ndarray, i: int, j: int) -> None:
    """Join the groups of two rows; the smallest row stands for a group."""
    first, second = _root(parents, i), _root(parents, j)
    parents[max(first, second)] = min(first, second)


def _root(parents: np.ndarray, i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return int(i)


def groups_of_rows(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """The group of every row, as the number of its first row: int [n].

    Args:
      vectors: float16 [n, d] of unit length.
      threshold: the least cosine of two pictures of a group.
    """
    parents = np.arange(len(vectors))
    for start in range(0, len(vectors), TILE):
        query = np.ascontiguousarray(vectors[start : start + TILE].astype(np.float32).T)
        for other in range(start, len(vectors), TILE):
            near = product(vectors[other : other + TILE], query) >= threshold  # [m, tile]
            lower, upper = near.nonzero()
            lower, upper = lower + other, upper + start
            apart = lower > upper
            for i, j in zip(lower[apart].tolist(), upper[apart].tolist(), strict=True):
                if parents[i] != parents[j]:
                    _join(parents, i, j)
    return np.array([_root(parents, i) for i in range(len(parents))], int)


def similar(snapshot: Snapshot, threshold: float) -> list[list[bytes]]:
    """Groups of two pictures or more, as paths below the root: the largest first, then by path.

    Files of the same bytes are always in one group.
    """
    contents = snapshot.catalogue.contents(snapshot.model)
    rows = np.array([row for row, _ in contents], int)
    group = dict(
        zip(rows.tolist(), groups_of_rows(snapshot.vectors[rows], threshold).tolist(), strict=True)
    )
    groups: dict[int, list[bytes]] = {}
    for row, path in snapshot.catalogue.paths(snapshot.model, rows.tolist()):
        groups.setdefault(group[row], []).append(path)
    found = [sorted(paths) for paths in groups.values() if len(paths) > 1]
    return sorted(found, key=lambda paths: (-len(paths), paths))
