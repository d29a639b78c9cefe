"""Matrix products for XLA on a CPU: kernels whose rows are set apart, narrow products summed wide.

XLA:CPU's matmul reads a kernel a few columns wide at a time, from row to row. A row stride that is
a multiple of 4 KiB maps every row to one cache set and halves its speed; multiples of 1 KiB lose
less (docs/log/).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxclip.models.layers import Numerics

Array = jax.Array
PADDING = 16  # columns of zeros: one cache line
STRIDE = 256  # columns; kernels with a multiple of them are padded,
LEAST_COLUMNS = 512  # from here on: with fewer the zeros cost more than they save


class Padded(nnx.Param[Any]):
    """A kernel [..., o + PADDING] whose last columns are zeros that no result depends on."""


def pad(kernel: nnx.Param[Any]) -> nnx.Param[Any]:
    """The kernel [..., o], or shape, as `Padded` where that is faster; else itself."""
    columns = kernel.shape[-1]
    if isinstance(kernel, Padded) or columns < LEAST_COLUMNS or columns % STRIDE:
        return kernel
    value = kernel.get_value()
    if isinstance(value, jax.ShapeDtypeStruct):
        return Padded(jax.ShapeDtypeStruct((*value.shape[:-1], columns + PADDING), value.dtype))
    return Padded(jnp.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, PADDING)]))


def unpad(kernel: nnx.Param[Any]) -> nnx.Param[Any]:
    """The inverse of `pad`, of arrays."""
    return nnx.Param(kernel[...][..., :-PADDING]) if isinstance(kernel, Padded) else kernel


class CpuNumerics(Numerics):
    """`Numerics` for XLA on a CPU: knows `Padded` kernels; products answer in float32 or wider."""

    def product(self, x: Array, matrix: Array) -> Array:
        """x [..., i] @ matrix [i, o] -> [..., o], summed and returned in at least float32."""
        x, matrix = x.astype(self.dtype), matrix.astype(self.dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        alone = x.size == x.shape[-1] and x.dtype != wide
        if alone:  # XLA:CPU upcasts the whole matrix for a one-row bf16 product, not for two rows
            x = jnp.broadcast_to(x, (2, *x.shape))
        y = jnp.matmul(x, matrix, precision=self.precision, preferred_element_type=wide)
        return y[0] if alone else y

    def dot(self, x: Array, kernel: nnx.Param[Any], bias: nnx.Param[Any] | None = None) -> Array:
        product = self.product(x, kernel[...].reshape(-1, kernel.shape[-1]))
        if isinstance(kernel, Padded):
            product = product[..., :-PADDING]
        y = (product if bias is None else product + bias[...]).astype(self.dtype)
        return checkpoint_name(y, "product")

    def einsum(self, equation: str, x: Array, y: Array) -> Array:
        x, y = x.astype(self.dtype), y.astype(self.dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return jnp.einsum(equation, x, y, precision=self.precision, preferred_element_type=wide)
