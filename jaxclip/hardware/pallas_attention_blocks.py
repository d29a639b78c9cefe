"""How Pallas kernels of attention cut their arrays: full blocks of tokens, and one smaller tail.

A program of a kernel works on one block of its own side, and walks over those of the other side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array
LEAST_ROWS, MOST_ROWS = 16, 128  # in a block; Triton's products take no fewer
Step = Callable[..., Any]  # rows of the other side, what is carried, whether to mask -> carried


class Blocks(NamedTuple):
    """How a kernel cuts the tokens, in powers of two, and what Triton is told about it."""

    own: int  # rows that a program works on: queries, or keys in the keys' kernel
    other: int  # rows of the other side in a step; `own` under a causal mask
    warps: int
    stages: int
    own_tail: int = LEAST_ROWS  # the fewest rows that a program works on, at most `own`

    def programs(self, length: int) -> int:
        """For one head of one sequence."""
        return pl.cdiv(length, self.own)


class Rows(NamedTuple):
    """One block of a sequence's tokens: `size` rows from `first` on."""

    number: Any  # of the block; an int of the tail
    first: Any
    size: int
    end: int | None  # the sequence's, where some rows are behind it

    @property
    def places(self) -> Array:
        return self.first + jnp.arange(self.size)


def _full(number: Any, block: int) -> Rows:
    return Rows(number, number * block, block, None)


def _tail(length: int, block: int, least: int = LEAST_ROWS) -> Rows | None:
    """The rows behind the last full block, if any, in the smallest block that holds them."""
    number, rest = divmod(length, block)
    if rest == 0:
        return None
    size = max(least, pl.next_power_of_2(rest))
    return Rows(number, length - rest, size, length if size > rest else None)


def _at(ref: Any, rows: Rows, part: tuple[int, ...]) -> tuple[Any, Array | None]:
    """(rows of an array [l], [l, k] or, of one of its parts, [l, 3, k]; which of them are real)."""
    at: tuple[Any, ...] = (pl.ds(rows.first, rows.size), *(jnp.int32(each) for each in part))
    mask = None if rows.end is None else rows.places < rows.end
    if len(ref.shape) == 1:
        return ref.at[at], mask
    return ref.at[(*at, slice(None))], None if mask is None else mask[:, None]


def load(ref: Any, rows: Rows) -> Array:
    """Rows of an array [l, k] or [l]; zeros behind its end."""
    at, mask = _at(ref, rows, ())
    return triton.load(at, mask=mask, other=None if mask is None else 0)


def store(ref: Any, rows: Rows, block: Array, *part: int) -> None:
    """Write rows of an array [l, k] or [l], or of one part of [l, 3, k]."""
    at, mask = _at(ref, rows, part)
    triton.store(at, block.astype(ref.dtype), mask=mask)


# Walks: what is called on a full block holds no mask ----------------------------------------------


def for_own_rows(work: Callable[[Rows], None], length: int, blocks: Blocks) -> None:
    """Call `work` on the rows of this program."""
    i, full = pl.program_id(0), length // blocks.own
    tail = _tail(length, blocks.own, blocks.own_tail)
    if tail is None:
        work(_full(i, blocks.own))
    elif full == 0:
        work(tail)
    else:
        pl.when(i < full)(lambda: work(_full(i, blocks.own)))
        pl.when(i == full)(lambda: work(tail))


def _loop(start: Any, stop: Any, block: int, step: Step, carry: Any) -> Any:
    """`step` of the full blocks from `start` until `stop`."""
    if isinstance(stop, int) and stop == 0:
        return carry
    return lax.fori_loop(start, stop, lambda j, carry: step(_full(j, block), carry), carry)


def walk_keys(step: Step, carry: Any, own: Rows, length: int, causal: bool, blocks: Blocks) -> Any:
    """`step` of every block of keys that the queries `own` see; it masks those given with True."""
    if causal:
        carry = _loop(0, own.number, blocks.own, step, carry)
        return step(own, carry, True)
    carry = _loop(0, length // blocks.other, blocks.other, step, carry)
    tail = _tail(length, blocks.other)
    return step(tail, carry, tail.end is not None) if tail else carry


def walk_queries(
    step: Step, carry: Any, own: Rows, length: int, causal: bool, blocks: Blocks
) -> Any:
    """`step` of every block of queries that see the keys `own`; it masks those given with True.

    A query behind the end needs no mask: with its zeros it adds zeros to the gradients.
    """
    start, block = 0, blocks.other
    if causal:
        carry = step(own, carry, True)
        if isinstance(own.number, int):  # the tail
            return carry
        start, block = own.number + 1, blocks.own
    carry = _loop(start, length // block, block, step, carry)
    tail = _tail(length, block)
    return step(tail, carry) if tail else carry


# What a program sees of an array: one head of one sequence ----------------------------------------


class Given(NamedTuple):
    """An array, or the shape of a result, and the part of it that a program sees."""

    array: Any
    spec: pl.BlockSpec


def _rows(length: int) -> int:
    """Of a spec: a tail may reach behind the sequence's end, where it is masked."""
    return pl.cdiv(length, MOST_ROWS) * MOST_ROWS


def see_part(qkv: Any, part: int) -> Given:
    """A head's queries (0), keys (1) or values (2) [l, k] of [n, l, 3, a, k]."""
    _, l, _, _, k = qkv.shape
    block = (None, _rows(l), None, None, k)
    return Given(qkv, pl.BlockSpec(block, lambda i, head, row: (row, 0, part, head, 0)))


def see_parts(qkv: Any) -> Given:
    """All three [l, 3, k]."""
    _, l, _, _, k = qkv.shape
    block = (None, _rows(l), 3, None, k)
    return Given(qkv, pl.BlockSpec(block, lambda i, head, row: (row, 0, 0, head, 0)))


def see_head(array: Any) -> Given:
    """A head [l, k] of [n, l, a, k]."""
    _, l, _, k = array.shape
    block = (None, _rows(l), None, k)
    return Given(array, pl.BlockSpec(block, lambda i, head, row: (row, 0, head, 0)))


def see_sums(array: Any) -> Given:
    """A head's rows [l] of [n, a, l]."""
    block = (None, None, _rows(array.shape[-1]))
    return Given(array, pl.BlockSpec(block, lambda i, head, row: (row, head, 0)))


def see_partial_sums(array: Any) -> Given:
    """A program's sums [k] of [n, programs, a, k], or [2, k] of [n, programs, 2, a, k]."""
    *_, k = array.shape
    if len(array.shape) == 4:
        spec = pl.BlockSpec((None, None, None, k), lambda i, head, row: (row, i, head, 0))
    else:
        spec = pl.BlockSpec((None, None, 2, None, k), lambda i, head, row: (row, i, 0, head, 0))
    return Given(array, spec)
