"""The linear probe beside scikit-learn's: how long the search's first seven penalties take.

Question:  is the probe faster than scikit-learn's logistic regression at the same optimum?
Command:   pip install scikit-learn && python -m experiments.probe_speed FOLDER [--pictures N]
Result:    docs/supervised.md holds what was measured, with the machine and the versions.

Features are the pixels of Fashion-MNIST pictures (FOLDER: experiments/recipes/fashion_mnist.py).
Both fit all seven penalties to the same tolerance, in turn in one process; ours is timed after it
was compiled, and the compilation apart. Losses are computed in float64.
"""

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from experiments.lib import common
from experiments.recipes import fashion_mnist
from jaxclip.cli.usage import Positive
from jaxclip.evaluation.linear_probe import FIRST, MOST, fit
from jaxclip.evaluation.results import read_versions

TOLERANCE = 1e-4  # scikit-learn's default: greatest entry of the gradient of the mean loss
PENALTIES = [10.0**exponent for exponent in FIRST]


def timed(make: Callable[[], Any]) -> tuple[Any, float, float]:
    """(what it makes, seconds on the wall, seconds of processor)."""
    began = time.monotonic(), time.process_time()
    made = make()
    return made, time.monotonic() - began[0], time.process_time() - began[1]


def judge(features: np.ndarray, labels: np.ndarray) -> list[Any]:
    """scikit-learn's fits, one after the other."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that needs MOST iterations is named in the result
        return [
            LogisticRegression(C=1 / penalty, tol=TOLERANCE, max_iter=MOST).fit(features, labels)
            for penalty in PENALTIES
        ]


def loss(
    kernel: np.ndarray, bias: np.ndarray, rows: np.ndarray, labels: np.ndarray, penalty: float
) -> float:
    """The objective over n in float64: kernel [d, c], rows [n, d]."""
    logits = rows.astype(np.float64) @ kernel + bias
    logits -= logits.max(axis=1, keepdims=True)
    entropies = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return float(entropies.mean() + penalty / (2 * len(labels)) * np.square(kernel).sum())


@dataclasses.dataclass(frozen=True)
class Flags:
    folder: Positional[Path]
    """where Fashion-MNIST's four .gz files are"""
    pictures: Positive = 10_000
    """training pictures to fit"""


def work(flags: Flags) -> None:
    """Print one JSON line a penalty, and one with the seconds."""
    images, classes = fashion_mnist.read(flags.folder, "train")
    labels = classes[: flags.pictures]
    rows = (images[: flags.pictures].reshape(len(labels), -1) / 255).astype(np.float32)

    def ours() -> Any:
        return fit(rows, labels, len(fashion_mnist.CLASSES), PENALTIES, tolerance=TOLERANCE)

    first = timed(ours)[1]
    probe, *mine = timed(ours)
    others, *theirs = timed(lambda: judge(rows, labels))
    for i, (penalty, other) in enumerate(zip(PENALTIES, others, strict=True)):
        both = [
            loss(kernel.astype(np.float64), bias.astype(np.float64), rows, labels, penalty)
            for kernel, bias in (
                (probe.kernel[i], probe.bias[i]),
                (other.coef_.T, other.intercept_),
            )
        ]
        steps = [int(probe.iterations[i]), int(other.n_iter_[0])]
        row = {"penalty": penalty, "losses (ours, theirs)": both, "iterations": steps}
        print(json.dumps(row))
    seconds = {"ours, first": first, "ours (wall, processor)": mine, "theirs": theirs}
    ratio = [other / own for own, other in zip(mine, theirs, strict=True)]
    print(json.dumps({"pictures": len(labels), **seconds, "theirs / ours": ratio}))
    print(json.dumps({**read_versions(), "scikit-learn": version("scikit-learn")}))


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run_experiment(work, Flags, given, "probe_speed", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
