"""Every way to the loss gives the value and the gradient of the pseudocode, in float64."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.proofs.loss_memory import by_rows
from jaxclip import reference
from jaxclip.losses import contrastive_loss, cross_entropy_loss, figure_3
from jaxclip.training.global_losses import (
    chunked_contrastive_loss,
    gathered_contrastive_loss,
    ring_contrastive_loss,
)
from jaxclip.training.sigmoid import ring_sigmoid_loss, sigmoid_loss
from tests.support.losses import E, N, arguments, on_devices
from tests.support.tolerances import departure, within

Result = tuple[Any, ...]  # the value, then the gradient with respect to every argument

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py"),
    pytest.mark.usefixtures("quick_compiling"),
]


def value_and_gradient(loss: Callable[..., Any], *values: Any) -> Result:
    everything = tuple(range(len(values)))
    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=everything))(*values)
    return value, *gradient


def worst(got: Result, expected: Result) -> float:
    assert {np.asarray(x).dtype for x in (*got, *expected)} == {np.dtype(np.float64)}
    return max(departure(g, e) for g, e in zip(got, expected, strict=True))


@functools.cache
def dense() -> Result:
    with jax.enable_x64(True):
        return value_and_gradient(contrastive_loss, *arguments())


def test_figure_3_equals_its_numpy_twin() -> None:
    rng = np.random.default_rng(0)
    shapes = {"I": (5, 11), "T": (5, 13), "V": (11, 6), "U": (13, 9), "W_i": (6, 7), "W_t": (9, 7)}
    a = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def values(**changed: Any) -> Any:
        b = a | changed
        encoders = (lambda x: x @ b["V"]), (lambda x: x @ b["U"])
        return (b["I"], b["T"], *encoders, b["W_i"], b["W_t"], np.asarray(2.5))

    expected = reference.figure_3(*values())
    with jax.enable_x64(True):
        got, unpaired = figure_3(*values()), figure_3(*values(T=a["T"][::-1]))
    assert departure(got, expected) < within("spread loss")
    assert departure(unpaired, expected) > 0.1  # what a mistake does


WAYS = {
    "gathered": gathered_contrastive_loss,
    "ring": ring_contrastive_loss,
    "ring in chunks": functools.partial(ring_contrastive_loss, chunk=3),
}


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("way", WAYS)
def test_spread_over_devices_equals_dense(way, devices):
    with jax.enable_x64(True):
        got = value_and_gradient(on_devices(WAYS[way], devices), *arguments())
    assert worst(got, dense()) < within("spread loss")


@pytest.mark.parametrize("way", WAYS)
def test_spread_equals_dense_where_jax_does_not_follow_what_varies(way):
    """As in `pmap`: collectives are then transposed by other rules."""
    with jax.enable_x64(True):
        got = value_and_gradient(on_devices(WAYS[way], 4, check_vma=False), *arguments())
    assert worst(got, dense()) < within("spread loss")


@pytest.mark.parametrize("chunk", [1, 6, 16, N])
def test_chunked_equals_dense(chunk):
    with jax.enable_x64(True):
        loss = functools.partial(chunked_contrastive_loss, chunk=chunk)
        assert worst(value_and_gradient(loss, *arguments()), dense()) < within("spread loss")


def test_a_chunk_that_divides_nothing_is_refused():
    with pytest.raises(ValueError, match=r"chunk: expected a divisor of 48, .*, got 5"):
        chunked_contrastive_loss(*arguments(), chunk=5)


@pytest.mark.parametrize("scale", [-3.0, 4.6, 12.0])
def test_no_temperature_overflows(scale):
    """exp(12) = 160,000 is far beyond what a softmax without a running maximum could take."""
    with jax.enable_x64(True):
        values = arguments(scale=scale)
        expected = value_and_gradient(contrastive_loss, *values)
        chunked = functools.partial(chunked_contrastive_loss, chunk=6)
        for loss in (chunked, on_devices(ring_contrastive_loss, 4)):
            assert worst(value_and_gradient(loss, *values), expected) < within("spread loss")


def test_half_precision_embeddings_are_widened_before_the_logits():
    images, texts, t = arguments()
    half = [x.astype(jnp.bfloat16) for x in (images, texts)]
    expected = contrastive_loss(*half, t)
    got = chunked_contrastive_loss(*half, t, chunk=6)
    assert got.dtype == jnp.float32
    assert departure(got, expected) < within("loss")


def test_the_judge_of_large_batches_equals_dense():
    """`experiments/proofs/loss_memory.py` has it for 32,768 pairs, too many for dense."""
    with jax.enable_x64(True):
        images, texts, _ = arguments()
        expected = value_and_gradient(contrastive_loss, images, texts, jnp.log(20.0))
    got = by_rows(np.asarray(images), np.asarray(texts), 20.0, rows=16)
    assert worst(tuple(got), expected) < within("spread loss")


# What the comparison must catch -------------------------------------------------------------------


def own_negatives(images: Any, texts: Any, t: Any, *, axis: str) -> Any:
    """The mistake: every device has only its own pairs for wrong answers."""
    return jax.lax.pmean(contrastive_loss(images, texts, t), axis)


def summed(images: Any, texts: Any, t: Any, *, axis: str) -> Any:
    """The mistake: psum for pmean."""
    mean = ring_contrastive_loss(images, texts, t, axis=axis)
    return jax.lax.psum(mean, axis)


def labels_without_offset(images: Any, texts: Any, t: Any, *, axis: str) -> Any:
    """The mistake: every device believes that its pairs are the first ones."""
    every = jax.lax.all_gather(texts, axis, tiled=True)
    labels = jnp.arange(len(images))
    return jax.lax.pmean(cross_entropy_loss(images @ every.T * jnp.exp(t), labels, 1), axis)


@pytest.mark.parametrize("wrong", [own_negatives, summed, labels_without_offset])
def test_a_wrong_loss_on_devices_is_noticed(wrong):
    with jax.enable_x64(True):
        got = value_and_gradient(on_devices(wrong, 4, check_vma=False), *arguments())
    assert min(departure(g, e) for g, e in zip(got, dense(), strict=True)) > 0.1


def test_naive_accumulation_is_noticed():
    """The mistake: the mean of the losses of parts of the batch."""

    def accumulated(images: Any, texts: Any, t: Any) -> Any:
        parts = (x.reshape(4, -1, E) for x in (images, texts))
        return jax.vmap(contrastive_loss, (0, 0, None))(*parts, t).mean()

    with jax.enable_x64(True):
        got = value_and_gradient(accumulated, *arguments())
    assert min(departure(g, e) for g, e in zip(got, dense(), strict=True)) > 0.1


# How much is held at a time -----------------------------------------------------------------------


def largest_square(loss: Callable[..., Any], *values: Any) -> int:
    """Elements of the largest array with neither side the embeddings' in value and gradient."""
    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
    text = jax.jit(gradient).lower(*values).compile().as_text()
    shapes = [
        tuple(int(d) for d in m.split(",")) for m in re.findall(r"f32\[(\d+(?:,\d+)+)\]", text)
    ]
    return max((int(np.prod(s)) for s in shapes if E not in s), default=0)


