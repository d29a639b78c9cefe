"""Layer norm whose backward pass keeps x alone, and one beside a residual that has a kernel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models.layers import LayerNorm, at_least_float32

Array = jax.Array


# Layer norm ---------------------------------------------------------------------------------------


def _normalise(x: Array, epsilon: float) -> tuple[Array, Array]:
    """x [n, d] with mean 0 and variance 1 along d, and the factor [n, 1] that gave the latter."""
    wide = at_least_float32(x)
    centred = wide - wide.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * factor, factor


def _moments(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Mean and `_normalise`'s factor [n, 1] of each row in one pass over x [n, d].

    About the row's first number, so that the difference of the two sums stays exact enough.
    """
    first = at_least_float32(x[:, :1])
    shifted = at_least_float32(x) - first
    mean = shifted.mean(-1, keepdims=True)
    variance = jnp.square(shifted).mean(-1, keepdims=True) - jnp.square(mean)
    return first + mean, jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """x [n, d] normalised along d as `LayerNorm` does; keeps x and scale for the backward pass."""
    return (_normalise(x, epsilon)[0] * scale + bias).astype(x.dtype)


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Any]:
    return layer_norm(x, scale, bias, epsilon), (x, scale)


def _layer_norm_backward(epsilon: float, kept: Any, dy: Array) -> tuple[Array, Array, Array]:
    x, scale = kept
    normalised, factor = _normalise(x, epsilon)
    dy = at_least_float32(dy)
    g = dy * scale
    dx = g - g.mean(-1, keepdims=True) - normalised * (g * normalised).mean(-1, keepdims=True)
    # Sums over the rows are another kernel. Out of `normalised` XLA would write all of it in
    # float32 for them; with two numbers a row at hand they read x and dy.
    again = _moments(jax.lax.optimization_barrier(x), epsilon)
    mean, again = jax.lax.optimization_barrier(again)
    dscale = (dy * (at_least_float32(x) - mean) * again).sum(0)
    return (factor * dx).astype(x.dtype), dscale, dy.sum(0)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LeanLayerNorm(LayerNorm):
    """`LayerNorm` that keeps x alone for the backward pass, in its own format."""

    def __call__(self, x: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        return layer_norm(flat, self.scale[...], self.bias[...], self.epsilon).reshape(x.shape)


# Layer norm beside a residual ---------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def norm_and_pass(
    x: Array, scale: Array, bias: Array, added: Array, epsilon: float
) -> tuple[Array, Array]:
    """(x itself, x normalised as by `layer_norm`), both [n, d].

    A residual takes the first. The backward pass then has both gradients of x at once, for one
    kernel that adds them.

    Args:
      added: bias [d] that was added to x last, by a `blocks.LinearBeforeNorm`. Its gradient is the
        sum of x's over the rows, which the kernel has; XLA would read x's gradient again.
    """
    return x, layer_norm(x, scale, bias, epsilon)


def _norm_and_pass_forward(
    x: Array, scale: Array, bias: Array, added: Array, epsilon: float
) -> tuple[Any, Any]:
    return norm_and_pass(x, scale, bias, added, epsilon), (x, scale)


def _norm_and_pass_backward(epsilon: float, kept: Any, gradients: Any) -> tuple[Array, ...]:
    x, scale = kept
    passed, dy = gradients
    from jaxclip.hardware.pallas_norm import differentiate  # loading it takes time

    return differentiate(x, scale, dy, passed, epsilon)


norm_and_pass.defvjp(_norm_and_pass_forward, _norm_and_pass_backward)


@jax.custom_vjp
def pass_on(x: Array, added: Array) -> Array:
    """x [n, d] itself; `added` as of `norm_and_pass`, where no norm of a block follows."""
    return x


pass_on.defvjp(
    lambda x, added: (x, None), lambda _, passed: (passed, at_least_float32(passed).sum(0))
)
