"""`.npz` files, as views of the mapped file: NumPy's own reader copies, and may unpickle.

Format: a zip of `.npy` records, each a header that `numpy.lib.format` describes and the numbers.
"""

import ast
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxclip.checkpoint import DTYPES, Flat

from .inert import is_int, refuse, short_repr
from .mapped import Bytes, parse_mapped
from .zip_records import Record, records

MAGIC = b"\x93NUMPY"
LARGEST_HEADER = 4096
MOST_ENTRIES = 65_536
LONGEST_NAME = 512
HIGHEST_RANK = 8
# Of `descr`; a program without bfloat16 in its NumPy writes it as two bytes of anything.
FORMATS = {dtype.str: dtype for dtype in DTYPES.values() if dtype.str != "|V2"}
FORMATS |= {"<V2": np.dtype(ml_dtypes.bfloat16), "|V2": np.dtype(ml_dtypes.bfloat16)}


def _header(name: str, data: memoryview, record: Record) -> tuple[dict[str, Any], int]:
    """(header of an .npy, first byte of its numbers)."""
    head = bytes(data[record.start : record.start + min(record.size, 12)])
    if len(head) < 12 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3):
        refuse(f"{name}: expected an .npy record, got {short_repr(head[:8])}")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = 8 + width + length
    if length > LARGEST_HEADER or start > record.size:
        refuse(f"{name}: its header claims {length} bytes")
    text = bytes(data[record.start + 8 + width : record.start + start])
    try:  # a dict of a text, a truth value and whole numbers: at most 4096 bytes
        header = ast.literal_eval(text.decode("latin1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        refuse(f"{name}: its header is no description of an array")
    if type(header) is not dict or header.keys() != {"descr", "fortran_order", "shape"}:
        refuse(f"{name}: its header is no description of an array")
    return header, record.start + start


def _array(name: str, data: memoryview, record: Record) -> np.ndarray:
    header, start = _header(name, data, record)
    descr, shape, order = header["descr"], header["shape"], header["fortran_order"]
    if type(descr) is not str or descr not in FORMATS:
        refuse(f"{name}: expected one of {', '.join(FORMATS)}, got {short_repr(descr)}")
    whole = type(shape) is tuple and all(is_int(size) and size >= 0 for size in shape)
    if not whole or len(shape) > HIGHEST_RANK or type(order) is not bool:
        refuse(f"{name}: expected a shape of whole numbers, got {short_repr(str(shape))}")
    dtype = FORMATS[descr]
    if start + math.prod(shape) * dtype.itemsize != record.start + record.size:
        refuse(f"{name} has another number of bytes than its shape {list(shape)} says")
    return np.ndarray(shape, dtype, data, start, order="F" if order else "C")


def parse(data: Bytes) -> Flat:
    """The result of `read` for bytes in memory; the arrays are views of them."""
    view = memoryview(data).toreadonly()
    members = records(view, has_folder=False)
    if len(members) > MOST_ENTRIES:
        refuse(f"expected at most {MOST_ENTRIES} arrays, got {len(members)}")
    arrays: Flat = {}
    for name, record in members.items():
        plain = name.removesuffix(".npy")
        if not 0 < len(plain) <= LONGEST_NAME or not plain.isprintable():
            refuse(f"expected a short printable name of an array, got {short_repr(name)}")
        if not record.is_stored:
            raise ValueError(
                f"expected {short_repr(name)} stored in the .npz, got it compressed; write it with "
                "numpy.savez"
            )
        arrays[plain] = _array(plain, view, record)
    return arrays


def read(path: Path) -> Flat:
    """{name: array} of an .npz that numpy.savez wrote; read-only views of the mapped file.

    ValueError, in one line, unless every byte of the file belongs to one array; nothing is
    unpickled.
    """
    return parse_mapped(path, parse)
