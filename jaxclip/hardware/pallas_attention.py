"""Attention as Pallas kernels that Triton compiles for NVIDIA GPUs, for sequences of any length.

Blocks at a sequence's end are masked, so nothing is padded. Rows of the softmax are in float32 and
to the base 2. The backward pass computes the weights again, from each row's logarithm of its sum.

The kernels that jax ships want lengths that are multiples of a block, give NaN in place of some
gradients otherwise, and are deprecated from jax 0.11 on.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
WIDTHS = (16, 32, 64, 128)  # channels of a head: Triton's blocks are powers of two
BLOCK = 64  # queries or keys at a time
WARPS, STAGES = 4, 2
HIDDEN = -1e30  # of a hidden key; minus infinity would make NaN of a row that sees none in a block


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What a call knows when it is compiled; fields as the arguments of `attend`."""

    length: int
    true_length: int
    causal: bool
    scale: float
    """Of the scores."""
    name: str

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.length, BLOCK)

    def seen(self, queries: Array, keys: Array) -> Array:
        """Whether a query may see a key."""
        inside = keys < self.true_length
        return inside & (queries >= keys) if self.causal else inside

    def keys_of(self, i: Any) -> Any:
        """The number of blocks of keys that the queries of block i see."""
        return i + 1 if self.causal else pl.cdiv(self.true_length, BLOCK)


def _places(i: Any) -> Array:
    return i * BLOCK + jnp.arange(BLOCK)


def _load(ref: Any, i: Any) -> Array:
    """Block i of an array [l, k] or [l]; zeros behind its end."""
    mask = _places(i) < ref.shape[0]
    at = pl.ds(i * BLOCK, BLOCK)
    if len(ref.shape) == 1:
        return triton.load(ref.at[at], mask=mask, other=0)
    return triton.load(ref.at[at, :], mask=mask[:, None], other=0)


def _store(ref: Any, i: Any, block: Array) -> None:
    mask = _places(i) < ref.shape[0]
    at = pl.ds(i * BLOCK, BLOCK)
    if len(ref.shape) == 1:
        triton.store(ref.at[at], block.astype(ref.dtype), mask=mask)
    else:
        triton.store(ref.at[at, :], block.astype(ref.dtype), mask=mask[:, None])


