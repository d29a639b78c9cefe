"""Attention as Pallas kernels that Triton compiles for NVIDIA GPUs, for sequences of any length.

Nothing is padded: the tokens are cut into full blocks and a smaller one, the tail. Only the tail
and the blocks on the diagonal of a causal mask are masked. Rows of the softmax are in float32 and
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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxclip.hardware.pallas_attention_blocks import (
    Blocks,
    Given,
    Rows,
    for_own_rows,
    load,
    see_head,
    see_part,
    see_partial_sums,
    see_parts,
    see_sums,
    store,
    walk_keys,
    walk_queries,
)

Array = jax.Array
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
WIDTHS = (16, 32, 64, 128)  # channels of a head: Triton's blocks are powers of two
HIDDEN = -1e30  # of a hidden key; minus infinity would make NaN of a row that sees none in a block

# (kernel, causal): the fastest of 7 to 11 each on an H200 at 257, 50 and 77 tokens (docs/log/)
BLOCKS = {
    ("forward", False): Blocks(own=64, other=64, warps=4, stages=3, own_tail=64),
    ("queries", False): Blocks(own=64, other=64, warps=4, stages=2, own_tail=64),
    ("keys", False): Blocks(own=64, other=64, warps=4, stages=2),
    ("forward", True): Blocks(own=64, other=64, warps=4, stages=2),
    ("queries", True): Blocks(own=64, other=64, warps=4, stages=2),
    ("keys", True): Blocks(own=64, other=64, warps=4, stages=2),
}


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What a call knows when it is compiled; fields as the arguments of `attend`."""

    length: int
    causal: bool
    scale: float
    """Of the scores."""
    name: str

    @property
    def scale2(self) -> float:
        """Of scores whose exponentials are to the base 2."""
        return self.scale * math.log2(math.e)

    def seen(self, queries: Array, keys: Array) -> Array:
        """Whether a query may see a key, in a block that needs a mask."""
        return queries >= keys if self.causal else keys < self.length


