"""Exact search: every vector times the query, on the device, block by block; ties by path.

No approximation and no copy of the vectors: they are mapped from the file, CHUNK bytes at a time.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxclip.search import index
from jaxclip.search.catalogue import Block, Catalogue, Model

CHUNK = 1 << 23  # bytes of vectors a call: they and their float32 copy stay in a CPU's cache
LEAST_ROWS = 64  # a call's rows are a power of two from here: few programs are compiled


class Hit(NamedTuple):
    """A picture, as a path below the root, and its cosine with the query."""

    path: bytes
    score: float


def from_half(bits: Any) -> Any:
    """Finite float16 numbers, given as uint16, in float32, exactly.

    XLA:CPU converts one float16 at a time; whole-number operations are vectorised, 8 times as fast.
    """
    import jax.numpy as jnp
    from jax import lax

    wide = bits.astype(jnp.uint32)
    rest = wide & 0x7FFF
    normal = lax.bitcast_convert_type((rest << 13) + np.uint32(112 << 23), jnp.float32)
    subnormal = rest.astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-24)
    value = jnp.where(rest < 0x400, subnormal, normal)
    return jnp.where(wide >> 15, -value, value)


@functools.cache
def _product() -> Any:
    """[rows, d] uint16 and [d] or [d, m] float32 -> their product in float32, compiled."""
    import jax

    return jax.jit(lambda bits, query: jax.numpy.dot(from_half(bits), query, precision="highest"))


def product(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float16 [rows, d] times float32 [d] or [d, m], on the device."""
    rows = max(LEAST_ROWS, 1 << (len(vectors) - 1).bit_length())
    bits = vectors.view(np.uint16)
    if rows > len(bits):
        bits = np.concatenate([bits, np.zeros((rows - len(bits), bits.shape[1]), np.uint16)])
    return np.asarray(_product()(bits, query))[: len(vectors)]


def rows_a_call(width: int) -> int:
    """Rows of a call: a power of two, so that every call but the last begins at a whole page."""
    return max(LEAST_ROWS, 1 << (max(CHUNK // (2 * width), 1).bit_length() - 1))


def best(
    vectors: np.ndarray, blocks: Sequence[Block], query: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, scores) of the `count` largest products, and of all that equal the last of them.

    Args:
      vectors: float16 [n, d].
      blocks: ranges of rows that count; the others are holes.
      query: float32 [d].
      count: 1 or more.
    """
    rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    step, at = rows_a_call(vectors.shape[1]), 0
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        alive = np.zeros(len(part), bool)
        while at < len(blocks) and blocks[at].first < start + len(part):
            first, end = blocks[at].first, blocks[at].first + blocks[at].rows
            alive[max(first - start, 0) : end - start] = True
            if end > start + len(part):
                break
            at += 1
        found = product(part, query)
        rows = np.concatenate([rows, start + np.flatnonzero(alive)])
        scores = np.concatenate([scores, found[alive]])
        if len(scores) > count:
            keep = scores >= np.partition(scores, -count)[-count]
            rows, scores = rows[keep], scores[keep]
    return rows, scores


class Snapshot:
    """One state of an index for one model, whatever another process writes meanwhile.

    Made by `reading`.
    """

    def __init__(self, catalogue: Catalogue, folder: Path, model: Model) -> None:
        self.catalogue, self.folder, self.model = catalogue, folder, model
        self.blocks = catalogue.blocks(model)
        self.vectors = index.map_rows(folder, model, index.end_of(self.blocks))

    def vector(self, digest: bytes) -> np.ndarray | None:
        """The vector of a content, float32 [d]; None where it has none."""
        row = self.catalogue.row(self.model, digest)
        return None if row is None else self.vectors[row].astype(np.float32)

    def require_sound(self) -> None:
        """ValueError where a block is not what was written: its ranking would be wrong."""
        bad = index.damaged(self.folder, self.model, self.blocks)
        if bad:
            raise ValueError(
                f"{str(self.folder)!r}: expected sound vectors, got {len(bad)} damaged blocks of "
                f"{len(self.blocks)}; run jaxclip index, which makes them again"
            )

    def search(self, query: np.ndarray, count: int) -> list[Hit]:
        """The pictures nearest to a query, best first; equal ones by path.

        Args:
          query: float32 [d], of unit length.
          count: of hits at most.
        """
        if query.shape != self.vectors.shape[1:]:
            raise ValueError(f"expected a query {self.vectors.shape[1:]}, got {query.shape}")
        wanted, total = count, len(self.vectors)
        while True:
            rows, scores = best(self.vectors, self.blocks, query, max(wanted, 1))
            score = dict(zip(rows.tolist(), scores.tolist(), strict=True))
            paths = self.catalogue.paths(self.model, rows.tolist())
            if len(paths) >= count or wanted >= total:
                break
            wanted *= 4  # some rows' pictures are gone
        hits = [Hit(path, score[row]) for row, path in paths]
        return sorted(hits, key=lambda hit: (-hit.score, hit.path))[:count]


@contextlib.contextmanager
def reading(folder: Path, key: str) -> Iterator[Snapshot]:
    """The state of an index now, for the model of that key.

    Raises:
      ValueError: there is no index, or none of that model.
    """
    if not index.exists(folder):
        raise ValueError(f"{str(folder)!r}: expected an index, got none; run jaxclip index first")
    with Catalogue(folder / index.FACTS, write=False) as catalogue, catalogue.transaction():
        model = catalogue.model(key)
        if model is None:
            names = ", ".join(sorted({model.name for model in catalogue.models()})) or "no model"
            raise ValueError(
                f"{str(folder)!r}: expected vectors of the same model, got those of {names}; run "
                "jaxclip index with this --model first"
            )
        yield Snapshot(catalogue, folder, model)


def unit(vector: np.ndarray, what: str) -> np.ndarray:
    """The vector [d] at length one; ValueError where it has no direction."""
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length < 1e-6:
        raise ValueError(f"{what}: expected a direction, got one that cancels out; change it")
    return (vector / length).astype(np.float32)


def full_path(root: Path, path: bytes) -> str:
    """A picture's path, from its path below the root."""
    return os.path.join(root, os.fsdecode(path))
