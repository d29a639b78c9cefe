"""Batches for a run: an endless stream of this process's rows, from a resumable position.

A stream is an iterator of host arrays, the same for every process but for its rows. `position`
counts what this process has read up to the newest batch; `seek` takes the counts of all processes.
`batch_to_pixels` makes the images of a batch, inside the compiled step.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from jaxclip.config import CLIP_PICTURES, PictureConfig, Sides, TextConfig, name_sides
from jaxclip.data.ahead import read_ahead
from jaxclip.data.emoji.batches import EmojiBatches, MixedBatches
from jaxclip.data.emoji.icons import SIDED, as_rgba
from jaxclip.data.emoji.pictures import EmojiPictures
from jaxclip.data.listing import describe_listing
from jaxclip.data.pairs import ListedSource
from jaxclip.data.stream import Skips, batches
from jaxclip.data.texts import CLIP, Cutter
from jaxclip.training.distributed import own_rows
from jaxclip.training.pixels import augment_drawings, augment_icons, normalize_image

HostBatch = dict[str, np.ndarray]
Batch = TypeVar("Batch")


class Stream(Protocol):
    """An endless iterator of batches with a position."""

    cutter: Cutter

    def batch_to_pixels(self, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        """What the compiled step makes of a batch's images (`pixels.py`)."""

    def __next__(self) -> HostBatch: ...

    @property
    def position(self) -> int:
        """How much this process has read; the unit is the stream's own."""

    def seek(self, positions: Sequence[int]) -> None:
        """Continue from the positions of all processes, which may have been more or fewer."""

    @property
    def listings(self) -> tuple[str, ...]:
        """Of each of its data sets (`data.listing`)."""


class _InMemory:
    """What streams of drawings in memory share: their position is a step."""

    def __init__(
        self,
        *,
        size: Sides,
        batch_size: int,
        text_length: int,
        preprocessing: PictureConfig = CLIP_PICTURES,
        text: TextConfig = CLIP,
    ) -> None:
        if not isinstance(size, int):
            raise ValueError(
                "data: expected a model of square pictures for drawings in memory, got "
                f"{name_sides(size)}; train it on picture files"
            )
        self.size, self.preprocessing = size, preprocessing
        self.cutter = Cutter(text_length, "captions", text)
        self.rows, self.step = own_rows(batch_size), 0

    @property
    def position(self) -> int:
        return self.step

    def seek(self, positions: Sequence[int]) -> None:
        self.step = min(positions)


class DrawingStream(_InMemory):
    """Named pictures in memory: `drawings`, `mirrorable` and `tokens` of every step."""

    def __init__(
        self, pictures: EmojiPictures, *, batch_size: int, seed: int, **options: Any
    ) -> None:
        super().__init__(batch_size=batch_size, **options)
        self.batches = EmojiBatches(pictures, batch_size, seed)

    @property
    def listings(self) -> tuple[str, ...]:
        return (_listing_of([self.batches.pictures]),)

    def batch_to_pixels(self, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        return augment_drawings(batch, key, size=self.size, pictures=self.preprocessing)

    def __next__(self) -> HostBatch:
        batch = self.batches.at(self.step)
        self.step += 1
        own = batch.indices[self.rows]
        return {
            "drawings": self.batches.pictures.images[own],
            "mirrorable": batch.mirrorable[self.rows],
            "tokens": self.cutter(batch.captions[self.rows]),
        }


class MixedDrawings(_InMemory):
    """Emoji and icons in memory: `drawings`, `black`, `mirrorable` and `tokens` of every step.

    Args:
      parts: sets of drawings, the emoji first; images of one channel are opacity, of a
        drawing in black.
      shares: of a batch, one a set.
    """

    def __init__(
        self,
        parts: Sequence[EmojiPictures],
        shares: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **options)
        sizes = sorted({part.images.shape[1:3] for part in parts})
        if len(sizes) > 1:
            raise ValueError(f"data: expected drawings of one size, got {sizes}")
        self.parts = parts
        self.batches = MixedBatches(parts, shares, batch_size, seed, SIDED)

    @property
    def listings(self) -> tuple[str, ...]:
        return _listing_of(self.parts[:1]), _listing_of(self.parts[1:])

    def batch_to_pixels(self, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        return augment_icons(batch, key, size=self.size, pictures=self.preprocessing)

    def __next__(self) -> HostBatch:
        batches = self.batches.at(self.step)
        self.step += 1
        images = [x.images[batch.indices] for x, batch in zip(self.parts, batches, strict=True)]
        drawings = np.concatenate([as_rgba(x) for x in images])
        captions = [caption for batch in batches for caption in batch.captions]
        return {
            "drawings": drawings[self.rows],
            "black": np.concatenate([np.full(len(x), x.shape[-1] == 1) for x in images])[self.rows],
            "mirrorable": np.concatenate([batch.mirrorable for batch in batches])[self.rows],
            "tokens": self.cutter(captions[self.rows]),
        }


def _listing_of(parts: Sequence[EmojiPictures]) -> str:
    count = sum(len(part.names) for part in parts)
    return describe_listing(count, (text for part in parts for text in part.listing()))


class PairStream:
    """Pictures with captions from any sources: `image` uint8 and `tokens`.

    Its position counts examples of the global order (`data.stream`); after a skipped example the
    positions of processes differ.
    """

    def __init__(
        self,
        sources: Sequence[ListedSource],
        *,
        size: Sides,
        batch_size: int,
        seed: int,
        text_length: int,
        skips: Skips,
        preprocessing: PictureConfig = CLIP_PICTURES,
        text: TextConfig = CLIP,
        weights: Sequence[float] | None = None,
        decoder: str = "full",
        threads: int = 8,
    ) -> None:
        self.cutter = Cutter(text_length, "captions", text)
        self.rows, self.batch_size = own_rows(batch_size), batch_size
        self.skips, self.preprocessing = skips, preprocessing
        self.options: dict[str, Any] = {
            "size": size,
            "batch_size": batch_size,
            "rows": self.rows,
            "seed": seed,
            "skips": skips,
            "weights": weights,
            "decoder": decoder,
            "threads": threads,
            "pictures": preprocessing,
        }
        self.sources = sources
        self._open(0)

    def batch_to_pixels(self, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        return normalize_image(batch, key, pictures=self.preprocessing)

    @property
    def listings(self) -> tuple[str, ...]:
        return tuple(describe_listing(len(source), source.listing()) for source in self.sources)

    def _open(self, read: int) -> None:
        self.read = read  # of this process's own share of the order
        self.iterator = iter(batches(self.sources, start=read, **self.options))

    def __next__(self) -> HostBatch:
        batch = next(self.iterator)
        share = self.rows.stop - self.rows.start
        whole, row = divmod(int(batch["position"][-1]), self.batch_size)
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
        else:  # nothing is left out; some examples after a skip are read again
            self._open(min(positions) // share * own)


def prefetch(
    stream: Stream, steps: int, place: Callable[[HostBatch], Batch]
) -> Generator[tuple[Batch, int]]:
    """(placed batch, position after it), `steps` times, made while the caller computes.

    One thread waits for the stream and another calls `place`, each one batch ahead: so a batch is
    on the devices before its step begins, and the devices hold one batch more than their steps use.
    """
    read = read_ahead((next(stream), stream.position) for _ in range(steps))
    return read_ahead((place(batch), position) for batch, position in read)
