"""Attention by each kernel: its time forward, and forward and backward, and how exact it is.

The judge is the einsum of `models/layers.py` in float32. Queries, keys and values are bfloat16; a
fused kernel gets them as a tower does, padded to the length it needs.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.hardware.attention import (
    Kernel,
    Sequences,
    padded_length,
    run_kernel,
    run_packed_kernel,
)
from jaxclip.models.layers import Attention, Numerics
from jaxclip.models.starts import Shapes

Array = jax.Array
Mix = Callable[..., Array]  # queries, keys and values, packed or apart -> [n, l, a, k]
CHANNELS = 64  # a head
CALLS, LONG, REPEATS = 32, 0.5, 5  # calls in a row, at most as many as take that many seconds


def by_einsum(heads: int, causal: bool, numerics: Numerics) -> Mix:
    """The definition, of one array [n, l, 3, a, k], as its tower makes it."""
    module = Attention(heads * CHANNELS, heads, 1, numerics=numerics, init=Shapes())

    def mix(qkv: Array) -> Array:
        n, l = qkv.shape[:2]
        mask = jnp.triu(jnp.full((l, l), -jnp.inf), k=1) if causal else None
        return module.mix(qkv.reshape(n, l, -1), mask, None).reshape(n, l, heads, CHANNELS)

    return mix


def by_kernel(rows: Sequences) -> Mix:
    """The same by a fused kernel, of three arrays [n, l, a, k], as its tower makes them."""
    return lambda query, key, value: run_kernel(query, key, value, rows)


def by_packed_kernel(rows: Sequences, heads: int) -> Mix:
    """The same by Pallas' kernels, of one array [n, l, 3, a, k], as its tower makes it."""
    bias = jnp.zeros(3 * heads * CHANNELS)  # of the tower's product, for its gradient alone
    return lambda qkv: run_packed_kernel(qkv, bias, rows)


def with_gradient(mix: Mix) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
    """(cotangent, *inputs) -> (result, gradients of the inputs)."""

    def run(cotangent: Array, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
        result, backward = jax.vjp(mix, *inputs)
        return result, backward(cotangent.astype(result.dtype))

    return run


def attention(
    tokens: int, batch: int, heads: int, causal: bool, kernel: Kernel
) -> dict[str, float]:
    """Milliseconds of a kernel, and its errors over the largest value of the judge."""
    keys = jax.random.split(jax.random.key(0), 2)
    qkv = jax.random.normal(keys[0], (batch, tokens, 3, heads, CHANNELS), jnp.bfloat16)
    cotangent = jax.random.normal(keys[1], (batch, tokens, heads, CHANNELS), jnp.bfloat16)
    judge = jax.jit(with_gradient(by_einsum(heads, causal, Numerics(jnp.float32, "highest"))))
    result, (gradient,) = judge(cotangent.astype(jnp.float32), qkv.astype(jnp.float32))
    expected = jax.device_get((result, gradient))
    inputs: tuple[Array, ...] = (qkv,)
    mix = by_einsum(heads, causal, Numerics(jnp.bfloat16))
    if kernel == "pallas":
        mix = by_packed_kernel(Sequences(batch, tokens, tokens, causal, kernel), heads)
    elif kernel != "einsum":
        length = padded_length(tokens, kernel)
        padding = ((0, 0), (0, length - tokens), (0, 0), (0, 0))
        inputs = tuple(jnp.pad(qkv[:, :, i], padding, constant_values=1) for i in range(3))
        cotangent = jnp.pad(cotangent, padding)
        mix = by_kernel(Sequences(batch, length, tokens, causal, kernel))
    forward, both = jax.jit(mix), jax.jit(with_gradient(mix))
    got, gradients = jax.device_get(both(cotangent, *inputs))
    errors = [
        _error(got[:, :tokens], expected[0]),
        _error(np.stack(gradients, 2)[:, :tokens].reshape(qkv.shape), expected[1]),
    ]
    return {
        "forward ms": _milliseconds(lambda: forward(*inputs)),
        "forward and backward ms": _milliseconds(lambda: both(cotangent, *inputs)),
        "error": errors[0],
        "gradient error": errors[1],
    }


def _error(got: Any, expected: Any) -> float:
    difference = abs(got.astype(expected.dtype) - expected).max()
    error = float(difference / abs(expected).max())
    if error != error:
        raise ValueError("expected finite numbers, got NaN")
    return error


def _milliseconds(run: Callable[[], Any]) -> float:
    """Of one call, the least of several times many in a row: the device never waits for Python."""
    jax.block_until_ready(run())  # compiles
    began = time.monotonic()
    jax.block_until_ready(run())
    once = time.monotonic() - began
    calls = max(1, min(CALLS, int(LONG / max(once, 1e-6))))
    best = float("inf")
    for _ in range(REPEATS):
        began = time.monotonic()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        best = min(best, (time.monotonic() - began) / calls)
    return round(1e3 * best, 4)
