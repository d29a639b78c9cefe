"""What both transformer towers are made of: activations, attention, MLP, block, stack of blocks.

The classes stand beside `clip/model.py: ResidualAttentionBlock, Transformer` of the official code,
and their attribute paths are its parameter names. `reference.py` holds the NumPy twin of each.

Annotated: chapter 3, "Attention".
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxclip.config import pooled_width
from jaxclip.models.starts import Initialiser, Start, Tower, starts_as_siglip

Array = jax.Array
Taps = dict[str, Array]  # intermediates by name, as in `reference.py`


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


# What each block saves for the backward pass beside its input, by names of `checkpoint_name`:
# "product" is what a kernel and its bias give, "attention" the values that attention mixed.
REMAT: dict[str, tuple[str, ...]] = {
    "full": (),
    "products": ("product",),
    "products_and_attention": ("product", "attention"),
}


def rematerialise(body: Callable[..., Any], remat: str, **options: Any) -> Callable[..., Any]:
    """`body` under `jax.checkpoint` with the policy of that name; itself for "none"."""
    if remat == "none":
        return body
    if remat not in REMAT:
        raise ValueError(f"remat: expected none, {', '.join(REMAT)}, got {remat!r}")
    policy = jax.checkpoint_policies.save_only_these_names(*REMAT[remat])
    return jax.checkpoint(body, policy=policy, **options)


# Products -----------------------------------------------------------------------------------------


def at_least_float32(x: Array) -> Array:
    """x for statistics, softmax and activations, which a narrower format would round too much."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a model computes: `dtype` of activations and products, and their `precision`.

    A product takes and answers in `dtype`, and so do its gradients. Layer-norm and BatchNorm
    statistics, softmax, logits and loss are float32 whatever `dtype` says. `precision` is jax's
    ("default", "high", "highest"); None leaves the global setting in force.
    """

    dtype: Any = jnp.float32
    precision: str | None = None

    def dot(self, x: Array, kernel: nnx.Param[Any], bias: nnx.Param[Any] | None = None) -> Array:
        """x [..., i] @ kernel [i, o] + bias [o], if any -> [..., o].

        A kernel with more axes counts as the matrix [i, o] of its numbers in their order.
        """
        matrix = kernel[...].reshape(-1, kernel.shape[-1]).astype(self.dtype)
        y = jnp.matmul(x.astype(self.dtype), matrix, precision=self.precision)
        y = y if bias is None else y + bias[...].astype(self.dtype)
        return checkpoint_name(y, "product")

    def einsum(self, equation: str, x: Array, y: Array) -> Array:
        """`jnp.einsum` of two activations."""
        x, y = x.astype(self.dtype), y.astype(self.dtype)
        return jnp.einsum(equation, x, y, precision=self.precision)


# Modules ------------------------------------------------------------------------------------------


class Encoder(nnx.Module):
    """A tower: `__call__` returns its features, `stages` what it computes on the way as well."""

    def stages(self, inputs: Array, **options: Any) -> tuple[Any, Taps]:
        """(what `__call__` returns, intermediates by name)."""
        taps: Taps = {}
        return self(inputs, taps=taps, **options), taps


class LayerNorm(nnx.Module):
    """Normalise the last axis; statistics in at least float32 (`clip/model.py: LayerNorm`)."""

    def __init__(self, width: int, epsilon: float, *, init: Initialiser) -> None:
        self.scale = init.constant((width,), 1.0)
        self.bias = init.constant((width,), 0.0)
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        """x [..., d] -> [..., d]."""
        wide = at_least_float32(x)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [in, out] drawn as `start` says, bias zero or from N(0, 1e-12)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        start: Start,
        noise: bool = False,
        numerics: Numerics,
        init: Initialiser,
    ) -> None:
        self.kernel = init.kernel((inputs, outputs), start)
        self.bias = init.normal((outputs,), 1e-6) if noise else init.constant((outputs,), 0.0)
        self.numerics = numerics

    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., out]."""
        return self.numerics.dot(x, self.kernel, self.bias)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused in-projection [q; k; v], biases everywhere."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        siglip: bool = False,
        numerics: Numerics,
        init: Initialiser,
    ) -> None:
        first, last = width**-0.5, width**-0.5 * (2 * layers) ** -0.5
        self.in_proj_kernel = init.kernel((width, 3 * width), "xavier" if siglip else first, 3)
        self.in_proj_bias = init.constant((3 * width,), 0.0)
        start: Start = "xavier" if siglip else last
        self.out_proj = Linear(width, width, start=start, numerics=numerics, init=init)
        self.heads = heads
        self.numerics = numerics

    def __call__(self, x: Array, mask: Array | None, taps: Taps | None = None) -> Array:
        """x [n, l, d], mask additive [l, m] or [n, 1, l, m] or None -> [n, l, d].

        Taps: `attention` [n, a, l, m], the weights.
        """
        qkv = self.numerics.dot(x, self.in_proj_kernel, self.in_proj_bias)  # [n, l, 3d]
        mixed = self.mix(qkv, mask, taps)
        return self.out_proj(checkpoint_name(mixed, "attention"))

    def mix(self, qkv: Array, mask: Array | None, taps: Taps | None) -> Array:
        """[query; key; value] [n, l, 3d] -> the values, weighted [n, l, d]."""
        mixed, weights = attend(qkv, self.heads, mask, self.numerics)
        if taps is not None:
            taps["attention"] = weights
        return mixed


