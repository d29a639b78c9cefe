"""Less memory for the same gradient: caching in parts, remat by name, bfloat16 products."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.training import step
from jaxclip.training.global_losses import chunked_contrastive_loss, ring_contrastive_loss
from jaxclip.training.sharding import data_mesh
from tests.support import tiny
from tests.support.statistics import params_only
from tests.support.steps import KEEPING, loss_and_grads, noisy, state_of
from tests.support.tolerances import departure, within, worst

pytestmark = pytest.mark.usefixtures("quick_compiling")
BAG = TextConfig(16, context_length=13, vocab_size=101, kind="cbow")
CONFIG = ClipConfig(VisionConfig(20, 5, 24, 2, 3), BAG, 7)
PARAMS = checkpoint.flatten(tiny.params(vision_layers=2, text="cbow"))
IMAGES, TOKENS = tiny.batch(n=16)


def model(
    dtype: Any = jnp.float64, weights: Any = None, remat: str = "full", config: Any = CONFIG
) -> clip.Clip:
    like = clip.abstract(config, numerics=Numerics(dtype=dtype), remat=remat)
    weights = weights or dtype
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, weights), like)
    return parameters.from_flat(PARAMS, like)


@functools.cache
def whole() -> tuple[checkpoint.Flat, Any]:
    with jax.enable_x64(True):
        grads, metrics, _ = jax.jit(loss_and_grads)(model(), IMAGES, TOKENS)
        return parameters.to_flat(grads), jax.tree.map(float, metrics)


@pytest.mark.parametrize("microbatches", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_cached_gradients_are_those_of_the_whole_batch(microbatches):
    loss = functools.partial(chunked_contrastive_loss, chunk=8)  # with any of the losses
    way = functools.partial(loss_and_grads, microbatches=microbatches, loss=loss)
    with jax.enable_x64(True):
        grads, metrics, _ = jax.jit(way)(model(), IMAGES, TOKENS)
    assert worst(parameters.to_flat(grads), whole()[0]) < within("devices float64")
    assert jax.tree.map(float, metrics) == pytest.approx(whole()[1], rel=1e-12)


CASES = ["shard_map", *(pytest.param(w, marks=pytest.mark.slow) for w in ("jit", "pmap"))]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
@pytest.mark.parametrize("way", CASES)
def test_cached_steps_on_devices_give_the_gradient_of_one(way):
    devices = jax.devices()[:4]
    mesh = data_mesh(devices)
    loss = contrastive_loss if way == "jit" else ring_contrastive_loss
    batch, key = {"image": IMAGES, "tokens": TOKENS}, jax.random.key(0)
    with jax.enable_x64(True):
        graphdef, state = state_of(model())
        loss_fn = step.clip_loss_fn(graphdef, loss, microbatches=2)
        make = {
            "jit": functools.partial(step.sharded_step, mesh),
            "shard_map": functools.partial(step.shard_map_step, mesh),
            "pmap": functools.partial(step.pmap_step, devices=devices),
        }
        run = make[way](loss_fn, KEEPING, batch_to_pixels=noisy)
        got = run(state, batch, key)[0].opt_state
        right, _, _ = jax.jit(loss_and_grads)(model(), noisy(batch, key), TOKENS)
    assert worst(parameters.to_flat(got), parameters.to_flat(right)) < within("devices float64")


def test_naive_accumulation_is_noticed():
    """The mistake that caching is there to avoid: the mean of the gradients of microbatches."""

    def accumulated(model: Any, images: Any, tokens: Any) -> Any:
        parts = (x.reshape(4, 4, *x.shape[1:]) for x in (images, tokens))
        grads = jax.lax.map(lambda part: loss_and_grads(model, *part)[0], tuple(parts))
        return jax.tree.map(lambda g: g.mean(0), grads)

    with jax.enable_x64(True):
        wrong = parameters.to_flat(jax.jit(accumulated)(model(), IMAGES, TOKENS))
    assert min(departure(wrong[name], right) for name, right in whole()[0].items()) > 0.1


def test_microbatches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(
        ValueError, match="microbatches: expected a divisor of 16, the batch, got 3"
    ):
        loss_and_grads(model(jnp.float32), IMAGES, TOKENS, microbatches=3)


def temporary(way: Any, made: Any, n: int) -> int:
    """Bytes that a gradient over n pairs holds at a time."""
    images, tokens = tiny.batch(n=n)
    compiled = jax.jit(way).lower(made, images.astype(np.float32), tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_caching_takes_the_memory_of_a_microbatch():
    made = model(jnp.float32)
    cached = temporary(functools.partial(loss_and_grads, microbatches=16), made, 256)
    assert cached < temporary(loss_and_grads, made, 256) / 3


@pytest.mark.slow
def test_batch_norm_normalises_each_microbatch_by_itself():
    """As defined in cached.py: the gradient of a model that sees the batch in microbatches."""
    config = ClipConfig(ResNetConfig(32, 16, (1, 1, 1, 1)), BAG, 7)
    visual = tiny.resnet(layers=(1, 1, 1, 1), image_size=32)
    params = checkpoint.flatten({**tiny.params(vision_layers=1, text="cbow"), "visual": visual})
    images, tokens = tiny.batch(n=8, image_size=32)

    def by_hand(model: Any) -> Any:
        seen = [model.embed(images[k::2], tokens[k::2], train=True) for k in (0, 1)]
        I_e, T_e = (jnp.concatenate([part[i] for part in seen]) for i in (0, 1))
        new = jax.tree.map(lambda one, other: (one + other) / 2, seen[0][2], seen[1][2])
        return contrastive_loss(I_e, T_e, model.logit_scale[...]), new

    with jax.enable_x64(True):
        like = clip.abstract(config, numerics=Numerics(dtype=jnp.float64))
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), like)
        made = parameters.from_flat(params, like)
        got, _, new = jax.jit(functools.partial(loss_and_grads, microbatches=2))(
            made, images, tokens
        )
        right, expected = jax.jit(jax.grad(by_hand, has_aux=True))(made)
        right = params_only(right)
    got, right = parameters.to_flat(got), parameters.to_flat(right)
    for grads in (got, right):  # it cancels in the softmax: its gradient is rounding alone
        assert np.abs(grads.pop("visual.attnpool.k_proj.bias")).max() < 1e-12
    assert worst(got, right) < within("resnet devices float64")
    new, expected = parameters.named_leaves(new), parameters.named_leaves(expected)
    assert worst(new, expected) < within("resnet devices float64")


# Remat by name ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_remat_names_what_is_kept():
    """The fewer products are kept, the less memory; the gradient stays (test_parity.py)."""
    kept = {
        name: temporary(loss_and_grads, model(jnp.float32, remat=name), 64)
        for name in ("full", "products", "none")
    }
    assert kept["full"] < kept["products"] < kept["none"]


def test_an_unknown_remat_is_refused():
    with pytest.raises(
        ValueError, match="remat: expected none, full, products, products_and_attention, got 'all'"
    ):
        jax.eval_shape(lambda m: m.encode_image(IMAGES), model(jnp.float32, remat="all"))


# bfloat16 over float32 ----------------------------------------------------------------------------


def inputs_of(primitive: str, jaxpr: Any) -> list[str]:
    """The dtype of every input to operations of that name, in inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            found += [str(value.aval.dtype) for value in equation.invars]
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            found += inputs_of(primitive, inner) if hasattr(inner, "eqns") else []
    return found


