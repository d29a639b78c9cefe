"""What both transformer towers are made of: activations, attention, MLP, block, stack of blocks.

The classes stand beside `clip/model.py: ResidualAttentionBlock, Transformer` of the official code,
and their attribute paths are its parameter names. `reference.py` holds the NumPy twin of each.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
LAYER_NORM_EPSILON = 1e-5  # torch's; Flax's default is 1e-6
# Of `Padded` kernels, in numbers:
PADDING = 16  # one line of a processor's cache
STRIDE = 256  # rows that are a multiple of it long are set apart,
LEAST_COLUMNS = 512  # if they are as long as this: of shorter ones the zeros cost more


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the activation of all released models (same shape out)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x * Phi(x) with the exact error function (same shape out)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of `gelu` (same shape out)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


# What the backward pass finds of each block and does not compute again, by name.
REMAT: dict[str, Any] = {
    "full": None,  # the block's input only: the least memory
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # not attention's products
}


def saving(body: Callable[..., Any], remat: str, **options: Any) -> Callable[..., Any]:
    """`body` under `jax.checkpoint` with the policy of that name; itself for "none"."""
    if remat == "none":
        return body
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r} came; none, {' or '.join(REMAT)} was expected")
    return jax.checkpoint(body, policy=REMAT[remat], **options)


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], std: float) -> nnx.Param[Any]:
    """A parameter drawn from N(0, std^2), float32; without `rngs` its shape alone."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def constant(
    rngs: nnx.Rngs | None, shape: tuple[int, ...], value: float, kind: Any = nnx.Param
) -> Any:
    """A variable that is `value` all over, float32; without `rngs` its shape alone."""
    if rngs is None:
        return kind(jax.ShapeDtypeStruct(shape, jnp.float32))
    return kind(jnp.full(shape, value, jnp.float32))