def attend(qkv: Array, heads: int, mask: Array | None, numerics: Numerics) -> tuple[Array, Array]:
    """[query; key; value] [n, l, 3d] -> (values, weighted [n, l, d], weights [n, a, l, m])."""
    n, l, _ = qkv.shape
    a, k = heads, qkv.shape[-1] // 3 // heads
    query, key, value = qkv.reshape(n, l, 3, a, k).transpose(2, 0, 3, 1, 4)  # 3 x [n, a, l, k]
    mixed, weights = weigh(query, key, value, mask, numerics)
    return mixed.transpose(0, 2, 1, 3).reshape(n, l, a * k), weights


def weigh(
    query: Array, key: Array, value: Array, mask: Array | None, numerics: Numerics
) -> tuple[Array, Array]:
    """query [n, a, l, k], key and value [n, a, m, k] -> (mixed [n, a, l, k], weights)."""
    scores = numerics.einsum("nalk,namk->nalm", query / math.sqrt(query.shape[-1]), key)
    scores = at_least_float32(scores)
    if mask is not None:
        scores = scores + mask
    weights = jax.nn.softmax(scores, axis=-1)  # [n, a, l, m]
    return numerics.einsum("nalm,namk->nalk", weights, value), weights


class Mlp(nnx.Module):
    """Two linear maps, wider between them: four times in the released models."""

    def __init__(
        self, tower: Tower, activation: str, *, numerics: Numerics, init: Initialiser
    ) -> None:
        width, inner = tower.width, tower.inner_width
        starts: tuple[Start, Start] = (2 * width) ** -0.5, width**-0.5 * (2 * tower.layers) ** -0.5
        options: dict[str, Any] = {"numerics": numerics, "init": init, "noise": False}
        if starts_as_siglip(tower):
            starts, options["noise"] = ("xavier", "xavier"), True
        self.c_fc = Linear(width, inner, start=starts[0], **options)
        self.c_proj = Linear(inner, width, start=starts[1], **options)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """x [..., d] -> [..., d]."""
        y = at_least_float32(self.c_fc(x))  # [..., 4d]; bfloat16 would round 1.702 as well
        return self.c_proj(ACTIVATIONS[self.activation](y))


class ResidualAttentionBlock(nnx.Module):
    """Pre-norm block: x + attn(ln_1 x), then x + mlp(ln_2 x)."""

    def __init__(
        self, tower: Tower, activation: str, *, numerics: Numerics, init: Initialiser
    ) -> None:
        d, epsilon = tower.width, tower.layer_norm_epsilon
        siglip = starts_as_siglip(tower)
        self.attn = Attention(
            d, tower.heads, tower.layers, siglip=siglip, numerics=numerics, init=init
        )
        self.ln_1 = LayerNorm(d, epsilon, init=init)
        self.mlp = Mlp(tower, activation, numerics=numerics, init=init)
        self.ln_2 = LayerNorm(d, epsilon, init=init)

    def __call__(self, x: Array, mask: Array | None, taps: Taps | None = None) -> Array:
        """x [n, l, d] -> [n, l, d].

        Taps: `attention` [n, a, l, m] and `hidden`, what it returns.
        """
        x = x + self.attn(self.ln_1(x), mask, taps)
        x = x + self.mlp(self.ln_2(x))
        if taps is not None:
            taps["hidden"] = x
        return x


class Transformer(nnx.Module):
    """The blocks, stacked: every leaf of `resblocks` has a leading layer axis.

    `jax.lax.scan` compiles one block, and `remat` names what each saves for the backward pass
    (`REMAT`, or "none").
    """

    def __init__(
        self,
        tower: Tower,
        activation: str,
        *,
        remat: str,
        numerics: Numerics,
        init: Initialiser,
    ) -> None:
        activation = tower.own_activation or activation

        def block(init: Initialiser) -> ResidualAttentionBlock:
            return ResidualAttentionBlock(tower, activation, numerics=numerics, init=init)

        self.resblocks = init.stack(block, tower.layers)
        self.remat = remat

    def __call__(self, x: Array, mask: Array | None = None, taps: Taps | None = None) -> Array:
        """x [n, l, d] -> [n, l, d].

        Taps: `hidden` [layers, n, l, d], the output of every block, and `attention`
        [layers, n, a, l, m], its weights.
        """

        def visit(x: Array, block: ResidualAttentionBlock) -> tuple[Array, Taps]:
            seen: Taps | None = None if taps is None else {}
            return block(x, mask, seen), seen or {}

        x, seen = self.walk(visit, x)
        if taps is not None:
            taps.update(seen)
        return x

    def walk(self, visit: Callable[..., tuple[Array, Taps]], x: Array) -> tuple[Array, Taps]:
        """One block after the other: (the last one's output, each one's taps stacked)."""
        body = rematerialise(visit, self.remat, prevent_cse=False)
        return jax.lax.scan(body, x, self.resblocks)


def project(x: Array, projection: Any, numerics: Numerics) -> Array:
    """x [n, d] -> [n, e] by a matrix or a `Linear`; x itself where there is no projection."""
    if projection is None:
        return x
    return projection(x) if isinstance(projection, Linear) else numerics.dot(x, projection)


def make_projection(tower: Tower, embed_dim: int, *, numerics: Numerics, init: Initialiser) -> Any:
    """The projection to the joint space that the config says; None if it says none."""
    std, width = tower.width**-0.5, pooled_width(tower, embed_dim)
    if tower.projection == "linear":
        start: Start = "lecun" if starts_as_siglip(tower) else std
        return Linear(width, embed_dim, start=start, numerics=numerics, init=init)
    return init.normal((width, embed_dim), std) if tower.projection == "matrix" else None
