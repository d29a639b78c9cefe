"""The paper's linear probe (appendix A.3): logistic regression on frozen features, in JAX.

Multinomial logistic regression with an L2 penalty and full-batch L-BFGS, at most 1000 iterations,
the penalty chosen on validation pictures. The features of a Vision Transformer are those before
the projection to the joint space; those of a ResNet are the output of the attention pool, whose
last map is the projection. (The README of the released code probes `encode_image` for both.)

All penalties of a round are fitted at once: they share the features, so each product of all fits
is one matrix product.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.config import ResNetConfig
from jaxclip.models.clip import Clip

Array = jax.Array
MOST = 1000  # iterations, as in the paper
MEMORY = 10  # pairs that L-BFGS keeps, as scipy does
ROUNDING = 1e-6  # of the objective, in float32
TRIALS = 20  # steps that a line search tries
TOLERANCE = 1e-5  # greatest entry of the gradient of the mean loss at which a fit has ended
PER_DECADE = 8  # steps of the penalty, the paper's resolution
FIRST = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # exponents that the search begins with
SWEEP = tuple(np.logspace(-6, 6, 12 * PER_DECADE).tolist())  # the paper's 96 values
AT_ONCE = 16  # fits at a time: what they keep is a few arrays [n, fits, c]


def probe_features(model: Clip, images: Array) -> Array:
    """images [n, h, w, c] -> features for a probe: [n, d] of a ViT, [n, e] of a ResNet."""
    if isinstance(model.config.vision, ResNetConfig):
        return model.encode_image(images)
    return model.visual.stages(images)[1]["pooled"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Fitted weights, one set a penalty.

    penalties: [m], lambda of each; scikit-learn's C is 1 / lambda.
    kernel: [m, d, c]. bias: [m, c], not penalised.
    loss: [m], mean cross-entropy plus lambda / (2 n) times the sum of squares of the kernel.
    iterations: int [m]; MOST where the fit had not ended.
    """

    penalties: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    loss: np.ndarray
    iterations: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """features [n, d] -> logits [m, n, c]."""
        return features @ self.kernel + self.bias[:, None]

    def accuracies(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """features [n, d], labels int [n] -> share of right answers of each, [m]."""
        return (self.scores(features).argmax(axis=-1) == labels).mean(axis=1)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """m fits over the same rows [n, d + 1], whose last column is one: the bias is a row as well.

    Weights [m, d + 1, c] and logits [n, m, c] of all fits are one matrix each, so that the two
    products of an iteration, with the rows and with their transpose, are one product each.
    """

    rows: Array
    labels: Array
    penalties: Array  # [m], over n

    def logits(self, weights: Array) -> Array:
        """[m, d + 1, c] -> [n, m, c]."""
        m, d, c = weights.shape
        return (self.rows @ weights.transpose(1, 0, 2).reshape(d, m * c)).reshape(-1, m, c)

    def loss(self, logits: Array, squares: Array) -> Array:
        """Objective of each fit: logits [n, m, c], squares [m] of the kernel -> [m]."""
        right = jnp.take_along_axis(logits, self.labels[:, None, None], axis=2)[..., 0]  # [n, m]
        return (jax.nn.logsumexp(logits, axis=2) - right).mean(0) + self.penalties * squares / 2

    def slopes(self, logits: Array) -> Array:
        """Derivative of the mean cross-entropy by the logits: [n, m, c] -> [n, m, c]."""
        n, _, c = logits.shape
        one_hot = jax.nn.one_hot(self.labels, c, dtype=logits.dtype)[:, None]
        return (jax.nn.softmax(logits, axis=2) - one_hot) / n

    def gradient(self, weights: Array, logits: Array) -> Array:
        """[m, d + 1, c], of each fit's objective."""
        m, d, c = weights.shape
        of_data = (self.rows.T @ self.slopes(logits).reshape(-1, m * c)).reshape(d, m, c)
        return of_data.transpose(1, 0, 2) + self.penalties[:, None, None] * penalised(weights)


def penalised(weights: Array) -> Array:
    """The weights with the bias, their last row, set to zero: [m, d + 1, c] -> the same."""
    return weights.at[:, -1].set(0)


def _step_lengths(problem: _Problem, weights: Array, z: Array, toward: Array, dz: Array) -> Array:
    """The step length of each fit along `toward`, [m], for weights and direction [m, d + 1, c].

    The logits are linear in the step, z + t dz [n, m, c], so that trying a step costs no product
    with the rows. The objective is convex: a step is taken once its slope has risen from the first
    slope s to between 0.9 s and -0.5 s (Wolfe's second condition, and the first as Hager and Zhang
    2005 approximate it, which float32 still resolves near the optimum) and it has not grown.
    """
    kernel, kernel_toward = penalised(weights), penalised(toward)
    squares = [(a * b).sum((1, 2)) for a, b in ((kernel, kernel), (kernel, kernel_toward))]
    bend = jnp.square(kernel_toward).sum((1, 2))

    def at(t: Array) -> tuple[Array, Array]:
        moved = z + t[:, None] * dz
        value = problem.loss(moved, squares[0] + 2 * t * squares[1] + t * t * bend)
        slope = (problem.slopes(moved) * dz).sum((0, 2))
        return value, slope + problem.penalties * (squares[1] + t * bend)

    zero = jnp.zeros(len(weights))
    first, start = at(zero)

    def good(value: Array, slope: Array) -> Array:
        fits = (slope >= 0.9 * start) & (slope <= -0.5 * start)
        return fits & (value <= first + ROUNDING * jnp.abs(first))

    def unsettled(carry: Any) -> Array:
        _, _, _, value, slope, i = carry
        return (i < TRIALS) & ~good(value, slope).all()

    def narrow(carry: Any) -> Any:
        t, low, high, value, slope, i = carry
        short = (slope < 0.9 * start) & (value <= first + ROUNDING * jnp.abs(first))
        kept = good(value, slope)
        low = jnp.where(short & ~kept, t, low)
        high = jnp.where(~short & ~kept, t, high)
        tried = jnp.where(jnp.isinf(high), 2 * t, (low + high) / 2)
        t = jnp.where(kept, t, tried)
        return t, low, high, *at(t), i + 1

    t = jnp.ones(len(weights))
    return jax.lax.while_loop(unsettled, narrow, (t, zero, zero + jnp.inf, *at(t), 0))[0]


@jax.jit
def _fit(
    features: Array, labels: Array, penalties: Array, weights: Array, tolerance: float, most: int
) -> tuple[Array, Array, Array]:
    """(weights [m, d + 1, c], objective [m], iterations [m]) of every penalty, from `weights`."""
    n, m = len(features), len(penalties)
    problem = _Problem(jnp.concatenate([features, jnp.ones((n, 1))], 1), labels, penalties / n)
    solver = optax.scale_by_lbfgs(memory_size=MEMORY)

    def unfinished(carry: Any) -> Array:
        _, _, gradient, _, _, i = carry
        return (i < most) & (jnp.abs(gradient).max((1, 2)) > tolerance).any()

    def iterate(carry: Any) -> Any:
        weights, z, gradient, state, counts, i = carry
        active = jnp.abs(gradient).max((1, 2)) > tolerance  # [m]
        toward, state = jax.vmap(solver.update)(gradient, state, weights)
        toward = jnp.where(active[:, None, None], -toward, 0)  # a finished fit does not move
        dz = problem.logits(toward)
        t = _step_lengths(problem, weights, z, toward, dz)
        weights, z = weights + t[:, None, None] * toward, z + t[:, None] * dz
        return weights, z, problem.gradient(weights, z), state, counts + active, i + 1

    z = problem.logits(weights)
    begin = (weights, z, problem.gradient(weights, z), jax.vmap(solver.init)(weights))
    carry = (*begin, jnp.zeros(m, jnp.int32), 0)
    weights, _, _, _, counts, _ = jax.lax.while_loop(unfinished, iterate, carry)
    squares = jnp.square(penalised(weights)).sum((1, 2))
    return weights, problem.loss(problem.logits(weights), squares), counts


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    most: int = MOST,
) -> Probe:
    """Logistic regression with each of the penalties, all of them at once.

    Minimised is scikit-learn's objective: the sum of the cross-entropies over the rows, plus
    penalty / 2 times the sum of squares of the kernel; the bias goes free.

    Args:
      features: [n, d].
      labels: int [n] in 0..classes-1.
      classes: c; one without a row is allowed.
      penalties: m positive numbers; scikit-learn's C is 1 / penalty.
      tolerance: greatest entry of the gradient, of the objective over n, that ends a fit.
      most: iterations that a fit may take.

    Raises:
      ValueError: a label is no class, a feature no number, a penalty not positive.

    >>> rows = np.array([[-1.0], [1.0]])
    >>> fit(rows, np.array([0, 1]), 2, [1.0]).accuracies(rows, np.array([0, 1])).tolist()
    [1.0]
    """
    _check(features, labels, classes)
    if not all(np.isfinite(p) and p > 0 for p in penalties):
        raise ValueError(f"penalties: expected positive numbers, got {list(penalties)}")
    rows, targets = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    parts = []
    for start in range(0, len(penalties), AT_ONCE):
        some = jnp.asarray(penalties[start : start + AT_ONCE], jnp.float32)
        weights = jnp.zeros((len(some), features.shape[1] + 1, classes))
        part = _fit(rows, targets, some, weights, tolerance, most)
        parts.append([np.asarray(x) for x in part])
    whole, loss, counts = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Probe(np.array(penalties), whole[:, :-1], whole[:, -1], loss, counts)


