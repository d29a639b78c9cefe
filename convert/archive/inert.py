"""Descriptions of what the pickles of PyTorch's files name: nothing that they name is ever run.

A class or function is its name, a tensor its position in the file, a module its attributes.
"""

import re
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
_CALLABLE = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER}
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


def check_name(found: Global, is_archive: bool) -> None:
    """ValueError for a name that PyTorch's files do not mention; it is never looked up."""
    # With the dot: `__torch__os` is no class of an archive.
    is_class = found.module == "__torch__" or found.module.startswith("__torch__.")
    if is_archive and (is_class or found in LISTS):
        return
    if found not in _CALLABLE and found not in STORAGES:
        raise ValueError(
            "expected a pickle of tensors and plain containers, got the name "
            f"{short_repr(f'{found.module}.{found.name}')} in it; nothing was executed; if you "
            "trust the file, load it with torch and save model.state_dict()"
        )


def describe_storage(reference: Any) -> Storage:
    """The storage that a pickle's reference to numbers elsewhere in the file says."""
    if type(reference) is not tuple or len(reference) not in (5, 6):
        refuse(f"expected a reference to a storage, got {short_repr(reference)}")
    what, kind, key, device, size = reference[:5]
    if what != "storage" or type(kind) is not Global or kind not in STORAGES:
        refuse("a pickle refers to something that is not a storage of numbers")
    if type(key) is not str or re.fullmatch(r"[0-9]{1,20}", key) is None:
        refuse(f"expected at most 20 digits as name of a storage, got {short_repr(key)}")
    if type(device) is not str or not is_int(size) or size < 0:
        refuse(f"storage {key} has {short_repr(size)} numbers")
    if reference[5:] not in ((), (None,)):
        refuse(f"storage {key} is a view of another one")
    return Storage(STORAGES[kind], key, size)


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


def describe_call(function: Any, arguments: Any) -> Any:
    """The description in place of one of the few calls that PyTorch writes; nothing is called."""
    if type(function) is not Global or type(arguments) is not tuple:
        refuse(f"a pickle calls {short_repr(function)}")
    if function == ORDERED_DICT and arguments == ():
        return OrderedDict()
    if function == REBUILD_TENSOR:
        return rebuild_tensor(arguments)
    if function == REBUILD_PARAMETER:
        return rebuild_parameter(arguments)
    if function in LISTS:
        return None
    refuse(f"a pickle calls {short_repr(function.name)} with {len(arguments)} arguments")
