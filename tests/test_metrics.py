"""Ranks, recall and the zero-shot classifier against loops and hand computation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxclip.evaluation.metrics import ranks, recall
from jaxclip.evaluation.zero_shot import classifier, in_blocks, unit


@pytest.mark.parametrize("levels", [2, 5, 1000])  # few levels make many ties
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (40, 40)])
def test_ranks_equal_brute_force_with_ties(n, m, levels):
    rng = np.random.default_rng(n)
    scores = rng.integers(levels, size=(n, m)).astype(float)
    answers = rng.integers(m, size=n)
    for row, answer, rank in zip(scores, answers, ranks(scores, answers), strict=True):
        others = [score for j, score in enumerate(row) if j != answer]
        assert rank == sum(score >= row[answer] for score in others)


def test_recall_equals_brute_force():
    rng = np.random.default_rng(0)
    scores, answers = rng.normal(size=(30, 9)), rng.integers(9, size=30)
    rank = ranks(scores, answers)
    for k in (1, 5, 9):
        hits = [a in np.argsort(-row)[:k] for row, a in zip(scores, answers, strict=True)]
        assert recall(rank, k) == pytest.approx(np.mean(hits))
    assert recall(rank, 9) == 1


def test_constant_scores_earn_nothing():
    rank = ranks(np.ones((4, 3)), np.array([0, 1, 2, 0]))
    assert rank.tolist() == [2, 2, 2, 2] and recall(rank, 1) == recall(rank, 2) == 0


def test_scores_that_are_not_numbers_earn_nothing():
    """A model that has diverged must not look perfect."""
    answers = np.array([0, 1])
    assert ranks(np.full((2, 3), np.nan), answers).tolist() == [2, 2]
    one = np.array([[1.0, np.nan, 0.0], [0.0, 1.0, 2.0]])
    assert ranks(one, answers).tolist() == [1, 1]


@pytest.mark.parametrize("block", [1, 3, 4, 5, 10, 11, 64])
def test_blocks_change_nothing(block):
    """Ten rows: 3 and 4 leave a rest, 11 and 64 are never full."""
    rows = np.random.default_rng(0).normal(size=(10, 4, 2))
    sizes = []

    def encode(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return np.cumsum(x.reshape(len(x), -1), axis=1)

    got = in_blocks(encode, rows, block)
    assert set(sizes) == {block} and len(sizes) == -(-10 // block)
    assert_allclose(got, np.cumsum(rows.reshape(10, -1), axis=1))


def test_unit_rows_have_length_one():
    assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 2.0]])), [[0.6, 0.8], [0, 1]])


def test_classifier_equals_hand_computation():
    """Normalise each prompt's embedding, average over prompts, normalise again."""
    table = {
        "a cat": [3.0, 4.0],  # length 5: without the first step it would outweigh the next
        "a dog": [0.0, 2.0],
        "photo of cat": [1.0, 0.0],
        "photo of dog": [0.0, 7.0],
    }
    asked: list[str] = []

    def encode(texts) -> np.ndarray:
        asked.extend(texts)
        return np.array([table[text] for text in texts])

    got = classifier(encode, ["cat", "dog"], ["a {}", "photo of {}"])
    cat = np.array([0.6 + 1, 0.8]) / 2
    assert_allclose(got, [cat / np.hypot(*cat), [0, 1]])
    assert sorted(asked) == sorted(table)
    unnormalised = np.array([3.0 + 1, 4]) / np.hypot(4, 4)
    assert np.abs(got[0] - unnormalised).max() > 0.1


def test_the_classifier_keeps_the_order_of_its_labels():
    vectors = dict(zip("abcde", np.eye(5), strict=True))

    def encode(texts) -> np.ndarray:
        return np.array([vectors[text.strip("<>")] for text in texts])

    assert_allclose(classifier(encode, list("cab"), ["{}", "<{}>", "<<{}"]), np.eye(5)[[2, 0, 1]])


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}", "", "{0}"])
def test_a_prompt_needs_one_slot(prompt):
    with pytest.raises(ValueError, match="needs exactly one slot"):
        classifier(lambda texts: np.ones((len(texts), 2)), ["cat"], ["a {}", prompt])
