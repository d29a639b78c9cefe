"""safetensors files of other programs, as views of the mapped file, every byte accounted for.

Ours, because the library's reader for NumPy copies each array, and whether it refuses a header with
doubled names or gaps depends on its version. Format: 8 bytes length, JSON header, numbers.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import DTYPES, Flat

from . import strict_json
from .inert import is_int, refuse, short_repr
from .mapped import Bytes, parse_mapped

LARGEST_HEADER = 16 << 20  # bytes; 65,536 entries of 250 bytes
MOST_ENTRIES = 65_536
LONGEST_NAME = 512
HIGHEST_RANK = 8
LARGEST_ARRAY = 1 << 40  # bytes, also of an empty one by its other sizes


def starts_like_one(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` can only be meant as one."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _whole(values: Any, length: int | None = None) -> bool:
    return (
        type(values) is list
        and all(is_int(value) and value >= 0 for value in values)
        and (length is None or len(values) == length)
    )


def _entry(name: str, entry: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """(first byte, byte after the last, number format, shape) of one array."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        refuse(f"expected a short printable name of a tensor, got {short_repr(name)}")
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(
            f"{short_repr(name)} is described by something else than dtype, shape and data_offsets"
        )
    if type(entry["dtype"]) is not str or entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{short_repr(name)}: expected a dtype of {', '.join(DTYPES)}, got "
            f"{short_repr(entry['dtype'])}; convert it with the program that wrote it"
        )
    if not _whole(entry["data_offsets"], 2) or not _whole(entry["shape"]):
        refuse(f"{short_repr(name)} has a shape or offsets that are no whole numbers")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if len(shape) > HIGHEST_RANK:
        refuse(f"{short_repr(name)} has {len(shape)} sizes")
    if math.prod(size or 1 for size in shape) * dtype.itemsize > LARGEST_ARRAY:
        refuse(f"{short_repr(name)} claims a huge size")
    if end - begin != math.prod(shape) * dtype.itemsize:
        refuse(f"{short_repr(name)} has {end - begin} bytes for a {dtype} array {list(shape)}")
    return begin, end, dtype, shape


def _metadata(value: Any) -> dict[str, str]:
    if type(value) is not dict or any(type(text) is not str for text in value.values()):
        refuse("__metadata__ holds something else than texts")
    return value


def parse(data: Bytes) -> tuple[Flat, dict[str, str]]:
    """The result of `read` for bytes in memory; the arrays are views of them."""
    view = memoryview(data).toreadonly()
    length = int.from_bytes(view[:8], "little")
    if len(view) < 10 or length < 2 or length > min(LARGEST_HEADER, len(view) - 8):
        refuse(f"the header claims {length} bytes of {len(view)}, or more than {LARGEST_HEADER}")
    if view[8] != ord("{"):
        refuse("the header does not start with a brace")
    header = strict_json.parse(bytes(view[8 : 8 + length]))
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MOST_ENTRIES:
        refuse(f"expected at most {MOST_ENTRIES} tensors, got {len(header)}")
    found = {name: _entry(name, entry) for name, entry in header.items()}
    arrays, at = {}, 0
    for name, (begin, end, dtype, shape) in sorted(found.items(), key=lambda item: item[1][:2]):
        if begin != at:
            refuse(f"the bytes of {short_repr(name)} overlap others, or leave a hole before them")
        at = end
        if 8 + length + end > len(view):
            refuse(f"the bytes of {short_repr(name)} reach past the end of the file")
        arrays[name] = np.ndarray(shape, dtype, view, 8 + length + begin)
        if dtype == np.bool_ and arrays[name].size and arrays[name].view(np.uint8).max() > 1:
            refuse(f"{short_repr(name)} of truth values holds something else")
    if 8 + length + at != len(view):
        refuse(f"the file goes on for {len(view) - 8 - length - at} bytes after its last tensor")
    return arrays, metadata


def read(path: Path) -> tuple[Flat, dict[str, str]]:
    """({name: array}, metadata) of a safetensors file; the arrays are read-only views of it.

    Copy them (`numpy.array`) before the file is changed: reading from a file that was meanwhile cut
    off ends the process. bfloat16 is that of ml_dtypes.
    ValueError, in one line, unless the header describes each byte of the file once.
    Source: the format's own description in the safetensors project.
    """
    return parse_mapped(path, parse)
