"""Host memory for parameters: converted quickly, and adopted by jax on a CPU without a copy."""

import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxclip import checkpoint

BLOCK = 1 << 19  # numbers converted at once: they fit the cache
STRIP = 32  # columns
REBIAS = np.float32(2.0**112)


def _in_order(array: np.ndarray) -> np.ndarray:
    """The array in C order; a transposed one is copied in strips that fit the cache."""
    if array.flags.c_contiguous:
        return array
    ordered = np.empty(array.shape, array.dtype)
    for at in range(0, array.shape[-1], STRIP):
        ordered[..., at : at + STRIP] = array[..., at : at + STRIP]
    return ordered


def _blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis of about `BLOCK` numbers each."""
    rows = max(1, BLOCK // max(1, array[:1].size))
    return (slice(at, at + rows) for at in range(0, len(array), rows))


def _widen(halves: np.ndarray, own: np.ndarray) -> bool:
    """Write float16 into float32; returns whether all numbers are finite.

    Bit-identical to NumPy and four times as fast: shift the bits as integers, then multiply by
    2^112 to rebias the exponent. NumPy converts blocks with inf or nan, and everything in threads
    that flush subnormal numbers to zero.
    """
    flushes = np.float32(1e-40) * REBIAS == 0
    halves, own = np.atleast_1d(halves, own)
    finite = True
    for block in _blocks(halves):
        half, wide = _in_order(halves[block]), own[block]
        holds = (half.view(np.uint16) & 0x7C00).max() < 0x7C00
        finite = finite and bool(holds)
        if flushes or not holds:
            np.copyto(wide, half)
            continue
        bits = wide.view(np.int32)
        np.copyto(bits, half.view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, ~0x70000000, out=bits)  # three copies of the sign
        np.multiply(wide, REBIAS, out=wide)
    return finite


def _convert(array: np.ndarray, own: np.ndarray) -> bool:
    """Write an array into one of its shape; returns whether all numbers are finite there."""
    if array.dtype == np.float16 and own.dtype == np.float32:
        return _widen(array, own)
    array, own = np.atleast_1d(array, own)
    narrower = own if own.dtype.itemsize < array.dtype.itemsize else array
    # block by block, so that the check reads from the cache; NumPy walks a transposed array best
    blocks = _blocks(array) if array.flags.c_contiguous else iter([slice(None)])
    finite = True
    for block in blocks:
        with np.errstate(over="ignore"):  # is_finite reports it
            np.copyto(own[block], array[block], casting="unsafe")
        finite = finite and checkpoint.is_finite(narrower[block])
    return finite


def put(array: np.ndarray, leaf: Any) -> np.ndarray:
    """The array in a leaf's shape and number format; zeros where the leaf has more columns.

    Page-aligned anonymous memory, which jax on a CPU adopts without a copy. Not np.empty: its huge
    pages are three times as slow to fault in on a virtual machine with free-page reporting. NumPy
    converts, as jax would compile a program per shape. A mapped file's pages are released.

    ValueError for numbers that are not finite in that format.
    """
    dtype, count = np.dtype(leaf.dtype), math.prod(leaf.shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize), access=mmap.ACCESS_COPY)
    whole = np.frombuffer(memory, dtype, count).reshape(leaf.shape)
    own = whole
    if leaf.shape != array.shape:
        columns = array.shape[-1]
        own, whole[..., columns:] = whole[..., :columns], 0
    if not _convert(array, own):
        raise ValueError(f"{checkpoint.NOT_FINITE} in {dtype}; get the file again")
    release(array)
    return whole


def release(array: np.ndarray) -> None:
    """Release the pages of a mapped file, where the array is a view of one.

    They are read from the file again when they are needed.
    """
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapped, mmap.mmap) or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = np.lib.array_utils.byte_bounds(array)[0] - np.frombuffer(mapped, np.uint8).ctypes.data
    first = start - start % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, start - first + array.nbytes)
