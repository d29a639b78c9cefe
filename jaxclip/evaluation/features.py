"""Features of a source, block by block: threads decode the next block while the model encodes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from PIL import Image

from jaxclip.data.ahead import read_ahead
from jaxclip.data.stream import Skips
from jaxclip.images.open import decode_image

ToPixels = Callable[[Image.Image], np.ndarray]
Encode = Callable[[np.ndarray], Any]
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, what they are, how many)


def no_progress(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The items as they are: the default where no progress bar is wanted."""
    return items


class Item(Protocol):
    """An encoded picture and where it was read from."""

    @property
    def image(self) -> bytes: ...

    @property
    def where(self) -> str: ...


class Items(Protocol):
    """A sequence of items: labelled examples or pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Block:
    """features [b, d] of the usable items [b], and their rows [b] in the source."""

    features: np.ndarray
    items: list[Any]
    rows: np.ndarray


def map_batches(encode: Encode, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """`encode` of all rows, a batch at a time: [n, ...] -> [n, e].

    The last batch is filled up with its first row, so that one shape is compiled.
    """
    parts = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        missing = batch_size - len(part)
        filled = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
        parts.append(np.asarray(encode(filled))[: len(part)])
    return np.concatenate(parts)


def require_finite(features: np.ndarray, what: str) -> np.ndarray:
    """The features [n, d]; ValueError that names `what` where a row has no direction."""
    with np.errstate(over="ignore"):  # a length that overflows makes every cosine zero
        lengths = np.linalg.norm(features, axis=-1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(
            f"features of {what} are zero, too large or no numbers; the weights are damaged or "
            "have diverged"
        )
    return features


def encode_blocks(
    source: Items,
    to_pixels: ToPixels,
    encode: Encode,
    *,
    skips: Skips,
    usable: Callable[[Any], str | None] = lambda item: None,
    block: int = 256,
    start: int = 0,
    threads: int | None = None,
) -> Iterator[Block]:
    """Features of a source, `block` rows of it at a time; unusable rows are counted and skipped.

    Args:
      source: of items with `image` (bytes) and `where`, and perhaps a `fault` (`data.records`).
      to_pixels: decoded picture -> float32 [h, w, c].
      encode: pixels [block, h, w, c] -> features [block, d]; always the same number of pictures.
      skips: counts what is skipped, with its reason; an error beyond its limit.
      usable: returns why an item cannot be used whatever its picture is; None if it can.
      block: rows of the source a block.
      start: the row to begin at.
      threads: for reading and decoding; ThreadPoolExecutor's default if None.

    Raises:
      ValueError: the features of a picture are not finite, or too much had to be skipped.
    """

    def read(row: int) -> tuple[Any, np.ndarray | None, str, str]:
        item = source[row]
        fault = getattr(item, "fault", None)
        if fault is not None:
            return item, None, fault.kind, f"{item.where}: {fault.detail}"
        reason = usable(item)
        if reason is not None:
            return item, None, reason, item.where
        try:
            return item, to_pixels(decode_image(item.image)), "", ""
        except ValueError as error:
            return item, None, "broken picture", f"{item.where}: {' '.join(str(error).split())}"

    parts = [range(i, min(i + block, len(source))) for i in range(start, len(source), block)]
    with ThreadPoolExecutor(threads) as pool:
        for part, rows in zip(
            parts, read_ahead(list(pool.map(read, part)) for part in parts), strict=True
        ):
            yield _encode_block(part, rows, encode, skips, block)


def _encode_block(
    part: range,
    read: Sequence[tuple[Any, np.ndarray | None, str, str]],
    encode: Encode,
    skips: Skips,
    block: int,
) -> Block:
    rows, items, pixels = [], [], []
    for row, (item, picture, reason, detail) in zip(part, read, strict=True):
        if picture is None:
            skips.add(reason, detail, (item.where, row))
        else:
            rows.append(row)
            items.append(item)
            pixels.append(picture)
    if not items:
        return Block(np.zeros((0, 0), np.float32), [], np.zeros(0, np.int64))
    filled = pixels + [pixels[0]] * (block - len(pixels))  # one shape, one compiled program
    features = np.asarray(encode(np.stack(filled)), np.float32)[: len(items)]
    require_finite(features, f"{items[0].where} or after")
    return Block(features, items, np.array(rows))
