"""Attention as Pallas kernels that Triton compiles for NVIDIA GPUs, for sequences of any length.

Blocks at a sequence's end are masked, so nothing is padded. Rows of the softmax are in float32 and
to the base 2. The backward pass computes the weights again, from each row's logarithm of its sum.
Queries, keys and values are parts of one array, as one product makes them, and so are their
gradients: nothing is copied before a kernel or after it. The gradient of that product's bias is
their sum over tokens, which the backward kernels make of what they have in registers.

The kernels that jax ships want lengths that are multiples of a block, give NaN in place of some
gradients otherwise, and are deprecated from jax 0.11 on.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    causal: bool
    scale: float
    """Of the scores."""
    name: str

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.length, BLOCK)

    def seen(self, queries: Array, keys: Array) -> Array:
        """Whether a query may see a key."""
        return queries >= keys if self.causal else keys < self.length

    def keys_of(self, i: Any) -> Any:
        """The number of blocks of keys that the queries of block i see."""
        return i + 1 if self.causal else self.blocks


def _places(i: Any) -> Array:
    return i * BLOCK + jnp.arange(BLOCK)


def _at(ref: Any, i: Any, part: tuple[int, ...]) -> tuple[Any, Array]:
    """(block i of an array [l], [l, k] or, of one of its parts, [l, 3, k]; which rows it has)."""
    mask = _places(i) < ref.shape[0]
    at: tuple[Any, ...] = (pl.ds(i * BLOCK, BLOCK), *(jnp.int32(each) for each in part))
    if len(ref.shape) == 1:
        return ref.at[at], mask
    return ref.at[(*at, slice(None))], mask[:, None]


def _load(ref: Any, i: Any) -> Array:
    """Block i of an array [l, k] or [l]; zeros behind its end."""
    block, mask = _at(ref, i, ())
    return triton.load(block, mask=mask, other=0)


def _store(ref: Any, i: Any, block: Array, *part: int) -> None:
    """Write block i of an array [l, k] or [l], or of one part of [l, 3, k]."""
    at, mask = _at(ref, i, part)
    triton.store(at, block.astype(ref.dtype), mask=mask)


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
    sum_ref: Any,
    *,
    shape: _Shape,
) -> None:
    """The gradient of a block of queries, and its sum; of each the sum of o do, for the keys."""
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
    triton.store(sum_ref.at[:], (dq * shape.scale).sum(0))  # zeros behind the end


def _attention_backward_keys(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    do_ref: Any,
    log_sum_ref: Any,
    delta_ref: Any,
    _: Any,
    dqkv_ref: Any,
    sum_ref: Any,
    *,
    shape: _Shape,
) -> None:
    """The gradients of a block of keys and values, beside that of queries, and their sums.

    Scores are transposed here: [keys, queries].
    """
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
    inside = _places(j)[:, None] < shape.length  # weights of an empty place may even be infinite
    for part, gradient in (1, dk * shape.scale), (2, dv):
        _store(dqkv_ref, j, gradient, part)
        at = sum_ref.at[jnp.int32(part - 1), :]
        triton.store(at, jnp.where(inside, gradient, 0.0).sum(0))


# Calls --------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """An array, or the shape of a result, and the part of it that a program sees."""

    array: Any
    spec: pl.BlockSpec


def _part(qkv: Any, part: int) -> _Given:
    """A head's queries (0), keys (1) or values (2) [l, k] of [n, l, 3, a, k]."""
    _, l, _, _, k = qkv.shape
    block = (None, l, None, None, k)
    return _Given(qkv, pl.BlockSpec(block, lambda i, head, row: (row, 0, part, head, 0)))


def _parts(qkv: Any) -> _Given:
    """All three [l, 3, k]."""
    _, l, _, _, k = qkv.shape
    return _Given(
        qkv, pl.BlockSpec((None, l, 3, None, k), lambda i, head, row: (row, 0, 0, head, 0))
    )


def _head(array: Any) -> _Given:
    """A head [l, k] of [n, l, a, k]."""
    _, l, _, k = array.shape
    return _Given(array, pl.BlockSpec((None, l, None, k), lambda i, head, row: (row, 0, head, 0)))


def _sums(array: Any) -> _Given:
    """A head's rows [l] of [n, a, l]."""
    block = (None, None, array.shape[-1])
    return _Given(array, pl.BlockSpec(block, lambda i, head, row: (row, head, 0)))


