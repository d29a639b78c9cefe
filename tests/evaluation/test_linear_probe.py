"""The linear probe: scikit-learn's optimum, the paper's search, and what it refuses."""

import numpy as np
import pytest

from jaxclip.evaluation import linear_probe
from jaxclip.evaluation.linear_probe import Choice, fit, search_penalty, sweep_penalties

PENALTIES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
CLASSES = 4


def blobs(n: int = 300, d: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds of uneven spread, away from the origin."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, d))
    labels = rng.integers(CLASSES, size=n)
    noise = rng.normal(size=(n, d)) * np.linspace(0.5, 3, d)
    return (centres[labels] + noise + 1.0).astype(np.float32), labels


def loss(kernel, bias, features, labels, penalty) -> float:
    """The objective over n, in float64, written apart from the one that is fitted."""
    logits = features.astype(np.float64) @ kernel + bias
    shifted = logits - logits.max(1, keepdims=True)
    entropies = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return entropies.mean() + penalty / (2 * len(labels)) * np.square(kernel).sum()


def judged(features, labels, penalty) -> float:
    """The loss at scikit-learn's optimum, run much further than by default."""
    from sklearn.linear_model import LogisticRegression

    judge = LogisticRegression(C=1 / penalty, tol=1e-7, max_iter=5000)
    judge.fit(features.astype(np.float64), labels)
    return loss(judge.coef_.T, judge.intercept_, features, labels, penalty)


@pytest.fixture(scope="module")
def optima() -> list[float]:
    return [judged(*blobs(), penalty) for penalty in PENALTIES]


def departures(probe, optima) -> np.ndarray:
    ours = [
        loss(k.astype(np.float64), b, *blobs(), p)
        for k, b, p in zip(probe.kernel, probe.bias, PENALTIES, strict=True)
    ]
    return np.abs(np.array(ours) - optima)


def test_the_optimum_is_scikit_learns(optima):
    probe = fit(*blobs(), CLASSES, PENALTIES)
    assert departures(probe, optima).max() < 1e-4
    np.testing.assert_allclose(probe.loss, optima, atol=1e-4)
    assert (probe.iterations < linear_probe.MOST).all()


def test_another_penalty_is_not_that_optimum(optima):
    probe = fit(*blobs(), CLASSES, [3 * penalty for penalty in PENALTIES])
    assert departures(probe, optima)[2:].min() > 1e-4  # below, the penalty hardly counts


def test_a_fit_that_is_cut_short_is_not_that_optimum(optima):
    assert departures(fit(*blobs(), CLASSES, PENALTIES, most=3), optima).max() > 1e-3


def test_a_penalised_bias_is_not_that_optimum(optima, monkeypatch):
    monkeypatch.setattr(linear_probe, "penalised", lambda weights: weights)
    linear_probe._fit.clear_cache()
    probe = fit(*blobs(), CLASSES, PENALTIES)
    monkeypatch.undo()
    linear_probe._fit.clear_cache()
    assert departures(probe, optima).max() > 1e-4


def test_many_at_once_are_what_each_is_alone():
    many = fit(*blobs(), CLASSES, PENALTIES)
    for i, penalty in enumerate(PENALTIES):
        alone = fit(*blobs(), CLASSES, [penalty])
        np.testing.assert_allclose(alone.loss[0], many.loss[i], atol=1e-5)
        np.testing.assert_allclose(alone.kernel[0], many.kernel[i], atol=2e-2)


def test_more_penalties_than_go_at_once(monkeypatch):
    whole = fit(*blobs(), CLASSES, PENALTIES)
    monkeypatch.setattr(linear_probe, "AT_ONCE", 2)
    parts = fit(*blobs(), CLASSES, PENALTIES)
    assert parts.kernel.shape == whole.kernel.shape
    np.testing.assert_allclose(parts.loss, whole.loss, atol=1e-5)


def test_a_class_without_a_row_is_never_the_answer():
    features, labels = blobs()
    probe = fit(features, labels, CLASSES + 1, [1.0])
    assert (probe.scores(features).argmax(-1) < CLASSES).all()


def test_the_search_finds_the_peak_of_a_sweep(monkeypatch):
    """A planted accuracy with one peak: the halves end within an eighth of a decade of it."""

    def planted(train, validation, classes, penalties, most):
        return 1 - np.abs(np.log10(penalties) - 1.3) / 10

    monkeypatch.setattr(linear_probe, "_accuracies", planted)
    nothing = (np.zeros((1, 1)), np.zeros(1, int))
    found, whole = search_penalty(nothing, nothing, 2), sweep_penalties(nothing, nothing, 2)
    assert len(found.penalties) == 15 and len(whole.penalties) == 96
    assert abs(np.log10(found.best) - 1.3) <= 1 / 8
    assert abs(np.log10(whole.best) - 1.3) <= 1 / 8
    monkeypatch.setattr(linear_probe, "_accuracies", lambda *_: -planted(*_))
    assert np.isclose(
        search_penalty(nothing, nothing, 2).best, 1e-6
    )  # and at the edge it stays inside


@pytest.mark.slow  # 96 fits
def test_the_search_is_as_good_as_the_sweep_on_real_fits():
    train, validation = blobs(120), blobs(200, seed=1)
    found, whole = (
        search_penalty(train, validation, CLASSES),
        sweep_penalties(train, validation, CLASSES),
    )
    assert found.accuracies.max() >= whole.accuracies.max() - 0.02
    assert found.accuracies.max() > found.accuracies.min()  # the penalty matters here


def test_of_equal_penalties_the_middle_one_is_chosen():
    assert Choice(np.array([0.1, 1.0, 10.0]), np.array([0.5, 0.5, 0.5])).best == 1.0
    assert Choice(np.array([0.1, 1.0, 10.0]), np.array([0.5, 0.5, 0.4])).best == 1.0


@pytest.mark.parametrize(
    ("features", "labels", "penalties", "message"),
    [
        (np.ones((2, 1)), np.array([0, 2]), [1.0], "expected 0..1, got 0..2"),
        (np.ones((2, 1)), np.array([-1, 1]), [1.0], "expected 0..1, got -1..1"),
        (np.ones((2, 1)), np.array([0]), [1.0], "features"),
        (np.ones((0, 1)), np.zeros(0, int), [1.0], "features"),
        (np.array([[1.0], [np.nan]]), np.array([0, 1]), [1.0], "no number"),
        (np.ones((2, 1)), np.array([0, 1]), [0.0], "penalties"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features, labels, penalties, message):
    with pytest.raises(ValueError, match=message):
        fit(features, labels, 2, penalties)


def test_features_are_before_the_projection_of_a_vit_and_after_that_of_a_resnet():
    import jax

    from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
    from jaxclip.models import clip

    text = TextConfig(8, 1, 2, 5, 20, "cbow")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    vit = clip.create(ClipConfig(VisionConfig(32, 16, 12, 2, 2), text, 5), remat="none")
    features = jax.jit(linear_probe.probe_features)(vit, images)
    assert features.shape == (2, 12)
    encode = jax.jit(lambda model, images: model.encode_image(images))
    np.testing.assert_allclose(features @ vit.visual.proj[...], encode(vit, images), atol=1e-5)
    resnet = clip.create(ClipConfig(ResNetConfig(32, 4, (1, 1, 1, 1)), text, 5), remat="none")
    features = jax.jit(linear_probe.probe_features)(resnet, images)
    np.testing.assert_allclose(features, encode(resnet, images), atol=1e-5)
