"""The token table with the rows that are used alone, and whole again."""

from collections.abc import Mapping

import numpy as np

from jaxclip.checkpoint.checks import Config
from jaxclip.checkpoint.names import Flat

TABLE, ROWS = "text.token_embedding.embedding", "text.token_embedding.rows"
MOST_ZEROS = 250  # rows of a token table for each that a file holds: memory follows the file


def keep_rows(flat: Mapping[str, np.ndarray], rows: np.ndarray) -> Flat:
    """The parameters with those `rows` of the token table alone; the others are read as zero.

    Args:
      flat: parameters of a model.
      rows: token ids, increasing, int [n].
    """
    kept = {TABLE: flat[TABLE][rows], ROWS: rows.astype(np.int32)}
    return {**flat, **kept}


def fill_rows(arrays: Flat, config: Config) -> Flat:
    """The inverse of `keep_rows`; arrays with a whole token table as they are.

    Raises:
      ValueError: the rows are no token ids of the config, or too few of them to be a model's.
    """
    if ROWS not in arrays:
        return arrays
    rows, kept = arrays[ROWS], arrays.get(TABLE)
    size = 0 if config.text is None else config.text.vocab_size
    if (
        kept is None
        or kept.ndim != 2
        or rows.dtype != np.int32
        or rows.shape != kept.shape[:1]
        or not rows.size
        or rows[0] < 0
        or rows[-1] >= size
        or (np.diff(rows) <= 0).any()
    ):
        raise ValueError(
            f"{ROWS}: expected increasing token ids below {size}, one a row of {TABLE}, got others"
        )
    if size > MOST_ZEROS * rows.size:
        raise ValueError(
            f"{ROWS}: expected at least {-(-size // MOST_ZEROS)} of {size} token ids, "
            f"got {rows.size}"
        )
    table = np.zeros((size, kept.shape[1]), kept.dtype)
    table[rows] = kept
    return {name: array for name, array in arrays.items() if name != ROWS} | {TABLE: table}
