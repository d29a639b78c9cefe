"""Labels ranked for pictures, and the mark that none fits, on drawings by the unseen artist."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip.data.emoji.pictures import load_unseen_artist
from jaxclip.evaluation import classified
from jaxclip.evaluation.classified import ClassifiedPicture, LabelClassifier
from jaxclip.evaluation.features import map_batches
from tests.support.tolerances import within

COUNT = 240  # drawings
LABELS = ("rocket", "cat face", "bicycle", "bus", "lollipop", "factory")


@pytest.fixture(scope="module")
def drawings() -> tuple[jaxclip.Clip, np.ndarray, list[str], LabelClassifier]:
    """The embedded model, features and names of drawings by the unseen artist, and all labels."""
    model, preprocess = jaxclip.load("emoji")
    pictures = load_unseen_artist()
    chosen = np.arange(0, len(pictures.names), 6)[:COUNT]
    some = pictures.select(chosen)
    pixels = np.stack([preprocess.safe(Image.fromarray(x, "RGBA")) for x in some.images])
    labels = [*dict.fromkeys([*some.names, *LABELS])]
    classifier = LabelClassifier.make(model, labels, ["{}"], None)
    return model, map_batches(model.encode_image, pixels, 60), list(some.names), classifier


def rows(drawings: tuple, labels: Sequence[str], i: int | None = None) -> list[ClassifiedPicture]:
    model, features, names, every = drawings
    chosen = slice(None) if i is None else slice(i, i + 1)
    embeds = every.embeds[[every.labels.index(x) for x in labels]]
    classifier = dataclasses.replace(every, labels=tuple(labels), embeds=embeds)
    return classifier.rank(model, names[chosen], features[chosen])


def test_scores_are_those_of_the_model(drawings: tuple) -> None:
    model, features, _, _ = drawings
    labels = ["rocket", "cat face", "bicycle"]
    tokens = model.tokenize(labels)
    text = np.asarray(model.encode_text(tokens))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, text)]
    cosines = unit[0] @ unit[1].T
    for row, right in zip(rows(drawings, labels), cosines, strict=True):
        assert [x.label for x in row.labels] == [labels[j] for j in np.argsort(-right)]
        assert sum(x.probability for x in row.labels) == pytest.approx(1)
        for x in row.labels:
            cosine = right[labels.index(x.label)]
            assert x.cosine == pytest.approx(cosine, abs=within("embeds"))
            scale = float(np.exp(np.asarray(model.logit_scale[...])))
            assert x.logit == pytest.approx(scale * cosine, rel=1e-4, abs=1e-3)


def mark_rates(drawings: tuple, count: int) -> tuple[float, float]:
    """Shares of marked rows: with the right label among `count` and first; with others only."""
    names = drawings[2]
    rng = np.random.default_rng(count)
    fits, fits_not = [], []
    for i in range(0, len(names), 3):
        others = rng.choice([x for x in sorted(set(names)) if x != names[i]], count, replace=False)
        (row,) = rows(drawings, [names[i], *others[1:]], i)
        if row.labels[0].label == names[i]:
            fits.append(row.none_fits)
        (row,) = rows(drawings, list(others), i)
        fits_not.append(row.none_fits)
    assert len(fits) > 40
    return float(np.mean(fits)), float(np.mean(fits_not))


@pytest.mark.parametrize("count", [2, 10])
def test_the_mark_tells_fitting_labels_from_others(drawings: tuple, count: int) -> None:
    """On all 1,556 drawings: 6 and 13 % of right answers are marked, 92 and 88 % of wrong ones."""
    fits, fits_not = mark_rates(drawings, count)
    assert fits < 0.25 and fits_not > 0.75, (fits, fits_not)


def test_the_mark_would_say_nothing_by_probability_alone(drawings: tuple) -> None:
    """Softmax is as sure of the best wrong label, often: probabilities cannot make the mark."""
    names = drawings[2]
    sure = [rows(drawings, ["lollipop", "factory"], i)[0] for i in range(0, len(names), 12)]
    wrong = [x for x in sure if x.labels[0].label != x.picture]
    assert np.mean([x.labels[0].probability > 0.9 for x in wrong]) > 0.3
    assert np.mean([x.none_fits is True for x in wrong]) > 0.7


def test_a_model_that_knows_too_few_words_has_no_mark(
    drawings: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classified, "LEAST_WORDS", 101)
    assert {row.none_fits for row in rows(drawings, ["rocket", "bus"])} == {None}


def test_selecting_keeps_the_best_and_the_mark(drawings: tuple) -> None:
    (row,) = rows(drawings, ["rocket", "cat face", "bicycle"], 0)
    assert row.select() == row
    assert row.select(top=2).labels == row.labels[:2]
    least = row.labels[1].cosine
    assert row.select(threshold=least, by="cosine").labels == row.labels[:2]
    assert row.select(threshold=1.1).labels == () and row.select(top=1).none_fits == row.none_fits
