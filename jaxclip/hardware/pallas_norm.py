"""The backward pass of layer norm as a Pallas kernel that Triton compiles for NVIDIA GPUs.

It reads each array once and writes one. XLA needs kernels of their own for the moments of x, for
the gradient of x and for the sums over the rows, and each reads its arrays again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
ROWS = 2  # at a time
COLUMNS = 256  # of a warp: 16 bytes of bfloat16 a thread, and a row's sum in few steps
WARPS = 4224  # of all programs together; twice what 132 multiprocessors hold


@dataclasses.dataclass(frozen=True)
class _Shape:
    """How a matrix [m, d] is split: a program has every `programs`-th block of `ROWS` rows."""

    m: int
    d: int
    epsilon: float

    @property
    def columns(self) -> int:
        """d and masked columns behind it: Triton's blocks are powers of two."""
        return pl.next_power_of_2(self.d)

    @property
    def warps(self) -> int:
        """Of a program."""
        return min(max(1, self.columns // COLUMNS), 32)

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.m, ROWS)

    @property
    def programs(self) -> int:
        return min(WARPS // self.warps, self.blocks)


def _norm_backward(
    x_ref: Any,
    scale_ref: Any,
    dy_ref: Any,
    passed_ref: Any,
    dx_ref: Any,
    sums_ref: Any,
    *,
    shape: _Shape,
) -> None:
    """All rows of one program: dx, and its sums over them for scale, bias and what was added."""
    program = pl.program_id(0)
    real = jnp.arange(shape.columns) < shape.d
    scale = triton.load(scale_ref.at[_columns(shape)], mask=real, other=0).astype(jnp.float32)

    def mean(x: Array) -> Array:
        return x.sum(1, keepdims=True) / shape.d

    def step(i: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        first = (i * shape.programs + program) * ROWS
        mask = _inside(first, shape)
        at = pl.ds(first, ROWS), _columns(shape)

        def load(ref: Any) -> Array:
            """A block of rows in float32, zeros behind the matrix's end, which add nothing."""
            return triton.load(ref.at[at], mask=mask, other=0).astype(jnp.float32)

        x, dy, passed = load(x_ref), load(dy_ref), load(passed_ref)
        centred = jnp.where(real, x - mean(x), 0)
        factor = lax.rsqrt(mean(centred * centred) + shape.epsilon)
        normalised = centred * factor
        g = dy * scale
        dx = factor * (g - mean(g) - normalised * mean(g * normalised))
        dx = (passed + dx).astype(dx_ref.dtype)
        triton.store(dx_ref.at[at], dx, mask=mask)
        columns = dy * normalised, dy, jnp.where(mask, dx.astype(jnp.float32), 0)
        dscale, dbias, total = (a + b.sum(0) for a, b in zip(sums, columns, strict=True))
        return dscale, dbias, total

    start = jnp.zeros(shape.columns, jnp.float32)
    trips = pl.cdiv(shape.blocks, shape.programs)
    sums = lax.fori_loop(0, trips, step, (start, start, start))
    for i, total in enumerate(sums):
        triton.store(sums_ref.at[3 * program + i, _columns(shape)], total, mask=real)


def _columns(shape: _Shape) -> Any:
    return pl.ds(0, shape.columns)


def _inside(first: Any, shape: _Shape) -> Array:
    """Which of a block's numbers are in the matrix."""
    rows, columns = first + jnp.arange(ROWS), jnp.arange(shape.columns)
    return (rows < shape.m)[:, None] & (columns < shape.d)[None, :]


def differentiate(
    x: Array, scale: Array, dy: Array, passed: Array, epsilon: float
) -> tuple[Array, Array, Array, Array]:
    """Gradients of x [m, d], which a layer norm takes and a residual passes on, and their sums.

    Args:
      scale: of the layer norm [d].
      dy: gradient of what it returns [m, d].
      passed: gradient of x by the residual [m, d].

    Returns:
      (gradient of x [m, d], of scale [d], of bias [d], sum of x's gradient over the rows [d]).
    """
    m, d = x.shape
    shape = _Shape(m, d, epsilon)
    sums = jax.ShapeDtypeStruct((3 * shape.programs, d), jnp.float32)
    operands, results = (x, scale, dy, passed), [jax.ShapeDtypeStruct(x.shape, x.dtype), sums]

    def see(array: Any) -> pl.BlockSpec:
        """All of it, and the masked columns behind it."""
        return pl.BlockSpec((*array.shape[:-1], shape.columns), lambda _: (0,) * array.ndim)

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            functools.partial(_norm_backward, shape=shape),
            grid=(shape.programs,),
            in_specs=[see(each) for each in operands],
            out_specs=[see(each) for each in results],
            out_shape=results,
            compiler_params=triton.CompilerParams(num_warps=shape.warps),
            interpret=interpret,
        )

    dx, sums = lax.platform_dependent(*operands, cpu=call(True), default=call(False))
    dscale, dbias, total = sums.reshape(-1, 3, d).sum(0)
    return dx, dscale, dbias, total
