"""Pictures of a source to features, a block at a time: threads decode while the model works."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from PIL import Image

from jaxclip.data.stream import Skips
from jaxclip.evaluation.zero_shot import sound
from jaxclip.images.open import decode_image

ToPixels = Callable[[Image.Image], np.ndarray]
Encode = Callable[[np.ndarray], Any]


class Item(Protocol):
    """What a source yields: an encoded picture and where it came from."""

    @property
    def image(self) -> bytes: ...

    @property
    def where(self) -> str: ...


class Items(Protocol):
    """A sequence of them: labelled examples or pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Block:
    """features [b, d] of the items [b] that could be used, and their places in the source [b]."""

    features: np.ndarray
    items: list[Any]
    rows: np.ndarray


def streamed(
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
    """Features of a source, `block` rows of it at a time; a row that cannot be used is counted.

    Args:
      source: of items with `image` (bytes) and `where`, and perhaps a `fault` (`data.records`).
      to_pixels: decoded picture -> float32 [h, w, c].
      encode: pixels [block, h, w, c] -> features [block, d]; always the same number of pictures.
      skips: counts what is left out, with its reason; an error beyond its limit.
      usable: says why an item cannot be used whatever its picture is; None if it can.
      block: rows of the source a block.
      start: the row to begin at.
      threads: that read and decode; as many as Python's pool thinks right unless given.

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
        ahead = [pool.submit(read, row) for row in parts[0]] if parts else []
        for i, part in enumerate(parts):
            now = ahead
            ahead = [pool.submit(read, row) for row in (parts[i + 1 : i + 2] or [range(0)])[0]]
            yield _block(part, [task.result() for task in now], encode, skips, block)


def _block(
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
    sound(features, f"{items[0].where} or after")
    return Block(features, items, np.array(rows))
