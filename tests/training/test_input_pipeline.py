"""What feeds a run: the same batches from any position, over any number of processes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.data.pairs import Pair
from jaxclip.data.stream import Skips
from jaxclip.data.texts import Cutter
from jaxclip.training.input_pipeline import DrawingStream, PairStream, prefetch
from tests.support.pictures import png
from tests.support.sources import Memory

WRONG = {4: Pair(b"broken", ("a caption",), "memory 4")}


def pairs(wrong: dict[int, Pair] | None = None) -> PairStream:
    sources = [Memory(31, wrong)]
    options: dict[str, Any] = {"size": 8, "batch_size": 6, "seed": 5, "text_length": 16}
    return PairStream(sources, skips=Skips(99), threads=2, **options)


def drawings() -> DrawingStream:
    return DrawingStream(load_emoji("validation"), size=16, batch_size=6, seed=5, text_length=16)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


@pytest.mark.parametrize("make", [drawings, pairs, lambda: pairs(WRONG)])
def test_a_position_is_gone_on_from(make):
    stream = make()
    for _ in range(7):
        next(stream)
    position = stream.position
    expected = [next(stream) for _ in range(4)]
    again = make()
    again.seek([position])
    assert all(same(next(again), batch) for batch in expected)
    assert again.position == stream.position
    late = make()
    late.seek([position + 1])
    assert not same(next(late), expected[0])


def test_a_position_without_skips_counts_pairs():
    stream = pairs()
    for _ in range(3):
        next(stream)
    assert stream.position == 18


def of_processes(monkeypatch: pytest.MonkeyPatch, count: int, positions: Any = None) -> Any:
    """A batch as `count` processes read it together, and where each of them then is."""
    monkeypatch.setattr(jax, "process_count", lambda: count)
    parts, reached = [], []
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        stream = pairs()
        if positions:
            stream.seek(positions)
        parts.append(next(stream))
        reached.append(stream.position)
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}, reached


def test_more_or_fewer_processes_go_on_with_the_same_batches(monkeypatch):
    first, reached = of_processes(monkeypatch, 3)
    assert reached == [2, 2, 2]
    second, _ = of_processes(monkeypatch, 3, reached)
    fewer, _ = of_processes(monkeypatch, 2, reached)
    alone, _ = of_processes(monkeypatch, 1, reached)
    assert same(second, fewer) and same(second, alone) and not same(first, second)


def test_after_a_skip_no_place_is_left_out(monkeypatch):
    """Process 0 of two is ahead of process 1; one that goes on alone begins with the latter."""
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    stream = pairs()
    stream.seek([10, 6])
    plain = pairs()
    plain.seek([12])
    assert same(next(stream), next(plain))


def test_captions_that_are_cut_are_counted_once_each(caplog):
    long = (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    )
    wrong = {i: Pair(png(i), (f"{long} {i}",), f"memory {i}") for i in (3, 8)}
    stream = pairs(wrong)
    for _ in range(20):
        assert next(stream)["tokens"].shape == (6, 16)
    assert stream.cutter.describe() == "2 captions of more than 16 tokens were cut"
    assert caplog.text.count("captions of more than 16 tokens are cut, the first") == 1


def test_a_caption_that_just_fits_is_not_cut():
    cutter = Cutter(5, "captions")
    assert (cutter(["one two three"])[0] > 0).all() and cutter.describe() == ""
    cutter(["one two three four", "one two three four"])
    assert cutter.count == 1


class Counting:
    """Numbers, each its own position."""

    batch_to_pixels = staticmethod(lambda batch, key: batch)

    def __init__(self, broken_at: int = -1) -> None:
        self.position, self.broken_at = 0, broken_at

    def __next__(self) -> Any:
        self.position += 1
        if self.position == self.broken_at:
            raise OSError("disk gone")
        return self.position * self.position

    def seek(self, positions: Any) -> None:
        self.position = min(positions)


def unchanged(batch: int) -> int:
    return batch


def test_reading_ahead_keeps_order_and_the_position_of_each_batch():
    stream = Counting()
    stream.seek([1])
    assert list(prefetch(stream, 4, unchanged)) == [(4, 2), (9, 3), (16, 4), (25, 5)]


def test_reading_ahead_passes_errors_on():
    results = prefetch(Counting(broken_at=2), 5, unchanged)
    assert next(results) == (1, 1)
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_drawings_are_for_square_pictures():
    with pytest.raises(ValueError, match="square pictures for drawings in memory, got 16 x 24"):
        DrawingStream(load_emoji("validation"), size=(16, 24), batch_size=6, seed=5, text_length=16)