def _check(features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if features.ndim != 2 or len(features) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"expected features [n, d] and n labels, got {features.shape} and {len(labels)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels: expected 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    if not np.isfinite(features).all():
        raise ValueError("a feature is no number; the weights are damaged or have diverged")


# The choice of the penalty ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """The result of a search: penalties [m], ascending, and their accuracy on validation [m]."""

    penalties: np.ndarray
    accuracies: np.ndarray

    @property
    def best(self) -> float:
        """The penalty with the highest accuracy; of equals the one in the middle."""
        return float(self.penalties[_middle_best(self.accuracies)])


def _middle_best(accuracies: np.ndarray) -> int:
    """The index of the highest; of several the middle one, the safest from either side."""
    best = np.flatnonzero(accuracies == accuracies.max())
    return int(best[len(best) // 2])


Split = tuple[np.ndarray, np.ndarray]  # features [n, d], labels int [n]


def _accuracies(
    train: Split, validation: Split, classes: int, penalties: Sequence[float], most: int
) -> np.ndarray:
    _check(*validation, classes)
    return fit(*train, classes, penalties, most=most).accuracies(*validation)


def search_penalty(train: Split, validation: Split, classes: int, most: int = MOST) -> Choice:
    """The paper's search: seven penalties two decades apart, then halves around the peak.

    Up to the resolution of eight steps a decade: 15 fits instead of 96. `most` as of `fit`.
    """

    def try_all(exponents: Sequence[float]) -> dict[float, float]:
        shares = _accuracies(train, validation, classes, _powers(exponents), most)
        return dict(zip(exponents, shares, strict=True))

    found = try_all(FIRST)
    gap = float(FIRST[1] - FIRST[0])
    while gap > 1 / PER_DECADE:
        exponents = sorted(found)
        peak = exponents[_middle_best(np.array([found[e] for e in exponents]))]
        gap /= 2
        near = [e for e in (peak - gap, peak + gap) if FIRST[0] <= e <= FIRST[-1]]
        found |= try_all(near)
    exponents = sorted(found)
    return Choice(np.array(_powers(exponents)), np.array([found[e] for e in exponents]))


def _powers(exponents: Sequence[float]) -> list[float]:
    return [10.0**exponent for exponent in exponents]


def sweep_penalties(train: Split, validation: Split, classes: int, most: int = MOST) -> Choice:
    """The paper's 96 penalties, all of them; `search_penalty` fits 15."""
    return Choice(np.array(SWEEP), _accuracies(train, validation, classes, SWEEP, most))
