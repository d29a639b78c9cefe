"""Metrics against scikit-learn, loops and hand computation; the zero-shot classifier too."""

from __future__ import annotations

import time
import tracemalloc
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxclip.evaluation.features import map_batches, require_finite
from jaxclip.evaluation.metrics import Tally, ranks, recall, retrieve, top_k
from jaxclip.evaluation.zero_shot import average_prompts, build_classifier, fill_templates
from jaxclip.reference import l2_normalize


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

    got = map_batches(encode, rows, block)
    assert set(sizes) == {block} and len(sizes) == -(-10 // block)
    assert_allclose(got, np.cumsum(rows.reshape(10, -1), axis=1))


def test_unit_rows_have_length_one():
    assert_allclose(l2_normalize(np.array([[3.0, 4.0], [0.0, 2.0]])), [[0.6, 0.8], [0, 1]])


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

    got = build_classifier(encode, ["cat", "dog"], ["a {}", "photo of {}"])
    cat = np.array([0.6 + 1, 0.8]) / 2
    assert_allclose(got, [cat / np.hypot(*cat), [0, 1]])
    assert sorted(asked) == sorted(table)
    unnormalised = np.array([3.0 + 1, 4]) / np.hypot(4, 4)
    assert np.abs(got[0] - unnormalised).max() > 0.1


def test_the_classifier_keeps_the_order_of_its_labels():
    vectors = dict(zip("abcde", np.eye(5), strict=True))

    def encode(texts) -> np.ndarray:
        return np.array([vectors[text.strip("<>")] for text in texts])

    assert_allclose(
        build_classifier(encode, list("cab"), ["{}", "<{}>", "<<{}"]), np.eye(5)[[2, 0, 1]]
    )


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}", "", "{0}"])
def test_a_prompt_needs_one_slot(prompt):
    with pytest.raises(ValueError, match="expected exactly one slot"):
        build_classifier(lambda texts: np.ones((len(texts), 2)), ["cat"], ["a {}", prompt])


# Classes ------------------------------------------------------------------------------------------


def classified(seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores [103, 9] with ties (few levels: many), labels [103] without the classes 2 and 8."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3, 4, 5, 6, 7], size=103, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    return rng.integers(levels, size=(103, 9)).astype(np.float32), labels


def tallied(scores: np.ndarray, labels: np.ndarray, block: int) -> Tally:
    tally = Tally(scores.shape[1])
    for start in range(0, len(scores), block):
        part = slice(start, start + block)
        tally.add(labels[part], top_k(scores[part], 5)[0])
    return tally


@pytest.mark.parametrize("block", [1, 10, 103, 500])  # 10 leaves a partial batch
@pytest.mark.parametrize("levels", [1, 2, 4, 10**6])
def test_the_tally_equals_scikit_learn_with_ties_and_missing_classes(levels, block):
    from sklearn import metrics as sk

    scores, labels = classified(levels, levels)
    tally = tallied(scores, labels, block)
    found, said = tally.metrics(), scores.argmax(axis=1)
    assert found["top1"] == sk.accuracy_score(labels, said)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are answered but never asked about
        assert found["mean_per_class"] == pytest.approx(
            sk.balanced_accuracy_score(labels, said), abs=1e-14
        )
    assert np.array_equal(tally.confusion, sk.confusion_matrix(labels, said, labels=range(9)))
    # scikit-learn gives a tie to the last class, so it gets the classes the other way round
    top5 = sk.top_k_accuracy_score(8 - labels, scores[:, ::-1], k=5, labels=range(9))
    assert found["top5"] == top5
    recalls = sk.recall_score(labels, said, labels=range(9), average=None, zero_division=np.nan)
    assert_allclose(tally.per_class(), recalls)


@pytest.mark.parametrize("levels", [2, 4, 10**6])
def test_the_tally_equals_brute_force(levels):
    scores, labels = classified(1, levels)
    hits, hits5 = 0, 0
    by_class: dict[int, list[bool]] = {}
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(9), key=lambda j: (-row[j], j))
        hits += order[0] == label
        hits5 += label in order[:5]
        by_class.setdefault(int(label), []).append(order[0] == label)
    found = tallied(scores, labels, 7).metrics()
    assert found["top1"] == hits / 103 and found["top5"] == hits5 / 103
    mean = np.mean([np.mean(x) for x in by_class.values()])
    assert found["mean_per_class"] == pytest.approx(mean, abs=1e-14)


def test_two_classes_of_one_name_count_as_published():
    """Of equal ones the first wins, as with argmax; so one of the two is always wrong."""
    scores = np.array([[0.1, 0.9, 0.9], [0.1, 0.9, 0.9]])
    top, score = top_k(scores, 5)
    assert top.tolist() == [[1, 2, 0]] * 2 and score[0].tolist() == [0.9, 0.9, 0.1]
    tally = Tally(3)
    tally.add(np.array([1, 2]), top)
    assert tally.metrics()["top1"] == 0.5 and tally.metrics()["top5"] == 1


def test_what_is_no_number_is_never_preferred():
    scores = np.array([[np.nan, 0.0, 1.0], [np.nan, -1.0, np.nan]])
    assert top_k(scores, 3)[0].tolist() == [[2, 1, 0], [1, 0, 2]]