class Padded(nnx.Param[Any]):
    """A kernel [..., o + PADDING] whose last columns are zeros that no result depends on.

    XLA's products for CPUs read a kernel a few columns wide at a time, from row to row. Where the
    rows lie a multiple of 4 KiB apart all of that falls on one place of the processor's cache, and
    the product takes twice the time; multiples of 1 KiB lose less (docs/performance.md). `to_flat`
    and `from_flat` of `clip.py` know arrays without the zeros only.
    """


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a model computes: `dtype` of activations and matrix products, and XLA's `precision`.

    Layer-norm statistics, softmax, logits and loss are float32 whatever `dtype` says.
    `precision` is jax's ("default", "high", "highest"); None leaves the global setting in force.
    `unroll` keeps the blocks of a transformer apart and compiles one after the other, where
    otherwise they are stacked and compiled once, as the body of a loop. `inline` leaves them
    stacked and compiles one after the other all the same. `winograd` lets 3x3 convolutions be
    matrix products where a CPU gains by it, most of them fewer than the sum has (`winograd.py`).
    `padded` sets the rows of kernels apart where a CPU gains by it (`Padded`). `one_by_one` takes
    the pictures of a batch through the first half of a ResNet one after the other, so that what a
    layer leaves for the next is still in a processor's cache; not in training, where they share
    statistics.
    """

    dtype: Any = jnp.float32
    precision: str | None = None
    unroll: bool = False
    inline: bool = False
    winograd: bool = False
    padded: bool = False
    one_by_one: bool = False

    def product(self, x: Array, matrix: Array) -> Array:
        """x [..., i] @ matrix [i, o] -> [..., o], summed and given in at least float32."""
        x, matrix = x.astype(self.dtype), matrix.astype(self.dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        alone = x.size == x.shape[-1] and x.dtype != wide
        if alone:  # XLA on CPU would widen the matrix, in every call, for one row; not for two
            x = jnp.broadcast_to(x, (2, *x.shape))
        y = jnp.matmul(x, matrix, precision=self.precision, preferred_element_type=wide)
        return y[0] if alone else y

    def dot(self, x: Array, kernel: Array | nnx.Param[Any], bias: Array | None = None) -> Array:
        """x [..., i] @ kernel [i, o] + bias [o], if any -> [..., o], summed in at least float32.

        A kernel with more axes counts as the matrix [i, o] of its numbers in their order.
        """
        product = self.product(x, kernel[...].reshape(-1, kernel.shape[-1]))
        if isinstance(kernel, Padded):
            product = product[..., :-PADDING]
        return (product if bias is None else product + bias).astype(self.dtype)

    def kernel(self, drawn: nnx.Param[Any]) -> nnx.Param[Any]:
        """A kernel [..., o] as `dot` shall take it: itself, or `Padded`."""
        columns = drawn.shape[-1]
        if not (self.padded and columns >= LEAST_COLUMNS and columns % STRIDE == 0):
            return drawn
        value = drawn.get_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            shape = (*value.shape[:-1], columns + PADDING)
            return Padded(jax.ShapeDtypeStruct(shape, value.dtype))
        return Padded(jnp.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, PADDING)]))


class LayerNorm(nnx.Module):
    """Normalise the last axis; statistics in at least float32 (`clip/model.py: LayerNorm`)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs | None) -> None:
        self.scale = constant(rngs, (width,), 1.0)
        self.bias = constant(rngs, (width,), 0.0)

    def __call__(self, x: Array) -> Array:
        """x [..., d] -> [..., d]."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [in, out] drawn from N(0, std^2), bias zero."""

    def __init__(
        self, inputs: int, outputs: int, *, std: float, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        self.kernel = numerics.kernel(normal(rngs, (inputs, outputs), std))
        self.bias = constant(rngs, (outputs,), 0.0)
        self.numerics = numerics

    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., out]."""
        return self.numerics.dot(x, self.kernel, self.bias[...])


class Attention(nnx.Module):
    """Multi-head self-attention with one fused in-projection [q; k; v], biases everywhere."""

    def __init__(
        self, width: int, heads: int, layers: int, *, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        self.in_proj_kernel = numerics.kernel(normal(rngs, (width, 3 * width), width**-0.5))
        self.in_proj_bias = constant(rngs, (3 * width,), 0.0)
        std = width**-0.5 * (2 * layers) ** -0.5
        self.out_proj = Linear(width, width, std=std, numerics=numerics, rngs=rngs)
        self.heads = heads
        self.numerics = numerics

    def __call__(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """x [n, l, d], mask additive [l, m] or None -> (y [n, l, d], weights [n, a, l, m])."""
        n, l, d = x.shape
        a, k = self.heads, d // self.heads
        qkv = self.numerics.dot(x, self.in_proj_kernel, self.in_proj_bias[...])  # [n, l, 3d]
        # Heads before tokens: the batched products run up to 1.9 times faster on CPU this way.
        query, key, value = qkv.reshape(n, l, 3, a, k).transpose(2, 0, 3, 1, 4)  # 3 x [n, a, l, k]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        product = partial(
            jnp.einsum, precision=self.numerics.precision, preferred_element_type=wide
        )
        scores = product("nalk,namk->nalm", query / math.sqrt(k), key)
        if mask is not None:
            scores = scores + mask
        weights = jax.nn.softmax(scores, axis=-1)  # [n, a, l, m]
        mixed = product("nalm,namk->nalk", weights.astype(x.dtype), value)
        mixed = mixed.astype(x.dtype).transpose(0, 2, 1, 3).reshape(n, l, d)
        return self.out_proj(mixed), weights


class Mlp(nnx.Module):
    """Two linear maps, four times as wide between them."""

    def __init__(
        self, width: int, layers: int, activation: str, *, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        first, second = (2 * width) ** -0.5, width**-0.5 * (2 * layers) ** -0.5
        self.c_fc = Linear(width, 4 * width, std=first, numerics=numerics, rngs=rngs)
        self.c_proj = Linear(4 * width, width, std=second, numerics=numerics, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """x [n, l, d] -> [n, l, d]."""
        y = self.c_fc(x)  # [n, l, 4d]
        # A narrow format would round every step of it, and 1.702; on CPU each rounding takes time.
        wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return self.c_proj(ACTIVATIONS[self.activation](wide))


class ResidualAttentionBlock(nnx.Module):
    """Pre-norm block: x + attn(ln_1 x), then x + mlp(ln_2 x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        activation: str,
        *,
        numerics: Numerics,
        rngs: nnx.Rngs | None,
    ) -> None:
        self.attn = Attention(width, heads, layers, numerics=numerics, rngs=rngs)
        self.ln_1 = LayerNorm(width, rngs=rngs)
        self.mlp = Mlp(width, layers, activation, numerics=numerics, rngs=rngs)
        self.ln_2 = LayerNorm(width, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """x [n, l, d] -> (x [n, l, d], attention weights [n, a, l, m])."""
        y, weights = self.attn(self.ln_1(x), mask)
        x = x + y
        return x + self.mlp(self.ln_2(x)), weights


class Transformer(nnx.Module):
    """`layers` blocks, stacked (every leaf of `resblocks` has a leading layer axis) or a list.

    Stacked they are walked by `jax.lax.scan` with `jax.checkpoint`, which keeps one activation a
    layer for the backward pass and recomputes the rest; `remat` names what is kept (`REMAT`, or
    "none"). Where memory is slow beside arithmetic, as on a CPU with few pictures, the loop's
    copies of each layer's weights out of the stack cost up to a third of the time: there the list.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        activation: str,
        *,
        remat: str,
        numerics: Numerics,
        rngs: nnx.Rngs | None,
    ) -> None:
        def block(key: Array | None) -> ResidualAttentionBlock:
            inner = None if key is None else nnx.Rngs(key)
            return ResidualAttentionBlock(
                width, heads, layers, activation, numerics=numerics, rngs=inner
            )

        keys = None if rngs is None else jax.random.split(rngs.params(), layers)
        self.resblocks: Any
        if numerics.unroll:
            each = [None] * layers if keys is None else list(keys)
            self.resblocks = nnx.List([block(key) for key in each])
        elif keys is None:
            self.resblocks = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype), block(None)
            )
        else:
            self.resblocks = jax.vmap(block)(keys)
        self.remat = remat
        self.unroll = numerics.unroll
        self.inline = numerics.inline

    def __call__(
        self, x: Array, mask: Array | None = None, *, intermediates: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """x [n, l, d] -> (x [n, l, d], named intermediates or an empty dict).

        The intermediates are `hidden` [layers, n, l, d], the output of every block, and
        `attention` [layers, n, a, l, m], its weights.
        """

        def visit(x: Array, block: ResidualAttentionBlock) -> tuple[Array, dict[str, Array]]:
            x, weights = block(x, mask)
            return x, ({"hidden": x, "attention": weights} if intermediates else {})

        if not self.unroll:
            body = saving(visit, self.remat, prevent_cse=False)
            return jax.lax.scan(body, x, self.resblocks, unroll=self.inline)
        body, each = saving(visit, self.remat), []
        for block in self.resblocks:
            x, seen = body(x, block)
            each.append(seen)
        return x, {name: jnp.stack([seen[name] for seen in each]) for name in each[0]}
