"""Transformers on tokens as one matrix, whose backward pass keeps and moves little.

What is here follows from what XLA's programs for an H100 read and write, and from the memory that
its programs for TPUs take (docs/log/). Measured on an H200 (docs/gpu.md), not on a TPU.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxclip.hardware.attention import KEPT, FusedAttention, Sequences, choose, padded_length
from jaxclip.hardware.blocks import FusedMlp, FusedNormBlock, LinearBeforeNorm, fuse
from jaxclip.hardware.modules import Model, become, modules_of
from jaxclip.hardware.norm import LeanLayerNorm, pass_on
from jaxclip.models.layers import (
    Attention,
    LayerNorm,
    Linear,
    Mlp,
    ResidualAttentionBlock,
    Taps,
    Transformer,
    rematerialise,
)
from jaxclip.models.parameters import PRODUCTS, copy_tree, path_name

Array = jax.Array
Tree = TypeVar("Tree")


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
        if not isinstance(blocks, FusedNormBlock):
            return jax.lax.scan(body, x, blocks, unroll=self.unrolled)
        start = x, jnp.zeros_like(blocks.mlp.c_proj.bias[0])  # nothing was added before
        (x, added), taps = jax.lax.scan(body, start, blocks, unroll=self.unrolled)
        return pass_on(x, added), taps

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
    model: Model,
    attention: type[FusedAttention] = FusedAttention,
    *,
    block_kernels: bool = False,
    **options: Any,
) -> Model:
    """The same tree in the modules above; the model itself is unchanged.

    Args:
      model: plain, of arrays or of shapes.
      attention: the class to put in the place of `Attention`.
      block_kernels: whether blocks become `FusedNormBlock`.
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
        if block_kernels and type(module) is ResidualAttentionBlock:
            fuse(module)
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
    classes: dict[type, type] = {
        FlatTransformer: Transformer,
        FusedNormBlock: ResidualAttentionBlock,
        FusedMlp: Mlp,
        LinearBeforeNorm: Linear,
        LeanLayerNorm: LayerNorm,
    }
    for module in modules_of(restored):
        if isinstance(module, FlatTransformer):
            for name in ("unrolled", "device_kind", "kernel", "training_devices"):
                vars(module).pop(name, None)
        attention = Attention if isinstance(module, FusedAttention) else None
        become(module, classes.get(type(module), attention))
    restored.notes = model.notes
    return restored
