"""Batches of image-text pairs from sources: global order, random crops, threads, by grain.

There is one global order (`data.order`): position i is one example, each source once an epoch.
Batch k is positions k * batch_size to (k + 1) * batch_size - 1, and each process reads its own rows
of every batch. So neither the number of processes nor that of threads changes a batch, as long as
nothing is skipped; after a skip the process's later pairs move up by one position. No batch holds a
pair twice: the order guarantees it, after skips `DistinctBatches` does for each process's rows.
"""

import collections
import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.config import CLIP_PICTURES, PictureConfig, Sides
from jaxclip.data.crops import CROPS, RandomCrop, random_crop
from jaxclip.data.order import Order
from jaxclip.data.pairs import Pair, Source

logger = logging.getLogger(__name__)


class TooManySkipped(ValueError):
    """More pictures or captions were unusable than allowed."""


class Skips:
    """Counts and logs skipped records, each once; an error beyond `limit`.

    lengths: of the sources, where they are read repeatedly: it is an error when a source has no
      usable record, as a stream would search it for ever.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: collections.Counter[str] = collections.Counter()
        self.lengths: Sequence[int] = ()
        self._seen: set[tuple[Any, int]] = set()
        self._by_source: collections.Counter[Any] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, reason: str, detail: str, key: tuple[Any, int] | None = None) -> None:
        """Count a record; TooManySkipped beyond the limit.

        Args:
          reason: the kind, by which records are counted.
          detail: the record and its fault, for the log.
          key: (source, index) of a record that may be read again; it counts once.
        """
        with self._lock:
            if key in self._seen:
                return
            if key is not None:
                self._seen.add(key)
                self._by_source[key[0]] += 1
            self.counts[reason] += 1
            total = self.counts.total()
            left = self.lengths[key[0]] - self._by_source[key[0]] if key and self.lengths else 1
        logger.warning("skipped, %s: %s (%d so far)", reason, detail, total)
        reasons = ", ".join(f"{count} times {name}" for name, count in self.counts.items())
        if total > self.limit:
            raise TooManySkipped(f"more than {self.limit} pairs skipped: {reasons}; last: {detail}")
        if key and left == 0:
            of = f" of dataset {key[0] + 1}" if len(self.lengths) > 1 else ""
            raise TooManySkipped(
                f"none of the {self.lengths[key[0]]} pairs{of} can be used: {reasons}; "
                f"last: {detail}"
            )


def crop_and_caption(
    pair: Pair,
    size: Sides,
    rng: np.random.Generator,
    skips: Skips,
    key: tuple[int, int] | None = None,
    crop: RandomCrop = random_crop,
    pictures: PictureConfig = CLIP_PICTURES,
) -> Any:
    """(image uint8 [h, w, 3], one of the captions); None for an unusable pair, counted.

    key: of the record, for `Skips.add`.
    crop, pictures: one of `data.crops`, and what it takes.
    """
    if pair.fault is not None:
        skips.add(pair.fault.kind, f"{pair.where}: {pair.fault.detail}", key)
        return None
    captions = [caption.strip() for caption in pair.captions if caption.strip()]
    if not captions:
        skips.add("empty caption", pair.where, key)
        return None
    try:
        image = crop(pair.image, size, rng, pictures)
    except ValueError as error:
        skips.add("broken picture", f"{pair.where}: {' '.join(str(error).split())}", key)
        return None
    return image, captions[rng.integers(len(captions))]


class _OwnPositions:
    """The positions of the order that one process reads, as a sequence for grain."""

    def __init__(self, order: Order, batch_size: int, rows: slice, read: int) -> None:
        self.order, self.batch_size, self.read = order, batch_size, read
        self.start, self.share = rows.start, rows.stop - rows.start

    def __len__(self) -> int:
        return sys.maxsize // (2 * self.batch_size) - self.read  # no end

    def __getitem__(self, i: int) -> tuple[int, int, int]:
        batch, row = divmod(self.read + i, self.share)
        position = batch * self.batch_size + self.start + row
        return position, *self.order[position]


def batches(
    sources: Sequence[Source],
    *,
    size: Sides,
    batch_size: int,
    rows: slice,
    seed: int,
    skips: Skips,
    weights: Sequence[float] | None = None,
    decoder: str = "full",
    pictures: PictureConfig = CLIP_PICTURES,
    threads: int = 8,
    start: int = 0,
) -> Any:
    """An endless `grain.IterDataset` of this process's part of every batch.

    Its iterator's `get_state()` is a position that `set_state()` resumes from.

    Args:
      sources: of pairs.
      size: pixels a side, or height and width.
      batch_size: pairs of a whole batch.
      rows: the rows of a batch that this process reads (`training.distributed.own_rows`).
      seed: of the order, the crops and the choice among captions.
      skips: counts the unusable pairs.
      weights: of the sources, in examples; equal unless given.
      decoder: of the pictures, one of `data.crops.CROPS`.
      pictures: the model's filter and how it resizes.
      threads: for reading and decoding.
      start: how many of its own positions this process has read before.

    Returns:
      Of each batch: `image` uint8 [b, h, w, 3], `caption` (b texts), `position` int [b] in
      the order and `index` int [b, 2] (source, index in it).
    """
    import grain  # late, as it takes a second

    from jaxclip.data.distinct import DistinctBatches, collate

    order = Order(
        [len(source) for source in sources], weights or [1.0] * len(sources), batch_size, seed
    )
    skips.lengths = order.lengths
    crop = CROPS[decoder]
    if not start:
        _warn_of_repeats(order)

    warn_once = iter([True]) if rows.stop - rows.start < batch_size else iter(())

    def load(item: tuple[int, int, int]) -> dict[str, Any] | None:
        position, source, index = item
        rng = np.random.default_rng([seed, position])
        pair, key = sources[source][index], (source, index)
        found = crop_and_caption(pair, size, rng, skips, key, crop, pictures)
        if found is None:
            if next(warn_once, False):
                logger.warning(
                    "each process replaces the pairs it skips by itself: two processes may put one "
                    "pair into a batch, which then counts as its own wrong answer; remove the "
                    "unusable pairs from the data"
                )
            return None
        where = {"position": np.int64(position), "index": np.array([source, index])}
        return {"image": found[0], "caption": found[1], **where}

    own = grain.MapDataset.source(_OwnPositions(order, batch_size, rows, start)).map(load)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1))
    loaded = own.to_iter_dataset(reading)  # leaves the Nones out
    repeats = [order.repeats(source) for source in range(len(sources))]
    return DistinctBatches(loaded, rows.stop - rows.start, repeats, order.patience(), collate)


def _warn_of_repeats(order: Order) -> None:
    """Warn of sources that are smaller than their share of a batch."""
    for source, (length, share) in enumerate(zip(order.lengths, order.shares, strict=True)):
        if length < share:
            logger.warning(
                "dataset %d of %d has %d pairs for up to %d rows of a batch: up to %d of its "
                "pairs are in a batch more than once and count as their own wrong answers; give it "
                "less weight or the batch fewer pairs",
                source + 1,
                len(order.lengths),
                length,
                share,
                min(length, share - length),
            )
