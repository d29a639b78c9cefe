"""What feeds a run: batches of this process's rows, from a position that can be gone on from.

A stream is an iterator of host arrays, the same for every process but for its rows. `position`
counts what this process has read up to the batch that came out last; `seek` takes the counts of
all. `prepare` makes pixels of a batch inside the step.
"""

import contextlib
import queue
import threading
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxclip.data.emoji.batches import Batches
from jaxclip.data.emoji.pictures import Pictures
from jaxclip.data.pairs import Source
from jaxclip.data.stream import Skips, batches
from jaxclip.data.texts import Cutter
from jaxclip.training.distributed import own_rows
from jaxclip.training.step import Prepare, augmented, normalised

HostBatch = dict[str, np.ndarray]


class Stream(Protocol):
    """An endless iterator of batches with a position."""

    prepare: Prepare
    cutter: Cutter

    def __next__(self) -> HostBatch: ...

    @property
    def position(self) -> int:
        """How much this process has read."""

    def seek(self, positions: Sequence[int]) -> None:
        """Go on from the positions of all processes, which may have been more or fewer."""


class Drawings:
    """Named pictures in memory: `drawings`, `mirrorable` and `tokens` of every step."""

    prepare = staticmethod(augmented)

    def __init__(self, pictures: Pictures, batch_size: int, seed: int, text_length: int) -> None:
        self.batches = Batches(pictures, batch_size, seed)
        self.cutter = Cutter(text_length, "captions")
        self.rows, self.step = own_rows(batch_size), 0

    def __next__(self) -> HostBatch:
        batch = self.batches.at(self.step)
        self.step += 1
        own = batch.indices[self.rows]
        return {
            "drawings": self.batches.pictures.images[own],
            "mirrorable": batch.mirrorable[self.rows],
            "tokens": self.cutter(batch.captions[self.rows]),
        }

    @property
    def position(self) -> int:
        return self.step

    def seek(self, positions: Sequence[int]) -> None:
        self.step = min(positions)


class Pairs:
    """Pictures with captions from any sources: `image` uint8 and `tokens`.

    Its position is in places of the order (`data.stream`); those of processes part after a skip.
    """

    prepare = staticmethod(normalised)

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        size: int,
        batch_size: int,
        seed: int,
        text_length: int,
        skips: Skips,
        weights: Sequence[float] | None = None,
        threads: int = 8,
    ) -> None:
        self.cutter = Cutter(text_length, "captions")
        self.rows, self.batch_size = own_rows(batch_size), batch_size
        self.skips = skips
        self.options: dict[str, Any] = {
            "size": size,
            "batch_size": batch_size,
            "rows": self.rows,
            "seed": seed,
            "skips": skips,
            "weights": weights,
            "threads": threads,
        }
        self.sources = sources
        self._open(0)

    def _open(self, read: int) -> None:
        self.read = read  # of the places that are this process's own
        self.iterator = iter(batches(self.sources, start=read, **self.options))

    def __next__(self) -> HostBatch:
        batch = next(self.iterator)
        share = self.rows.stop - self.rows.start
        whole, row = divmod(int(batch["place"][-1]), self.batch_size)
        self.read = whole * share + row - self.rows.start + 1
        return {"image": batch["image"], "tokens": self.cutter(batch["caption"])}

    @property
    def position(self) -> int:
        return self.read

    def seek(self, positions: Sequence[int]) -> None:
        share = self.batch_size // len(positions)  # of a process that wrote them
        own = self.rows.stop - self.rows.start
        if share == own:
            self._open(positions[jax.process_index()])
        else:  # no place is left out, some after a skip are read again
            self._open(min(positions) // share * own)


def ahead(stream: Stream, steps: int, depth: int = 2) -> Generator[tuple[HostBatch, int]]:
    """(batch, position after it), `steps` times, made in a thread while the caller computes."""
    results: queue.Queue[Any] = queue.Queue(depth)
    ended = threading.Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(item, timeout=0.1)

    def work() -> None:
        try:
            for _ in range(steps):
                batch = next(stream)
                put(((batch, stream.position), None))
                if ended.is_set():
                    return
        except BaseException as error:  # handed to the caller, who raises it
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(steps):
            item, error = results.get()
            if error is not None:
                raise error
            yield item
    finally:
        ended.set()
