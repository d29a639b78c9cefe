"""A transformer's block whose norms and activation have Pallas kernels, in training on one GPU.

Which chip gets them follows from what was measured there.
"""

import re
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.hardware.attention import FUSED_DTYPES
from jaxclip.hardware.modules import become
from jaxclip.hardware.norm import norm_and_pass, pass_on
from jaxclip.models.layers import LayerNorm, Linear, Mlp, ResidualAttentionBlock, Taps

Array = jax.Array

# Chips on which a training step on one device is faster with the kernels of `pallas_norm.py` and
# `pallas_activation.py`. A chip's name is a word of its `device_kind`.
#
# H200 (2026-11-27, jax 0.11.2, docs/log/): the backward pass of a norm of [32896, 1024] takes 0.107
# ms for XLA's 0.193, activation and gradient 0.371 for 0.405. Whole steps with these kernels and
# attention of one packed array: ViT-L/14 144.9 ms, ViT-B/32 107.4; before, each step waited for,
# 154.3 and 114.4.
MEASURED = ("H200",)


def choose_block_kernels(device_kind: str, dtype: Any, *, training_devices: int | None) -> bool:
    """Whether blocks take the kernels where nobody says so.

    On several devices each would gather the others' rows; in inference there is little to gain.

    >>> choose_block_kernels("NVIDIA H200", jnp.bfloat16, training_devices=1)
    True
    >>> choose_block_kernels("NVIDIA H200", jnp.bfloat16, training_devices=8)
    False
    """
    measured = any(re.search(rf"\b{chip}\b", device_kind) for chip in MEASURED)
    if not measured or dtype not in FUSED_DTYPES or training_devices != 1:
        return False
    try:
        require_block_kernels(dtype)
    except ValueError:  # this jax
        return False
    return True


def require_block_kernels(dtype: Any) -> None:
    """ValueError unless the kernels can run, and take a model of that dtype."""
    try:
        from jaxclip.hardware.pallas_norm import DTYPES
    except ImportError:  # jax 0.11 has deprecated Pallas for Triton
        raise ValueError(
            f"block_kernels: expected a jax that has Pallas for Triton, got jax {jax.__version__}; "
            "leave the blocks to XLA"
        ) from None
    if dtype not in DTYPES:
        names = ", ".join(jnp.dtype(each).name for each in DTYPES)
        raise ValueError(
            f"block_kernels: expected {names}, got {jnp.dtype(dtype).name}; leave the blocks to XLA"
        )


def _pallas() -> ModuleType:
    """The module of the activation's kernels; loading it takes time that nothing else needs."""
    from jaxclip.hardware import pallas_activation

    return pallas_activation


# Modules ------------------------------------------------------------------------------------------


class LinearBeforeNorm(Linear):
    """`Linear` whose bias gets its gradient from `norm_and_pass` or `pass_on`."""

    def __call__(self, x: Array) -> Array:
        bias = nnx.Param(jax.lax.stop_gradient(self.bias[...]))
        return self.numerics.dot(x, self.kernel, bias)


class FusedMlp(Mlp):
    """`Mlp` on tokens as one matrix, whose quick_gelu has kernels that add the bias before it."""

    def __call__(self, x: Array) -> Array:
        """x [n l, d] -> [n l, d]."""
        product = self.c_fc.numerics.dot(x, self.c_fc.kernel)  # [n l, 4d]
        return self.c_proj(_pallas().activate(product, self.c_fc.bias[...]))


class FusedNormBlock(ResidualAttentionBlock):
    """`ResidualAttentionBlock` on tokens as one matrix, whose norms have the backward kernel.

    Its `attn.out_proj` and `mlp.c_proj` are `LinearBeforeNorm`.
    """

    def __call__(self, carried: Any, mask: Any, taps: Taps | None = None) -> Any:
        """(x [n l, d], the bias that was added to it last [d]) -> the same; the usual taps."""
        x, added = carried
        x, y = _split(self.ln_1, x, added)
        x = x + self.attn(y, mask, taps)
        x, y = _split(self.ln_2, x, self.attn.out_proj.bias[...])
        x = x + self.mlp(y)
        added = self.mlp.c_proj.bias[...]
        if taps is not None:
            x, added = pass_on(x, added), jnp.zeros_like(added)  # a tap may have a gradient too
            taps["hidden"] = x
        return x, added


def _split(norm: LayerNorm, x: Array, added: Array) -> tuple[Array, Array]:
    """x for the residual, and x normalised."""
    return norm_and_pass(x, norm.scale[...], norm.bias[...], added, norm.epsilon)


def fuse(block: ResidualAttentionBlock) -> None:
    """Make a plain block, stacked or not, a `FusedNormBlock`, and its MLP a `FusedMlp`."""
    become(block, FusedNormBlock)
    become(block.attn.out_proj, LinearBeforeNorm)
    become(block.mlp.c_proj, LinearBeforeNorm)
    if block.mlp.activation == "quick_gelu":
        become(block.mlp, FusedMlp)
