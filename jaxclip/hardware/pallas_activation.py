"""The MLP's activation and its gradient as Pallas kernels that Triton compiles for NVIDIA GPUs.

They read each array once and write one. XLA's kernels do so as well, but divide and take the
exponential in full float32: on an H200 they move 2.9 TB/s where a copy moves 4.3.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array
SLOPE = 1.702  # of `layers.quick_gelu`


class Blocks(NamedTuple):
    """How a kernel cuts a matrix: rows and columns, in powers of two, of what is read at a time."""

    rows: int
    columns: int
    warps: int  # of a program
    programs: int  # of all columns together, about


# The fastest of 13 each on an H200, for [32896, 4096] in bfloat16: 0.147 ms where XLA takes 0.174,
# and 0.224 where it takes 0.231 (2026-11-27, jax 0.11.2; in a whole step XLA took 0.186 and 0.240).
FORWARD = Blocks(rows=2, columns=512, warps=4, programs=2112)
BACKWARD = Blocks(rows=2, columns=512, warps=4, programs=2 * 1584)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """How a matrix [m, f] is split: a program has some columns, of every `programs`-th `rows`."""

    m: int
    f: int
    exact: bool
    """Whether to do without the chip's approximate functions, which are right to some 2e-7."""
    blocks: Blocks

    @property
    def rows(self) -> int:
        return self.blocks.rows

    @property
    def columns(self) -> int:
        """Some are masked where that does not divide f."""
        return min(self.blocks.columns, pl.next_power_of_2(self.f))

    @property
    def row_blocks(self) -> int:
        return pl.cdiv(self.m, self.rows)

    @property
    def programs(self) -> int:
        """For the same columns."""
        return min(max(1, self.blocks.programs // pl.cdiv(self.f, self.columns)), self.row_blocks)

    @property
    def grid(self) -> tuple[int, int]:
        return pl.cdiv(self.f, self.columns), self.programs


# The kernels --------------------------------------------------------------------------------------


def _sigmoid(h: Array, exact: bool) -> Array:
    """sigmoid(1.702 h) in float32; exactly 0 or 1 far from zero, where 2^x is inf or 0."""
    exponent = h * (-SLOPE * math.log2(math.e))
    if exact:
        return 1 / (1 + jnp.exp2(exponent))
    [result] = triton.elementwise_inline_asm(
        """{
        .reg .f32 t;
        ex2.approx.ftz.f32 t, $1;
        add.ftz.f32 t, t, 0f3F800000;
        rcp.approx.ftz.f32 $0, t;
        }""",
        args=[exponent],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(h.shape, h.dtype)],
    )
    return result


def _forward(product_ref: Any, bias_ref: Any, result_ref: Any, *, shape: _Shape) -> None:
    """All rows of one program."""
    columns, real = _columns(shape)
    bias = triton.load(bias_ref.at[columns], mask=real, other=0).astype(product_ref.dtype)

    def step(at: Any, mask: Array, _: None) -> None:
        h = _load_sum(product_ref, bias, at, mask)
        y = h * _sigmoid(h, shape.exact)
        triton.store(result_ref.at[at], y.astype(bias.dtype), mask=mask)

    _walk_rows(step, None, shape)


def _backward(
    product_ref: Any, bias_ref: Any, dy_ref: Any, dproduct_ref: Any, sums_ref: Any, *, shape: _Shape
) -> None:
    """All rows of one program: dproduct, and its sums over them."""
    columns, real = _columns(shape)
    bias = triton.load(bias_ref.at[columns], mask=real, other=0).astype(product_ref.dtype)

    def step(at: Any, mask: Array, sums: Array) -> Array:
        h = _load_sum(product_ref, bias, at, mask)
        dy = triton.load(dy_ref.at[at], mask=mask, other=0).astype(jnp.float32)
        s = _sigmoid(h, shape.exact)
        dproduct = (dy * (s + h * s * (SLOPE - SLOPE * s))).astype(bias.dtype)
        triton.store(dproduct_ref.at[at], dproduct, mask=mask)
        return sums + dproduct.astype(jnp.float32)  # behind the end dy is 0

    # One sum a row of a block: to add a block's rows in each step is work between threads.
    sums = _walk_rows(step, jnp.zeros((shape.rows, shape.columns), jnp.float32), shape)
    triton.store(sums_ref.at[pl.program_id(1), columns], sums.sum(0), mask=real)


def _walk_rows(step: Callable[..., Any], carry: Any, shape: _Shape) -> Any:
    """`step` of all of this program's blocks: (place, which are real, carry) -> carry."""
    program = pl.program_id(1)
    columns, real = _columns(shape)

    def visit(i: Any, carry: Any) -> Any:
        first = (i * shape.programs + program) * shape.rows
        rows = first + jnp.arange(shape.rows)
        mask = (rows < shape.m)[:, None] & real[None, :]
        return step((pl.ds(first, shape.rows), columns), mask, carry)

    return lax.fori_loop(0, pl.cdiv(shape.row_blocks, shape.programs), visit, carry)


def _columns(shape: _Shape) -> tuple[Any, Array]:
    """The columns of this program, and which of them are real."""
    first = pl.program_id(0) * shape.columns
    return pl.ds(first, shape.columns), first + jnp.arange(shape.columns) < shape.f


def _load_sum(product_ref: Any, bias: Array, at: Any, mask: Array) -> Array:
    """A block of product + bias, rounded to the model's dtype, in float32."""
    product = triton.load(product_ref.at[at], mask=mask, other=0)
    return (product + bias).astype(jnp.float32)


# The function -------------------------------------------------------------------------------------


@jax.custom_vjp
def activate(product: Array, bias: Array) -> Array:
    """quick_gelu(product [m, f] + bias [f]) in the product's dtype; keeps the two for its gradient.

    Rounded as in `layers.Mlp`: the sum, and the result. The bias's gradient is summed in float32.
    """
    return _run(_forward, FORWARD, product, bias)[0]


def _differentiate(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Gradients of product [m, f] and bias [f] from that of the result [m, f]."""
    product, bias = kept
    dproduct, sums = _run(_backward, BACKWARD, product, bias, dy)
    return dproduct, sums.sum(0).astype(bias.dtype)


activate.defvjp(lambda product, bias: (activate(product, bias), (product, bias)), _differentiate)


def _run(kernel: Callable[..., None], blocks: Blocks, *operands: Array) -> Any:
    """[a matrix as the first operand], and of the backward kernel its sums [programs, f]."""
    m, f = operands[0].shape
    narrow = jnp.dtype(operands[0].dtype).itemsize == 2

    def call(interpret: bool) -> Callable[..., Any]:
        shape = _Shape(m, f, interpret or not narrow, blocks)
        results = [jax.ShapeDtypeStruct((m, f), operands[0].dtype)]
        if kernel is _backward:
            results.append(jax.ShapeDtypeStruct((shape.programs, f), jnp.float32))
        return pl.pallas_call(
            functools.partial(kernel, shape=shape),
            grid=shape.grid,
            out_shape=results,
            compiler_params=triton.CompilerParams(num_warps=blocks.warps),
            interpret=interpret,
        )

    return lax.platform_dependent(*operands, cpu=call(True), default=call(False))