def _dot(a: Array, b: Array, *, trans_b: bool = False) -> Array:
    """a b or a b^T in float32; of float32 in full, not as TensorFloat-32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return triton.dot(a, b, trans_b=trans_b, precision=precision)


# Kernels: a program has one head's arrays [l, k] as refs, and works on one block of them ----------


def _attention_forward(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    o_ref: Any,
    log_sum_ref: Any,
    *,
    shape: _Shape,
    blocks: Blocks,
) -> None:
    def work(own: Rows) -> None:
        q = load(q_ref, own)

        def step(keys: Rows, carry: tuple[Array, Array, Array], masked: bool = False) -> Any:
            mixed, largest, total = carry
            scores = _dot(q, load(k_ref, keys), trans_b=True)
            if masked:
                seen = shape.seen(own.places[:, None], keys.places[None, :])
                scores = jnp.where(seen, scores, HIDDEN)
            new = jnp.maximum(largest, scores.max(1) * shape.scale2)
            weights = jnp.exp2(scores * shape.scale2 - new[:, None])
            v = load(v_ref, keys)
            old = jnp.exp2(largest - new)
            mixed = mixed * old[:, None] + _dot(weights.astype(v.dtype), v)
            return mixed, new, total * old + weights.sum(1)

        start = (
            jnp.zeros(q.shape, jnp.float32),
            jnp.full(own.size, -jnp.inf, jnp.float32),
            jnp.zeros(own.size, jnp.float32),
        )
        mixed, largest, total = walk_keys(step, start, own, shape.length, shape.causal, blocks)
        store(o_ref, own, mixed / total[:, None])
        store(log_sum_ref, own, largest + jnp.log2(total))

    for_own_rows(work, shape.length, blocks)


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
    blocks: Blocks,
) -> None:
    """The gradient of a block of queries, and its sum; of each the sum of o do, for the keys."""

    def work(own: Rows) -> None:
        q, do, log_sum = load(q_ref, own), load(do_ref, own), load(log_sum_ref, own)
        delta = (load(o_ref, own).astype(jnp.float32) * do.astype(jnp.float32)).sum(1)
        store(delta_ref, own, delta)

        def step(keys: Rows, dq: Array, masked: bool = False) -> Array:
            k, v = load(k_ref, keys), load(v_ref, keys)
            scores = _dot(q, k, trans_b=True)
            if masked:
                seen = shape.seen(own.places[:, None], keys.places[None, :])
                scores = jnp.where(seen, scores, HIDDEN)
            weights = jnp.exp2(scores * shape.scale2 - log_sum[:, None])
            ds = weights * (_dot(do, v, trans_b=True) - delta[:, None])
            return dq + _dot(ds.astype(k.dtype), k)

        dq = (
            walk_keys(
                step, jnp.zeros(q.shape, jnp.float32), own, shape.length, shape.causal, blocks
            )
            * shape.scale
        )
        store(dq_ref, own, dq)
        triton.store(sum_ref.at[:], dq.sum(0))  # zeros behind the end

    for_own_rows(work, shape.length, blocks)


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
    blocks: Blocks,
) -> None:
    """The gradients of a block of keys and values, beside that of queries, and their sums.

    Scores are transposed here: [keys, queries].
    """

    def work(own: Rows) -> None:
        k, v = load(k_ref, own), load(v_ref, own)

        def step(queries: Rows, carry: tuple[Array, Array], masked: bool = False) -> Any:
            dk, dv = carry
            q, do = load(q_ref, queries), load(do_ref, queries)
            scores = _dot(k, q, trans_b=True)
            if masked:
                seen = shape.seen(queries.places[None, :], own.places[:, None])
                scores = jnp.where(seen, scores, HIDDEN)
            weights = jnp.exp2(scores * shape.scale2 - load(log_sum_ref, queries)[None, :])
            ds = weights * (_dot(v, do, trans_b=True) - load(delta_ref, queries)[None, :])
            return dk + _dot(ds.astype(q.dtype), q), dv + _dot(weights.astype(do.dtype), do)

        start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(k.shape, jnp.float32)
        dk, dv = walk_queries(step, start, own, shape.length, shape.causal, blocks)
        for part, gradient in (1, dk * shape.scale), (2, dv):
            store(dqkv_ref, own, gradient, part)
            at = sum_ref.at[jnp.int32(part - 1), :]
            triton.store(at, _without_empty(gradient, own).sum(0))

    for_own_rows(work, shape.length, blocks)


def _without_empty(gradient: Array, own: Rows) -> Array:
    """Zeros for keys behind the end, whose weights may even be infinite."""
    if own.end is None:
        return gradient
    return jnp.where(own.places[:, None] < own.end, gradient, 0.0)


# Calls --------------------------------------------------------------------------------------------


def _call(
    kernel: Callable[..., None],
    shape: _Shape,
    blocks: Blocks,
    inputs: list[Given],
    results: list[Given],
    aliases: dict[int, int] | None = None,
) -> Any:
    """`kernel` for every block of every head of every sequence, of queries [n, l, 3, a, k].

    Compiled by Triton, and interpreted on a CPU. `aliases` are results in an input's buffer.
    """
    n, _, _, a, _ = inputs[0].array.shape
    arrays = [given.array for given in inputs]

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            functools.partial(kernel, shape=shape, blocks=blocks),
            grid=(blocks.programs(shape.length), a, n),
            in_specs=[given.spec for given in inputs],
            out_specs=[given.spec for given in results],
            out_shape=[given.array for given in results],
            input_output_aliases=aliases or {},
            compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
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
    parts = [see_part(qkv, part) for part in range(3)]
    blocks = BLOCKS["forward", shape.causal]
    found = _call(_attention_forward, shape, blocks, parts, [see_head(mixed), see_sums(log_sum)])
    mixed, log_sum = (checkpoint_name(each, shape.name) for each in found)
    return mixed, (qkv, bias, mixed, log_sum)


def _backward(shape: _Shape, kept: Any, gradient: Array) -> tuple[Array, Array]:
    """The gradient of queries, keys and values, of which each kernel writes its parts; the bias's.

    The sums over tokens are of a program each, so they are added in the same order every time.
    """
    qkv, bias, mixed, log_sum = kept
    n, l, _, a, k = qkv.shape
    like = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    delta = jax.ShapeDtypeStruct(log_sum.shape, jnp.float32)
    parts = [see_part(qkv, part) for part in range(3)]

    blocks = BLOCKS["queries", shape.causal]
    dq_sums = jax.ShapeDtypeStruct((n, blocks.programs(l), a, k), jnp.float32)
    inputs = [*parts, see_head(mixed), see_head(gradient), see_sums(log_sum)]
    results = [see_part(like, 0), see_sums(delta), see_partial_sums(dq_sums)]
    found = _call(_attention_backward_queries, shape, blocks, inputs, results)
    dqkv, delta, dq_sums = found

    blocks = BLOCKS["keys", shape.causal]
    dkv_sums = jax.ShapeDtypeStruct((n, blocks.programs(l), 2, a, k), jnp.float32)
    inputs = [*parts, see_head(gradient), see_sums(log_sum), see_sums(delta), see_parts(dqkv)]
    results = [see_parts(like), see_partial_sums(dkv_sums)]
    found = _call(_attention_backward_keys, shape, blocks, inputs, results, {6: 0})
    dqkv, dkv_sums = found

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