def _dot(a: Array, b: Array, *, trans_b: bool = False) -> Array:
    """a b or a b^T in float32; of float32 in full, not as TensorFloat-32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return triton.dot(a, b, trans_b=trans_b, precision=precision)


# Kernels: a program has one head's arrays [l, k] as refs, and works on one block of them ----------


def _attention_forward(
    q_ref: Any, k_ref: Any, v_ref: Any, o_ref: Any, log_sum_ref: Any, *, shape: _Shape
) -> None:
    i = pl.program_id(0)
    q = _load(q_ref, i)

    def step(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, largest, total = carry
        scores = _dot(q, _load(k_ref, j), trans_b=True) * (shape.scale * math.log2(math.e))
        seen = shape.seen(_places(i)[:, None], _places(j)[None, :])
        scores = jnp.where(seen, scores, HIDDEN)
        new = jnp.maximum(largest, scores.max(1))
        weights = jnp.exp2(scores - new[:, None])
        v = _load(v_ref, j)
        old = jnp.exp2(largest - new)
        mixed = mixed * old[:, None] + _dot(weights.astype(v.dtype), v)
        return mixed, new, total * old + weights.sum(1)

    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(BLOCK, -jnp.inf, jnp.float32),
        jnp.zeros(BLOCK, jnp.float32),
    )
    mixed, largest, total = lax.fori_loop(0, shape.keys_of(i), step, start)
    _store(o_ref, i, mixed / total[:, None])
    _store(log_sum_ref, i, largest + jnp.log2(total))


def _attention_backward_queries(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    o_ref: Any,
    do_ref: Any,
    log_sum_ref: Any,
    dq_ref: Any,
    delta_ref: Any,
    *,
    shape: _Shape,
) -> None:
    """The gradient of a block of queries, and of each the sum of o do, which keys take as well."""
    i = pl.program_id(0)
    q, do, log_sum = _load(q_ref, i), _load(do_ref, i), _load(log_sum_ref, i)
    delta = (_load(o_ref, i).astype(jnp.float32) * do.astype(jnp.float32)).sum(1)
    _store(delta_ref, i, delta)

    def step(j: Any, dq: Array) -> Array:
        k, v = _load(k_ref, j), _load(v_ref, j)
        scores = _dot(q, k, trans_b=True) * (shape.scale * math.log2(math.e))
        seen = shape.seen(_places(i)[:, None], _places(j)[None, :])
        weights = jnp.exp2(jnp.where(seen, scores, HIDDEN) - log_sum[:, None])
        ds = weights * (_dot(do, v, trans_b=True) - delta[:, None])
        return dq + _dot(ds.astype(k.dtype), k)

    dq = lax.fori_loop(0, shape.keys_of(i), step, jnp.zeros(q.shape, jnp.float32))
    _store(dq_ref, i, dq * shape.scale)


def _attention_backward_keys(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    do_ref: Any,
    log_sum_ref: Any,
    delta_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    shape: _Shape,
) -> None:
    """The gradients of a block of keys and values. Scores are transposed here: [keys, queries]."""
    j = pl.program_id(0)
    k, v = _load(k_ref, j), _load(v_ref, j)

    def step(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = carry
        q, do = _load(q_ref, i), _load(do_ref, i)
        scores = _dot(k, q, trans_b=True) * (shape.scale * math.log2(math.e))
        seen = shape.seen(_places(i)[None, :], _places(j)[:, None])
        scores = jnp.where(seen, scores, HIDDEN)
        weights = jnp.exp2(scores - _load(log_sum_ref, i)[None, :])
        ds = weights * (_dot(v, do, trans_b=True) - _load(delta_ref, i)[None, :])
        return dk + _dot(ds.astype(q.dtype), q), dv + _dot(weights.astype(do.dtype), do)

    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(j if shape.causal else 0, shape.blocks, step, start)
    _store(dk_ref, j, dk * shape.scale)
    _store(dv_ref, j, dv)


# Calls --------------------------------------------------------------------------------------------


def _call(
    kernel: Callable[..., None], shape: _Shape, inputs: tuple[Array, ...], results: tuple[Any, ...]
) -> Any:
    """`kernel` for every block of every head of every sequence, of [n, l, a, k] or [n, a, l].

    Compiled by Triton, and interpreted on a CPU.
    """
    n, l, a, k = inputs[0].shape
    of_tokens = pl.BlockSpec((None, l, None, k), lambda i, head, row: (row, 0, head, 0))
    of_rows = pl.BlockSpec((None, None, l), lambda i, head, row: (row, head, 0))

    def spec(array: Any) -> pl.BlockSpec:
        return of_tokens if len(array.shape) == 4 else of_rows

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            functools.partial(kernel, shape=shape),
            grid=(shape.blocks, a, n),
            in_specs=[spec(each) for each in inputs],
            out_specs=[spec(each) for each in results],
            out_shape=list(results),
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=interpret,
        )

    return lax.platform_dependent(*inputs, cpu=call(True), default=call(False))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query: Array, key: Array, value: Array, shape: _Shape) -> Array:
    return _forward(query, key, value, shape)[0]


def _forward(query: Array, key: Array, value: Array, shape: _Shape) -> tuple[Array, Any]:
    n, l, a, _ = query.shape
    sums = jax.ShapeDtypeStruct((n, a, l), jnp.float32)
    like = jax.ShapeDtypeStruct(query.shape, query.dtype)
    found = _call(_attention_forward, shape, (query, key, value), (like, sums))
    mixed, log_sum = (checkpoint_name(each, shape.name) for each in found)
    return mixed, (query, key, value, mixed, log_sum)


def _backward(shape: _Shape, kept: Any, gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, mixed, log_sum = kept
    like = jax.ShapeDtypeStruct(query.shape, query.dtype)
    sums = jax.ShapeDtypeStruct(log_sum.shape, jnp.float32)
    inputs = (query, key, value, mixed, gradient, log_sum)
    dq, delta = _call(_attention_backward_queries, shape, inputs, (like, sums))
    inputs = (query, key, value, gradient, log_sum, delta)
    dk, dv = _call(_attention_backward_keys, shape, inputs, (like, like))
    return dq, dk, dv


_attend.defvjp(_forward, _backward)


def require_head(width: int, dtype: Any) -> None:
    """ValueError unless the kernels take heads of so many channels of that dtype."""
    if dtype not in DTYPES:
        names = ", ".join(jnp.dtype(each).name for each in DTYPES)
        raise ValueError(
            f"attention: expected {names} for pallas, got {jnp.dtype(dtype).name}; "
            "choose another kernel"
        )
    if width not in WIDTHS:
        raise ValueError(
            f"attention: expected heads of {', '.join(map(str, WIDTHS))} channels for pallas, "
            f"got {width}; choose another kernel"
        )


def attend(
    query: Array, key: Array, value: Array, *, causal: bool, true_length: int, name: str
) -> Array:
    """softmax(query key / sqrt(k)) value, each [n, l, a, k] -> [n, l, a, k].

    Args:
      true_length: keys from there on are seen by no query.
      name: for `jax.checkpoint`, of what the backward pass takes from the forward kernel.

    Raises:
      ValueError: heads of a width or a dtype that the kernels do not take.
    """
    require_head(query.shape[-1], query.dtype)
    scale = 1 / math.sqrt(query.shape[-1])
    return _attend(query, key, value, _Shape(query.shape[1], true_length, causal, scale, name))
