"""Reading ahead: the same items in order, at most `depth` of them early, errors in their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from jaxclip.data.ahead import read_ahead


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_items_keep_their_order(depth):
    assert list(read_ahead(iter(range(5)), depth)) == [0, 1, 2, 3, 4]
    assert list(read_ahead((), depth)) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_at_most_depth_items_are_early(depth):
    produced, wanted = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for i in range(9):
            produced.append(i)
            wanted.release()
            yield i

    ahead = read_ahead(items(), depth)
    assert produced == []
    for i in range(4):
        assert next(ahead) == i
        while len(produced) < i + 1 + depth:
            assert wanted.acquire(timeout=10)
        assert len(produced) == i + 1 + depth
    ahead.close()
    assert len(produced) <= 4 + depth


def test_an_error_is_raised_in_its_turn():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk gone")

    ahead = read_ahead(items(), 2)
    assert (next(ahead), next(ahead)) == (1, 2)
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)


def test_an_iterator_is_not_read_after_the_end_of_the_caller():
    ahead = read_ahead(iter(range(10**9)), 1)
    assert next(ahead) == 0
    ahead.close()
    assert list(ahead) == []
