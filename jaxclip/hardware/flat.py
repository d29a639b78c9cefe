"""Transformers on tokens as one matrix, whose backward pass keeps and moves little.

What is here follows from what XLA's programs for an H100 read and write, and from the memory that
its programs for TPUs take (docs/log/). Measured on an H200 (docs/gpu.md), not on a TPU.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxclip.hardware.attention import KEPT, FusedAttention, Sequences, choose, padded_length
from jaxclip.hardware.modules import Model, become, modules_of
from jaxclip.models.layers import (
    Attention,
    LayerNorm,
    Taps,
    Transformer,
    at_least_float32,
    rematerialise,
)
from jaxclip.models.parameters import PRODUCTS, copy_tree, path_name

Array = jax.Array
Tree = TypeVar("Tree")


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


# Transformer --------------------------------------------------------------------------------------


class FlatTransformer(Transformer):
    """`Transformer` on tokens as one matrix [n l, d], padded once at the entrance.

    With three axes XLA keeps some activations token by token and others picture by picture, and
    copies between the two: a third of what a step's elementwise kernels move.
    """

    device_kind: str = ""
    kernel: str = "auto"
    training_devices: int | None = None
    unrolled: bool = False

    def __call__(self, x: Array, mask: Array | None = None, taps: Taps | None = None) -> Array:
        n, true_length, d = x.shape
        kernel: Any = self.kernel
        if kernel == "auto":
            kernel = choose(
                self.device_kind,
                true_length,
                x.dtype,
                head=d // self.resblocks.attn.heads,
                training_devices=self.training_devices,
            )
        length = padded_length(true_length, kernel)
        rows: Any = Sequences(n, length, true_length, mask is not None, kernel)
        x = jnp.pad(x, ((0, 0), (0, length - true_length), (0, 0)))
        x = super().__call__(x.reshape(n * length, d), rows, taps)
        if taps is not None:
            hidden = taps["hidden"].reshape(-1, n, length, d)
            taps["hidden"] = hidden[:, :, :true_length]
            taps["attention"] = taps["attention"][..., :true_length, :true_length]
        return x.reshape(n, length, d)[:, :true_length]

    def walk(self, visit: Callable[..., tuple[Array, Taps]], x: Array) -> tuple[Array, Taps]:
        blocks = narrow_kernels(self.resblocks, x.dtype)
        body = self._rematerialise(visit)
        return jax.lax.scan(body, x, blocks, unroll=self.unrolled)

    def _rematerialise(self, visit: Callable[..., Any]) -> Callable[..., Any]:
        """`visit` that saves what `remat` names.

        A fused kernel's backward pass takes a number a row beside its result. Under a name the
        result alone would be saved, and the kernel would run again for that number.
        """
        if self.remat != "products_and_attention":
            return rematerialise(visit, self.remat, prevent_cse=self.unrolled)
        products = jax.checkpoint_policies.save_only_these_names("product", KEPT)

        def saved(primitive: Any, *operands: Any, **how: Any) -> bool:
            fused = "attention_fwd" in primitive.name
            return fused or products(primitive, *operands, **how)

        return jax.checkpoint(visit, policy=saved, prevent_cse=self.unrolled)


def narrow_kernels(blocks: Tree, dtype: Any) -> Tree:
    """Blocks whose kernels are converted to `dtype` once, not in each block and again in reverse.

    Their gradients are stacked in `dtype` as well, in which the products answer anyway.
    """

    def narrowed(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.astype(dtype) if path_name(path).endswith(PRODUCTS) else leaf

    return jax.tree_util.tree_map_with_path(narrowed, blocks)


# Model --------------------------------------------------------------------------------------------


def arrange(
    model: Model, attention: type[FusedAttention] = FusedAttention, **options: Any
) -> Model:
    """The same tree in the modules above; the model itself is unchanged.

    Args:
      model: plain, of arrays or of shapes.
      attention: the class to put in the place of `Attention`.
      options: attributes of every `FlatTransformer`.
    """
    swaps: dict[type, type] = {
        LayerNorm: LeanLayerNorm,
        Transformer: FlatTransformer,
        Attention: attention,
    }
    arranged = copy_tree(model)
    text = getattr(arranged, "text", None)
    own_mask = list(modules_of(text)) if getattr(text, "cls_emb", None) is not None else []
    for module in modules_of(arranged):
        if any(module is each for each in own_mask):
            continue  # no kernel here hides a text's padding
        become(module, swaps.get(type(module)))
        if isinstance(module, FlatTransformer):
            # a loop copies what it keeps for the backward pass into a stack, and out of it
            vars(module).update(options, unrolled=module.remat != "full")
    arranged.notes = model.notes
    return arranged


def plain(model: Model) -> Model:
    """What `arrange` arranged, in plain modules again; any other model itself."""
    if not any(isinstance(module, FlatTransformer) for module in modules_of(model)):
        return model
    restored = copy_tree(model)
    for module in modules_of(restored):
        if isinstance(module, FlatTransformer):
            for name in ("unrolled", "device_kind", "kernel", "training_devices"):
                vars(module).pop(name, None)
            become(module, Transformer)
        elif isinstance(module, LeanLayerNorm):
            become(module, LayerNorm)
        elif isinstance(module, FusedAttention):
            become(module, Attention)
    restored.notes = model.notes
    return restored