def test_bfloat16_computes_over_float32_weights():
    """Products in bfloat16; weights, gradients, loss, norms and softmax in float32."""
    made = model(jnp.bfloat16, jnp.float32)
    images = IMAGES.astype(np.float32)
    program = jax.make_jaxpr(loss_and_grads)(made, images, TOKENS)
    forward = jax.make_jaxpr(lambda m: m.embed(images, TOKENS))(made)
    assert set(inputs_of("dot_general", forward.jaxpr)) == {"bfloat16"}
    assert set(inputs_of("reduce_sum", forward.jaxpr)) == {"float32"}
    for name in ("exp", "log", "rsqrt"):  # softmax, loss, norms
        assert set(inputs_of(name, program.jaxpr)) == {"float32"}, name
    grads, metrics, _ = jax.jit(loss_and_grads)(made, images, TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
    assert metrics["loss"].dtype == jnp.float32
    named = parameters.to_flat(grads)
    far = {name: departure(named[name], right) for name, right in whole()[0].items()}
    assert 1e-4 < max(far.values()) < within("bfloat16 gradient"), far


def test_bfloat16_weights_would_lose_small_updates():
    """Why the weights stay float32: an update of a thousandth of a weight vanishes otherwise."""
    weight, update = jnp.float32(1.0), 1e-3
    assert weight + update > weight
    assert weight.astype(jnp.bfloat16) + jnp.bfloat16(update) == weight
