"""The order of the data: no pair twice in a batch, once an epoch, no two orders alike."""

from __future__ import annotations

import collections
import itertools
import math
import random

import numpy as np
import pytest

from jaxclip.data.order import Order, Shuffled


def batch_of(order: Order, k: int) -> list[tuple[int, int]]:
    size = order.batch_size
    return [order[place] for place in range(k * size, (k + 1) * size)]


def one(length: int, batch_size: int, seed: int = 0) -> Order:
    return Order([length], [1.0], batch_size, seed)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 31, 257, 5000])
def test_a_shuffle_is_a_permutation(length: int) -> None:
    assert sorted(Shuffled(length, [1, 2])[i] for i in range(length)) == list(range(length))


def test_every_order_of_few_comes_about_as_often() -> None:
    """24 orders of 4, 2,400 times: 100 each, give or take five standard deviations."""
    seen = collections.Counter(tuple(Shuffled(4, [e])[i] for i in range(4)) for e in range(2400))
    assert len(seen) == 24 and min(seen.values()) > 50 and max(seen.values()) < 150


def test_a_shuffle_of_400_million_needs_no_table() -> None:
    order = Shuffled(400_000_000, [0])
    drawn = np.array([order[i] for i in range(2000)])
    assert len(set(drawn.tolist())) == 2000 and drawn.max() < 400_000_000
    assert abs(np.corrcoef(drawn, np.arange(2000))[0, 1]) < 0.1


def test_orders_of_seeds_sources_and_epochs_are_unrelated() -> None:
    """With seed + source + epoch in one sum, seeds 0 and 1 were one order, an epoch apart."""
    count = 1000
    orders = {}
    for seed in (0, 1, 2):
        order = Order([count, count], [1.0, 1.0], 10, seed)
        places = [order[place] for place in range(6 * count)]
        for source in (0, 1):
            indices = [index for found, index in places if found == source]
            for epoch in range(3):
                orders[seed, source, epoch] = indices[epoch * count : (epoch + 1) * count]
    for (a, first), (b, second) in itertools.combinations(orders.items(), 2):
        same = sum(x == y for x, y in zip(first, second, strict=True))  # 1 by chance
        assert same < 10, (a, b)
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.15, (a, b)
        following = set(itertools.pairwise(first)) & set(itertools.pairwise(second))
        assert len(following) < 10, (a, b)


@pytest.mark.parametrize(
    ("length", "batch_size"), [(1000, 256), (31, 6), (17, 8), (20, 20), (21, 20), (39, 20), (9, 2)]
)
def test_no_batch_holds_a_pair_twice(length: int, batch_size: int) -> None:
    order = one(length, batch_size)
    for k in range(60):
        assert len(set(batch_of(order, k))) == batch_size, k


def test_every_pair_comes_once_an_epoch() -> None:
    order = one(31, 6)
    epochs = [[order[31 * e + i][1] for i in range(31)] for e in range(40)]
    assert all(sorted(epoch) == list(range(31)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40


def test_mixtures_repeat_as_little_as_they_can() -> None:
    """200 random mixtures: in a batch, each pair of a source comes as often as any other, or once
    more; what has two shares or more comes once an epoch."""
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randint(1, 60) for _ in range(rng.choice([1, 2, 3]))]
        weights = [rng.choice([1.0, 2.0, 0.3, 5.0]) for _ in lengths]
        size = rng.randint(2, max(2, min(12, sum(lengths))))
        if sum(lengths) < size:
            continue
        order = Order(lengths, weights, size, seed=rng.randint(0, 9))
        drawn: dict[int, list[int]] = collections.defaultdict(list)
        for k in range(40):
            batch = batch_of(order, k)
            for source, count in collections.Counter(s for s, _ in batch).items():
                most = max(collections.Counter(i for s, i in batch if s == source).values())
                assert most == math.ceil(count / lengths[source]) <= order.repeats(source)
                assert count <= order.shares[source]
            for source, index in batch:
                drawn[source].append(index)
        for source, indices in drawn.items():
            n = lengths[source]
            if n >= 2 * order.shares[source]:
                for e in range(len(indices) // n):
                    assert sorted(indices[e * n : (e + 1) * n]) == list(range(n))


def test_sources_come_by_weight() -> None:
    order = Order([100, 100, 100], [1.0, 2.0, 5.0], 8, 0)
    assert order.counts(8000) == [1000, 2000, 5000]
    assert all(sum(order.counts(places)) == places for places in range(50))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: expected 2 positive numbers"):
        Order([5, 5], weights, 4, 0)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size: expected at most 20, .* got 64"):
        one(20, 64)
    with pytest.raises(ValueError, match="batch_size: expected at most 9"):
        Order([5, 4], [1.0, 1.0], 10, 0)


def test_far_places_cost_no_more_than_near_ones() -> None:
    order = one(1000, 64)
    far = 10**15
    assert len({order[place] for place in range(far * 64, (far + 1) * 64)}) == 64