def test_only_a_block_of_logits_is_held():
    values = arguments(n=496)  # 62 a device
    assert largest_square(contrastive_loss, *values) == 496 * 496
    assert largest_square(on_devices(gathered_contrastive_loss, 8), *values) == 62 * 496
    assert largest_square(on_devices(ring_contrastive_loss, 8), *values) == 62 * 62
    in_parts = functools.partial(ring_contrastive_loss, chunk=31)
    assert largest_square(on_devices(in_parts, 8), *values) == 62 * 31
    chunked = functools.partial(chunked_contrastive_loss, chunk=31)
    assert largest_square(chunked, *values) == 496 * 31


# The sigmoid loss, which is not in the paper ------------------------------------------------------


@functools.cache
def dense_sigmoid() -> Result:
    with jax.enable_x64(True):
        return value_and_gradient(sigmoid_loss, *arguments(bias=-1.5))


def test_the_sigmoid_loss_is_its_definition():
    """Pair by pair, in NumPy."""
    with jax.enable_x64(True):
        images, texts, t, b = (np.asarray(x) for x in arguments(bias=-1.5))
    total = 0.0
    for i in range(N):
        for j in range(N):
            z = (1 if i == j else -1) * (np.exp(t) * images[i] @ texts[j] + b)
            total += np.log1p(np.exp(-z))
    assert departure(dense_sigmoid()[0], total / N) < within("spread loss")


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_the_sigmoid_ring_equals_dense(devices):
    with jax.enable_x64(True):
        got = value_and_gradient(on_devices(ring_sigmoid_loss, devices), *arguments(bias=-1.5))
    assert worst(got, dense_sigmoid()) < within("spread loss")


def test_a_sigmoid_ring_without_its_right_pairs_is_noticed():
    def without(images: Any, texts: Any, t: Any, b: Any, *, axis: str) -> Any:
        own = (images * texts).sum(-1) * jnp.exp(t) + b
        lacking = ring_sigmoid_loss(images, texts, t, b, axis=axis)
        return lacking + jax.lax.pmean(own.mean(), axis)

    with jax.enable_x64(True):
        got = value_and_gradient(on_devices(without, 4), *arguments(bias=-1.5))
    assert min(departure(g, e) for g, e in zip(got, dense_sigmoid(), strict=True)) > 1e-3