def _partial_sums(array: Any) -> _Given:
    """A program's sums [k] of [n, programs, a, k], or [2, k] of [n, programs, 2, a, k]."""
    *_, k = array.shape
    if len(array.shape) == 4:
        spec = pl.BlockSpec((None, None, None, k), lambda i, head, row: (row, i, head, 0))
    else:
        spec = pl.BlockSpec((None, None, 2, None, k), lambda i, head, row: (row, i, 0, head, 0))
    return _Given(array, spec)


def _call(
    kernel: Callable[..., None],
    shape: _Shape,
    inputs: list[_Given],
    results: list[_Given],
    aliases: dict[int, int] | None = None,
) -> Any:
    """`kernel` for every block of every head of every sequence, of queries [n, l, 3, a, k].

    Compiled by Triton, and interpreted on a CPU. `aliases` are results in an input's buffer.
    """
    n, _, _, a, _ = inputs[0].array.shape
    arrays = [given.array for given in inputs]

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            functools.partial(kernel, shape=shape),
            grid=(shape.blocks, a, n),
            in_specs=[given.spec for given in inputs],
            out_specs=[given.spec for given in results],
            out_shape=[given.array for given in results],
            input_output_aliases=aliases or {},
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=interpret,
        )

    return lax.platform_dependent(*arrays, cpu=call(True), default=call(False))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(qkv: Array, bias: Array, shape: _Shape) -> Array:
    return _forward(qkv, bias, shape)[0]


def _forward(qkv: Array, bias: Array, shape: _Shape) -> tuple[Array, Any]:
    n, l, _, a, k = qkv.shape
    mixed = jax.ShapeDtypeStruct((n, l, a, k), qkv.dtype)
    log_sum = jax.ShapeDtypeStruct((n, a, l), jnp.float32)
    parts = [_part(qkv, part) for part in range(3)]
    found = _call(_attention_forward, shape, parts, [_head(mixed), _sums(log_sum)])
    mixed, log_sum = (checkpoint_name(each, shape.name) for each in found)
    return mixed, (qkv, bias, mixed, log_sum)


def _backward(shape: _Shape, kept: Any, gradient: Array) -> tuple[Array, Array]:
    """The gradient of queries, keys and values, of which each kernel writes its parts; the bias's.

    The sums over tokens are of a program each, so they are added in the same order every time.
    """
    qkv, bias, mixed, log_sum = kept
    n, _, _, a, k = qkv.shape
    like = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    delta = jax.ShapeDtypeStruct(log_sum.shape, jnp.float32)
    dq_sums = jax.ShapeDtypeStruct((n, shape.blocks, a, k), jnp.float32)
    dkv_sums = jax.ShapeDtypeStruct((n, shape.blocks, 2, a, k), jnp.float32)
    parts = [_part(qkv, part) for part in range(3)]
    inputs = [*parts, _head(mixed), _head(gradient), _sums(log_sum)]
    results = [_part(like, 0), _sums(delta), _partial_sums(dq_sums)]
    dqkv, delta, dq_sums = _call(_attention_backward_queries, shape, inputs, results)
    inputs = [*parts, _head(gradient), _sums(log_sum), _sums(delta), _parts(dqkv)]
    results = [_parts(like), _partial_sums(dkv_sums)]
    dqkv, dkv_sums = _call(_attention_backward_keys, shape, inputs, results, {6: 0})
    dbias = jnp.concatenate([dq_sums.sum((0, 1))[None], dkv_sums.sum((0, 1))])  # [3, a, k]
    return dqkv, dbias.reshape(-1).astype(bias.dtype)


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


def attend(qkv: Array, bias: Array, *, causal: bool, name: str) -> Array:
    """softmax(query key / sqrt(k)) value of [query; key; value] [n, l, 3, a, k] -> [n, l, a, k].

    Args:
      qkv: `bias` is in it already, under `stop_gradient`.
      bias: [3 a k]; its gradient comes from here, its value is not used.
      name: for `jax.checkpoint`, of what the backward pass takes from the forward kernel.

    Raises:
      ValueError: heads of a width or a dtype that the kernels do not take.
    """
    require_head(qkv.shape[-1], qkv.dtype)
    scale = 1 / math.sqrt(qkv.shape[-1])
    return _attend(qkv, bias, _Shape(qkv.shape[1], causal, scale, name))
