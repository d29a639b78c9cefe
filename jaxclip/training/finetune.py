"""Around an optimiser: locked parts, rates by path, clipped gradients, averages of weights."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import checkpoint
from jaxclip.models.parameters import named_leaves
from jaxclip.training.optimizer import hold_logit_scale

# (pattern, factor on the learning rate): the first pattern found in a parameter's path counts, one
# layer of a stack at a time (`visual.transformer.resblocks.3.ln_1.scale`); 1 where none is found.
Rates = Sequence[tuple[str, float]]
LOCKED_IMAGE_TOWER: Rates = ((r"^visual\.", 0.0),)  # LiT (Zhai et al. 2021, arXiv 2111.07991)


def factors(params: Any, rates: Rates) -> Any:
    """A tree like `params`: the factor of every parameter, [layers, 1, ...] for a stack."""

    def of(path: str) -> float:
        return next((factor for pattern, factor in rates if re.search(pattern, path)), 1.0)

    def leaf(path: str, value: Any) -> np.ndarray:
        tower, found, rest = path.partition("resblocks.")
        if not found or rest.split(".")[0].isdigit():  # blocks kept apart have paths of their own
            return np.array(of(path), np.float32)
        each = [of(f"{tower}resblocks.{i}.{rest}") for i in range(value.shape[0])]
        return np.array(each, np.float32).reshape(-1, *(1,) * (value.ndim - 1))

    leaves = [leaf(path, value) for path, value in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def at_rates(optimizer: optax.GradientTransformation, rates: Rates) -> optax.GradientTransformation:
    """`optimizer` with its updates, decay too, times a factor by path; 0 locks to the bit."""

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        scaled = jax.tree.map(lambda u, f: u * f.astype(u.dtype), updates, factors(params, rates))
        return scaled, state

    return optax.GradientTransformation(optimizer.init, update)


def with_clipped_norm(
    optimizer: optax.GradientTransformation, norm: float, rates: Rates = ()
) -> optax.GradientTransformation:
    """`optimizer` on gradients whose global norm is at most `norm`; its state is the same.

    The norm is that of all parameters together, but for those that `rates` lock: their gradients
    are taken as zero, as big_vision and torch's `clip_grad_norm_` leave them out.
    """
    clip = optax.clip_by_global_norm(norm)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def unlocked(g: Any, factor: np.ndarray) -> Any:
            return g * (factor > 0).astype(g.dtype) if (factor == 0).any() else g

        grads = jax.tree.map(unlocked, grads, factors(params, rates))
        clipped, _ = clip.update(grads, clip.init(params))
        return optimizer.update(clipped, state, params)

    return optax.GradientTransformation(optimizer.init, update)


class Averaged(NamedTuple):
    """The state of an optimiser that keeps an average of the weights beside its own."""

    inner: Any
    average: Any  # a tree like the parameters


def with_average(optimizer: optax.GradientTransformation, decay: float) -> Any:
    """`optimizer` with the moving average of the weights after each update, from the first on.

    average = decay * average + (1 - decay) * weights
    """

    def init(params: Any) -> Averaged:
        return Averaged(optimizer.init(params), jax.tree.map(jnp.array, params))

    def update(grads: Any, state: Averaged, params: Any) -> tuple[Any, Averaged]:
        updates, inner = optimizer.update(grads, state.inner, params)
        updated = hold_logit_scale(optax.apply_updates(params, updates))
        # not optax.incremental_update: in float32 its factors 0.0001 and 0.9999 do not add up to 1,
        # which shrinks the average by some 2e-4
        change = optax.tree.scale(1 - decay, optax.tree.sub(updated, state.average))
        return updates, Averaged(inner, optax.apply_updates(state.average, change))

    return optax.GradientTransformation(init, update)


def _wider(one: np.dtype, other: np.dtype) -> np.dtype:
    """The narrowest number format that holds every number of both."""
    if one == other:
        return one
    # NumPy has no rule for bfloat16; beside any other format it takes float32 or more
    plain = (np.dtype(np.float32) if each.name == "bfloat16" else each for each in (one, other))
    return np.promote_types(*plain)


def interpolate(
    start: Mapping[str, np.ndarray], end: Mapping[str, np.ndarray], share: float
) -> checkpoint.Flat:
    """(1 - share) * start + share * end, by name (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).

    Args:
      start: flat parameters, of the model before fine-tuning.
      end: the same after it.
      share: 0 gives `start`, 1 gives `end`; the paper takes 0.5 where nothing else is known.

    Returns:
      Arrays in the wider of the two number formats, computed in float64 and rounded once.

    >>> interpolate({"a": np.zeros(2)}, {"a": np.ones(2)}, 0.25)
    {'a': array([0.25, 0.25])}
    """
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise ValueError(f"share: expected a number from 0 to 1, got {share}")
    checkpoint.check({name: array.shape for name, array in start.items()}, dict(end))

    def mix(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        if share in (0, 1):  # to the bit: 0 * x + y would lose the sign of a zero
            return np.asarray(other if share else one)
        return (1 - share) * np.asarray(one, np.float64) + share * np.asarray(other, np.float64)

    return {
        name: mix(array, end[name]).astype(_wider(array.dtype, end[name].dtype))
        for name, array in start.items()
    }


def parameters_at_rate(params: Any, rates: Rates) -> dict[float, int]:
    """{factor: how many parameters train at it}: to see what a rule has caught."""
    found: dict[float, int] = {}
    for factor, value in zip(
        jax.tree.leaves(factors(params, rates)), jax.tree.leaves(params), strict=True
    ):
        for one in np.ravel(factor):
            found[float(one)] = found.get(float(one), 0) + value.size // jnp.size(factor)
    return found
