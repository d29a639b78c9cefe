"""The train state is split once and merged without loss; `train_step` is what it says it is."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxclip import training
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip
from jaxclip.models.parameters import named_leaves, to_flat
from jaxclip.training import TrainState, clip_loss_fn, train_step
from tests.support.steps import BAG, CONFIG, IMAGES, TOKENS

pytestmark = pytest.mark.usefixtures("quick_compiling")
RESNET = ClipConfig(ResNetConfig(32, 4, (1, 1, 1, 1)), BAG, 8)
BATCH = {"image": IMAGES.astype(np.float32), "tokens": TOKENS}
KEY = jax.random.key(0)


def test_a_model_is_split_once_and_merged_to_the_bit() -> None:
    model = clip.create(RESNET, 0)
    graphdef, state = TrainState.create(model, optax.sgd(0.1), KEY)
    assert not named_leaves(state.params).keys() & named_leaves(state.stats).keys()
    assert {name.rpartition(".")[2] for name in named_leaves(state.stats)} == {"mean", "var"}
    again, expected = to_flat(state.model(graphdef)), to_flat(model)
    assert again.keys() == expected.keys()
    assert all(np.array_equal(again[name], expected[name]) for name in expected)
    assert jax.tree.structure(jax.tree.map(lambda x: x, state)) == jax.tree.structure(state)


def test_a_step_is_gradient_update_and_held_temperature() -> None:
    """By hand, with a temperature that the update would take beyond ln 100."""
    model = clip.create(CONFIG, 0)
    model.logit_scale[...] = jnp.float32(4.604)
    optimizer = optax.sgd(0.5)
    graphdef, state = TrainState.create(model, optimizer, KEY)
    loss_fn = clip_loss_fn(graphdef)
    step = jax.jit(functools.partial(train_step, loss_fn=loss_fn, optimizer=optimizer))
    after, metrics = step(state, BATCH, KEY)

    @jax.jit
    @jax.value_and_grad
    def by_hand(params: Any) -> Any:
        model = nnx.merge(graphdef, params, state.stats)
        I_e, T_e = model.embed(BATCH["image"], BATCH["tokens"])
        return contrastive_loss(I_e, T_e, model.logit_scale[...])

    loss, grads = by_hand(state.params)
    free = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    named, expected = named_leaves(after.params), named_leaves(free)
    scale = float(expected.pop("logit_scale"))
    assert float(named.pop("logit_scale")) == pytest.approx(min(scale, math.log(100)), rel=1e-6)
    for name, value in expected.items():
        assert np.abs(named[name] - value).max() < 1e-5, name
    assert after.step == 1 and np.array_equal(*map(jax.random.key_data, (after.key, KEY)))


def test_statistics_are_those_that_the_loss_returns() -> None:
    model = clip.create(RESNET, 0)
    graphdef, state = TrainState.create(model, optax.sgd(0.0), KEY)
    images = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)

    def frozen(params: Any, stats: Any, batch: Any, key: Any) -> Any:
        loss, (metrics, _) = clip_loss_fn(graphdef)(params, stats, batch, key)
        return loss, (metrics, stats)

    moved = []
    for loss_fn in (clip_loss_fn(graphdef), frozen):
        step = jax.jit(functools.partial(train_step, loss_fn=loss_fn, optimizer=optax.sgd(0.0)))
        after, _ = step(state, {"image": images, "tokens": TOKENS}, KEY)
        before, new = named_leaves(state.stats), named_leaves(after.stats)
        assert new.keys() == before.keys()
        moved.append(any(np.any(new[name] != before[name]) for name in before))
    assert moved == [True, False]


class Classifier(nnx.Module):
    """A model of one's own with a CLIP inside."""

    def __init__(self, model: clip.Clip, classes: int) -> None:
        self.clip = model
        self.head = nnx.Param(jnp.zeros((model.config.embed_dim, classes)))


def test_a_larger_module_trains_with_a_loss_of_its_own() -> None:
    module = Classifier(clip.create(CONFIG, 0), 3)
    optimizer = optax.adam(0.01)
    graphdef, state = TrainState.create(module, optimizer, KEY)
    labels = np.arange(16) % 3

    def loss_fn(params: Any, stats: Any, batch: Any, key: Any) -> Any:
        made = nnx.merge(graphdef, params, stats)
        logits = jax.lax.stop_gradient(made.clip.visual(batch["image"])) @ made.head[...]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), ({"accuracy": (logits.argmax(1) == labels).mean()}, stats)

    step = jax.jit(functools.partial(train_step, loss_fn=loss_fn, optimizer=optimizer))
    for _ in range(20):
        state, metrics = step(state, BATCH, KEY)
    assert metrics["accuracy"] > 0.5 and metrics["loss"] < math.log(3)
    before, after = to_flat(module.clip), to_flat(state.model(graphdef).clip)
    assert all(np.array_equal(before[name], after[name]) for name in before)  # it is locked


def test_the_recipes_are_read_without_jax() -> None:
    code = "import sys, jaxclip.training as t; t.Recipe, t.presets['ViT-B/32']; "
    code += "assert 'jax' not in sys.modules; t.train_step; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(training.__all__) <= set(dir(training))
    with pytest.raises(AttributeError, match=r"jaxclip\.training' has no attribute 'trainer'"):
        training.trainer  # noqa: B018
