"""Descriptions of what the pickles of PyTorch's files name: nothing that they name is ever run.

A class or function is its name, a tensor its position in the file, a module its attributes.
"""

from collections import OrderedDict
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from jaxclip.config import short_repr as short_repr

DTYPES = {  # little-endian, as the file must be
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Global(NamedTuple):
    """A name that a pickle mentions: a class or a function that is never looked up."""

    module: str
    name: str


class Storage(NamedTuple):
    """A run of numbers elsewhere in the file."""

    dtype: np.dtype
    key: str  # decimal digits
    size: int  # numbers, not bytes; as the pickle claims it


class Tensor(NamedTuple):
    """A view of a storage, in numbers and not in bytes; not yet checked against the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Object:
    """An instance of a class of a TorchScript archive: its attributes and nothing else."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] | None = None


ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
STORAGES = {Global("torch", name): dtype for name, dtype in DTYPES.items()}
# Attributes such as List[int] in an archive: no part of a state dict, so not kept.
LISTS = {
    Global("torch.jit._pickle", name)
    for name in (
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
        "restore_type_tag",
    )
}


def refuse(what: str) -> NoReturn:
    """ValueError for content that PyTorch does not write."""
    raise ValueError(f"{what}; the file is damaged or hostile, get it again from its source")


def is_int(value: object) -> bool:
    return type(value) is int  # not isinstance: True is an int as well


def _are_ints(value: object) -> bool:
    return type(value) is tuple and all(type(item) is int for item in value)


def rebuild_tensor(arguments: tuple[Any, ...]) -> Tensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    if len(arguments) != 6 or type(arguments[0]) is not Storage:
        # A seventh argument says that the numbers stand for their negatives or conjugates.
        refuse(f"expected a tensor of a storage and five values, got {len(arguments)} values")
    storage, offset, shape, strides, requires_grad, hooks = arguments
    if not (is_int(offset) and _are_ints(shape) and _are_ints(strides)):
        refuse(f"offset, shape or strides of a tensor of storage {storage.key} are no integers")
    if type(requires_grad) is not bool or type(hooks) is not OrderedDict or hooks:
        refuse(f"a tensor of storage {storage.key} has hooks")
    return Tensor(storage, offset, shape, strides)


def rebuild_parameter(arguments: tuple[Any, ...]) -> Tensor:
    """torch._utils._rebuild_parameter(data, requires_grad, hooks): the tensor itself."""
    if len(arguments) != 3 or type(arguments[0]) is not Tensor:
        refuse("expected a parameter made of a tensor, got another value")
    tensor, requires_grad, hooks = arguments
    if type(requires_grad) is not bool or type(hooks) is not OrderedDict or hooks:
        refuse(f"a parameter of storage {tensor.storage.key} has hooks")
    return tensor
