"""Calibration: its error, and the scale at which probabilities are frequencies."""

import numpy as np
import pytest

from jaxclip.evaluation.calibration import (
    at_scale,
    calibration_error,
    fit_logit_scale,
    with_others,
)

rng = np.random.default_rng(0)


def drawn(scale: float, n: int = 20_000, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Cosines, and answers drawn with their probabilities at a scale."""
    cosines = rng.uniform(-0.3, 0.3, (n, labels))
    shares = np.cumsum(at_scale(cosines, np.log(scale)), axis=1)
    return cosines, (rng.random((n, 1)) > shares).sum(axis=1).clip(max=labels - 1)


def test_the_error_by_hand() -> None:
    """Two answers at 0.9 of which one is right, two at 0.6 which both are: (2*0.4 + 2*0.4) / 4."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    error = calibration_error(probabilities, np.array([0, 1, 0, 0]))
    assert error == pytest.approx(0.4)
    assert calibration_error(np.eye(2), np.array([0, 1])) == 0


def test_the_fitted_scale_is_the_one_that_answers_were_drawn_at() -> None:
    cosines, answers = drawn(12.0)
    fitted = fit_logit_scale(cosines, answers)
    assert np.exp(fitted) == pytest.approx(12.0, rel=0.05)
    assert calibration_error(at_scale(cosines, fitted), answers) < 0.02
    assert calibration_error(at_scale(cosines, np.log(60.0)), answers) > 0.15  # too sure


def test_labels_hold_the_answer_first_and_no_class_twice() -> None:
    answers = np.array([0, 3, 9, 3])
    labels = with_others(answers, 10, 10)
    assert (labels[:, 0] == answers).all()
    assert all(sorted(row) == list(range(10)) for row in labels.tolist())
    few = with_others(np.repeat(answers, 100), 10, 3)
    assert (few[:, 0] == np.repeat(answers, 100)).all()
    assert all(len(set(row)) == 3 for row in few.tolist())
    with pytest.raises(ValueError, match="expected 1 to 10, the number of classes, got 11"):
        with_others(answers, 10, 11)
