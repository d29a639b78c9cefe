"""Locked parts stay to the bit, rates scale what they say, and averages are averages."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import checkpoint, hardware
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.models import clip, parameters
from jaxclip.training import finetune
from jaxclip.training.optimizer import adamw
from tests.support import tiny
from tests.support.tolerances import departure

CONFIG = ClipConfig(VisionConfig(20, 5, 24, 12, 3), TextConfig(16, 2, 2, 13, 101), 7)
PARAMS = checkpoint.flatten(tiny.params(text_layers=2))
BLOCK = "visual.transformer.resblocks"


def model() -> clip.Clip:
    return parameters.from_flat(PARAMS, clip.abstract(CONFIG))


@functools.cache
def moved(rates: finetune.Rates) -> checkpoint.Flat:
    """By how much one update changes each parameter, layer by layer."""
    optimizer = finetune.at_rates(adamw(0.1, 0, 10), rates)

    @jax.jit
    def update(made: clip.Clip) -> clip.Clip:
        grads = jax.tree.map(lambda x: jnp.cos(100 * x), made)
        updates, _ = optimizer.update(grads, optimizer.init(made), made)
        return optax.apply_updates(made, updates)

    before, after = parameters.to_flat(model()), parameters.to_flat(update(model()))
    return {name: after[name] - before[name] for name in before}


def test_a_locked_tower_stays_to_the_bit_and_the_other_moves():
    for name, change in moved(finetune.LOCKED_IMAGE_TOWER).items():
        assert np.any(change) != name.startswith("visual."), name


# Clipping -----------------------------------------------------------------------------------------


def norm_of(grads: Any) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in grads.values())))


def clipped(grads: dict[str, Any], norm: float, rates: finetune.Rates = ()) -> dict[str, Any]:
    """What reaches the optimiser, by its name."""
    passing = optax.GradientTransformation(lambda p: (), lambda g, s, p: (g, s))
    return finetune.with_clipped_norm(passing, norm, rates).update(grads, (), grads)[0]


def test_the_norm_of_all_gradients_together_is_clipped():
    grads = {"visual.a": jnp.array([3.0, 0.0]), "text.b": jnp.full((2, 2), 2.0)}  # norm 5
    got = clipped(grads, 1.0)
    assert norm_of(got) == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(got["text.b"], 2.0 / 5, rtol=1e-6)
    each = {name: np.asarray(g) / norm_of({name: g}) for name, g in grads.items()}  # the twin
    assert departure(got["text.b"], each["text.b"]) > 0.1
    for name, g in clipped(grads, 6.0).items():
        assert (g == grads[name]).all()


def test_locked_parameters_are_no_part_of_the_norm():
    grads = {"visual.a": jnp.array([100.0]), "text.b": jnp.array([3.0, 4.0])}
    got = clipped(grads, 1.0, finetune.LOCKED_IMAGE_TOWER)
    np.testing.assert_allclose(got["text.b"], [0.6, 0.8], rtol=1e-6)
    assert (got["visual.a"] == 0).all()


def test_clipping_leaves_the_state_of_the_optimiser_as_it_is():
    params = {"kernel": jnp.ones((2, 2))}
    plain = adamw(0.1, 0, 10)
    with_clip = finetune.with_clipped_norm(plain, 1.0)
    trees = [jax.tree.structure(each.init(params)) for each in (plain, with_clip)]
    assert trees[0] == trees[1]


# Rates --------------------------------------------------------------------------------------------


def test_layers_are_locked_by_their_number():
    """Blocks 0 to 9 and not 10 and 11, although all twelve are one array."""
    rates = ((r"resblocks\.\d\.", 0.0), (r"^text\.", 0.0))
    for name, change in moved(rates).items():
        locked = name.startswith("text.")
        if name.startswith(BLOCK):
            locked = int(name[len(BLOCK) + 1 :].split(".")[0]) < 10
        assert np.any(change) != locked, name


def test_blocks_that_are_kept_apart_are_locked_by_their_number_too():
    """The first axis of their arrays is no layer."""
    apart = hardware.for_cpu(clip.abstract(CONFIG))
    factors = finetune.factors(apart, ((r"resblocks\.3\.", 0.0),))
    named = parameters.named_leaves(factors)
    locked = {name for name, factor in named.items() if not np.all(factor)}
    assert locked == {name for name in named if ".resblocks.3." in name} and len(locked) == 12
    assert all(factor.shape == () for factor in named.values())


def test_rates_scale_the_whole_update_decay_too():
    plain, scaled = moved(()), moved(((r"^visual\.proj$", 0.25), (r"^visual\.", 0.5)))
    for name, change in plain.items():
        factor = 1.0 if not name.startswith("visual.") else 0.5
        factor = 0.25 if name == "visual.proj" else factor
        assert departure(scaled[name], factor * change) < 1e-4, name


def test_what_a_rule_has_caught_can_be_seen():
    rates = ((r"resblocks\.(10|11)\.", 0.5), (r"^visual\.transformer", 0.0))
    counts = finetune.parameters_at_rate(clip.abstract(CONFIG), rates)
    of_block = sum(v.size for n, v in PARAMS.items() if n.startswith(f"{BLOCK}.0."))
    assert counts[0.5] == 2 * of_block and counts[0.0] == 10 * of_block
    assert sum(counts.values()) == sum(value.size for value in PARAMS.values())


def test_interpolation_runs_from_one_checkpoint_to_the_other():
    start = {name: value.astype(np.float32) for name, value in PARAMS.items()}
    end = {name: value + 1 for name, value in start.items()}
    at = functools.partial(finetune.interpolate, start, end)
    assert all((at(0.0)[name] == start[name]).all() for name in start)
    assert all((at(1.0)[name] == end[name]).all() for name in end)
    assert max(departure(at(0.5)[n] - start[n], 0.5 + 0 * start[n]) for n in start) < 1e-5
    with pytest.raises(ValueError, match=r"\+ more \(\)"):
        finetune.interpolate(start, {**end, "more": np.zeros(())}, 0.5)
    with pytest.raises(ValueError, match=r"share: expected a number from 0 to 1, got 1\.5"):
        at(1.5)


def test_the_moving_average_forgets_at_its_rate():
    """Of weights that are 0 at first and 1 after every update."""
    averaging = finetune.with_average(optax.sgd(1.0), 0.9)
    weights = {"a": jnp.zeros(3)}
    state = averaging.init(weights)
    for _ in range(5):
        grads = {"a": weights["a"] - 1}
        updates, state = averaging.update(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
    assert state.average["a"] == pytest.approx(1 - 0.9**5, rel=1e-6)


def test_a_long_average_is_not_biased_in_float32():
    """Of weights that fluctuate, against float64; `optax.incremental_update` shrinks it."""
    decay, middle = 0.9999, np.linspace(0.1, 1, 7).astype(np.float32)
    noise = np.random.default_rng(0).normal(size=(20_000, 7)).astype(np.float32)
    averaging = finetune.with_average(optax.sgd(1.0), decay)

    @jax.jit
    def averages(weights: Any, noise: Any) -> Any:
        def step(carry: Any, noise: Any) -> Any:
            weights, state, naive = carry
            updates, state = averaging.update(weights - middle * (1 + 0.05 * noise), state, weights)
            weights = optax.apply_updates(weights, updates)
            return (weights, state, optax.incremental_update(weights, naive, 1 - decay)), weights

        start = (weights, averaging.init(weights), weights)
        (_, state, naive), seen = jax.lax.scan(step, start, noise)
        return state.average, naive, seen

    average, naive, seen = averages(jnp.asarray(middle), noise)
    exact = middle.astype(np.float64)
    for weights in np.asarray(seen, np.float64):
        exact += (1 - decay) * (weights - exact)
    assert np.abs(average / exact - 1).max() < 2e-5
    assert np.abs(naive / exact - 1).max() > 1e-4


def test_the_moving_average_is_of_the_held_temperature():
    averaging = finetune.with_average(optax.sgd(1.0), 0.5)
    weights = {"logit_scale": jnp.array(4.0)}
    _, state = averaging.update({"logit_scale": jnp.array(-9.0)}, averaging.init(weights), weights)
    expected = (4 + np.log(100)) / 2
    assert float(state.average["logit_scale"]) == pytest.approx(expected, rel=1e-6)