def test_a_label_that_is_no_class_is_refused():
    tally = Tally(3)
    for labels, top in (([3], [[0]]), ([-1], [[0]]), ([0], [[3]]), ([0], [[-1]])):
        with pytest.raises(ValueError, match=r"(label|answer): expected 0\.\.2, got one outside"):
            tally.add(np.array(labels), np.array(top))
    with pytest.raises(ValueError, match="nothing to measure"):
        tally.metrics()
    tally.add(np.zeros(0, np.int64), np.zeros((0, 3), np.int64))
    assert tally.n == 0


@pytest.mark.parametrize("metric", ["top1", "top5", "mean_per_class"])
def test_the_interval_equals_drawing_the_pictures_themselves(metric):
    scores, labels = classified(2, 6)
    tally = tallied(scores, labels, 50)
    low, high = tally.interval(metric)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        chosen = rng.integers(103, size=103)
        drawn.append(tallied(scores[chosen], labels[chosen], 103).metrics()[metric])
    assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.012)
    assert low < tally.metrics()[metric] < high
    assert tally.interval(metric) == (low, high)


def test_a_million_embeddings_in_blocks_take_no_more_memory_than_two_blocks():
    """A hundred classes, 1,000,000 embeddings: the peak is far below what they take together."""
    rng = np.random.default_rng(0)
    matrix = l2_normalize(rng.normal(size=(100, 32)).astype(np.float32))
    block, blocks = 10_000, 100
    embeds = l2_normalize(rng.normal(size=(block, 32)).astype(np.float32))
    labels = top_k(embeds @ matrix.T, 1)[0][:, 0]

    def peak(count: int) -> tuple[int, Tally]:
        tracemalloc.start()
        tally = Tally(100)
        for i in range(count):
            tally.add((labels + i % 2) % 100, top_k(np.roll(embeds, i % 3, 1) @ matrix.T, 5)[0])
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top, tally

    began = time.monotonic()
    few, all_of_them = peak(2)[0], peak(blocks)
    assert all_of_them[1].n == 1_000_000
    assert all_of_them[0] < 1.1 * few < 1_000_000 * 32 * 4 / 4
    assert time.monotonic() - began < 60


# Retrieval ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_retrieval_with_several_captions_equals_brute_force(levels, block):
    rng = np.random.default_rng(levels)
    I_e = rng.integers(levels, size=(11, 3)).astype(float)
    owner = np.concatenate([np.arange(11), rng.integers(11, size=20)])
    T_e = rng.integers(levels, size=(31, 3)).astype(float)
    found = retrieve(I_e, T_e, owner, block)
    scores = I_e @ T_e.T
    for i in range(11):
        right = max(scores[i, j] for j in range(31) if owner[j] == i)
        others = [scores[i, j] for j in range(31) if owner[j] != i]
        assert found.image_to_text[i] == sum(score >= right for score in others)
    for j in range(31):
        right = scores[owner[j], j]
        assert found.text_to_image[j] == sum(
            scores[i, j] >= right for i in range(11) if i != owner[j]
        )
    metrics = found.metrics()
    assert metrics["image_to_text_r5"] == np.mean(found.image_to_text < 5)
    assert metrics["text_to_image_r10"] == np.mean(found.text_to_image < 10)


def test_a_caption_for_each_picture_is_the_plain_case():
    rng = np.random.default_rng(0)
    I_e, T_e = rng.normal(size=(2, 20, 4))
    found = retrieve(I_e, T_e, np.arange(20), 6)
    assert np.array_equal(found.image_to_text, ranks(I_e @ T_e.T, np.arange(20)))
    assert np.array_equal(found.text_to_image, ranks(T_e @ I_e.T, np.arange(20)))


def test_captions_that_belong_to_nothing_are_refused():
    x = np.ones((3, 2))
    for owner in ([0, 1, 3], [-1, 1, 2], [0, 1, 1]):
        with pytest.raises(ValueError, match="each of the pictures"):
            retrieve(x, x, np.array(owner))


def test_the_interval_of_retrieval_equals_drawing_pictures_with_their_captions():
    rng = np.random.default_rng(3)
    owner = np.sort(np.concatenate([np.arange(40), rng.integers(40, size=60)]))
    I_e = l2_normalize(rng.normal(size=(40, 4)))
    found = retrieve(I_e, I_e[owner] + 0.7 * rng.normal(size=(100, 4)), owner)
    drawn = []
    for _ in range(2000):
        chosen = rng.integers(40, size=40)
        captions = np.concatenate([np.flatnonzero(owner == i) for i in chosen])
        drawn.append(np.mean(found.text_to_image[captions] < 5))
    low, high = found.interval("text_to_image_r5", owner)
    assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.02)
    low, high = found.interval("image_to_text_r1", owner)
    assert low < found.metrics()["image_to_text_r1"] < high


# Prompt ensembles ---------------------------------------------------------------------------------


def test_features_that_are_nothing_are_refused():
    good = np.ones((2, 3))
    assert require_finite(good, "x") is good
    for bad in (np.nan, np.inf, 0.0):
        with pytest.raises(ValueError, match="features of x are zero, too large or no numbers"):
            require_finite(np.array([[1.0, 2.0], [bad, bad]]), "x")


def test_the_texts_of_a_class_stand_together_and_are_averaged_together():
    texts = fill_templates(["cat", "dog"], ["a {}", "my {}", "the {}"])
    assert texts == ["a cat", "my cat", "the cat", "a dog", "my dog", "the dog"]
    features = np.array([[2.0, 0], [3, 0], [4, 0], [0, 1], [0, 5], [9, 0]])
    dog = np.array([1, 2]) / np.sqrt(5)
    assert_allclose(average_prompts(features, 2), [[1, 0], dog])
