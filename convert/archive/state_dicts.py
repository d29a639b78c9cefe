"""From the tree of a pickle to named arrays: each tensor a view of bytes that exist in the file.

The tree of a TorchScript archive becomes dotted attribute paths; a dict is a state dict, or holds
one, as training programs keep it.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.checkpoint import Flat
from jaxclip.convert.layouts import prefixes

from .inert import Object, Storage, Tensor, refuse, short_repr

WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training programs put the weights
MOST_ENTRIES = 65_536
DEEPEST = 64  # modules inside one another
LONGEST_NAME = 512
HIGHEST_RANK = 8
MOST_SHARING = 4  # times the file's size that all tensors together may have, as views of the same

# A tensor is a view of bytes that exist in the file -----------------------------------------------


def _array(tensor: Tensor, data: memoryview, start: int) -> np.ndarray:
    """The tensor as a read-only view of `data`, where its storage starts at byte `start`.

    Sizes, strides and offset are Python integers here: they cannot overflow.
    """
    (dtype, key, held), offset, shape, strides = tensor
    if len(shape) != len(strides) or len(shape) > HIGHEST_RANK:
        refuse(f"a tensor of storage {key} has {len(shape)} sizes and {len(strides)} strides")
    if min(offset, *shape, *strides, 0) < 0:
        refuse(f"a tensor of storage {key} has a negative offset, size or stride")
    if 0 in shape:
        if offset > held or math.prod(size or 1 for size in shape) > 1 << 31:
            refuse(f"an empty tensor of storage {key} lies outside it or claims a huge size")
        empty = np.empty(shape, dtype)
        empty.flags.writeable = False
        return empty
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > held or last >= held:
        refuse(f"a tensor of storage {key} reaches past its {held} numbers")
    # Where the size is 1 the stride says nothing and may be anything.
    steps = [stride if size > 1 else 1 for size, stride in zip(shape, strides, strict=True)]
    steps = [dtype.itemsize * step for step in steps]
    array = np.ndarray(shape, dtype, data, start + offset * dtype.itemsize, steps)
    if dtype == np.bool_ and array.view(np.uint8).max() > 1:
        refuse(f"storage {key} of truth values holds something else")
    return array


# From the tree of a pickle to flat names ---------------------------------------------------------


def _collect_tensors(root: Object) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive under their dotted attribute paths.

    Attributes that are not tensors (`training`, sizes, lists) are no part of a state dict. Which
    tensors are parameters is known to the archive's code alone, so all of them are returned.
    """
    found: dict[str, Tensor] = {}
    waiting, seen = [("", 0, root)], 0
    while waiting:
        prefix, depth, module = waiting.pop()
        attributes = module.attributes or {}
        seen += len(attributes) + 1
        # One object under several names is allowed; a cycle or a cascade of them is not.
        if seen > MOST_ENTRIES or depth > DEEPEST:
            refuse(
                f"expected at most {MOST_ENTRIES} attributes, got more, or a module inside itself"
            )
        children = []
        for name, value in attributes.items():
            if type(name) is not str or "." in name:
                refuse(f"expected a name without a dot for an attribute, got {short_repr(name)}")
            path = f"{prefix}{name}"[: LONGEST_NAME + 1]
            if type(value) is Tensor:
                found[path] = value
            elif type(value) is Object:
                children.append((f"{path}.", depth + 1, value))
        waiting += reversed(children)
    return found


def _find_state_dict(root: Any) -> dict[Any, Any]:
    """The dict that holds the tensors: the pickle's own, or the one that a training program kept.

    Other entries beside `state_dict`, such as `epoch` and `optimizer`, are left out.
    """
    if type(root) is Tensor:
        raise ValueError("expected a state dict, got a single tensor; save model.state_dict()")
    if type(root) not in (dict, OrderedDict):
        raise ValueError(f"expected a state dict, got {short_repr(root)}; save model.state_dict()")
    if any(type(value) is Tensor for value in root.values()):
        return root
    inner = [name for name in WRAPPERS if type(root.get(name)) in (dict, OrderedDict)]
    if len(inner) != 1:
        names = ", ".join(short_repr(name) for name in list(root)[:6])
        raise ValueError(
            f"expected a state dict, alone or under exactly one of {', '.join(WRAPPERS)}, got "
            f"{len(root)} entries without a tensor ({names})"
        )
    return root[inner[0]]


def _tensors(weights: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; numbers, texts and None beside them are left out."""
    for name, value in weights.items():
        if type(value) not in (Tensor, int, float, bool, str, type(None)):
            refuse(f"{short_repr(name)}: expected a tensor, got {short_repr(value)}")
    return {name: value for name, value in weights.items() if type(value) is Tensor}


def _strip_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under printable names, without the prefixes that all of them have."""
    if not tensors or len(tensors) > MOST_ENTRIES:
        raise ValueError(f"expected 1 to {MOST_ENTRIES} tensors, got {len(tensors)}")
    for name in tensors:
        if type(name) is not str or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            refuse(f"expected a short printable name of a tensor, got {short_repr(name)}")
    return prefixes.strip(tensors)


def views(root: Any, data: memoryview, start: Callable[[Storage], int]) -> Flat:
    """Every tensor under the tree of a pickle as a view; `start` finds and checks a storage."""
    tensors = _collect_tensors(root) if type(root) is Object else _tensors(_find_state_dict(root))
    arrays = {
        name: _array(tensor, data, start(tensor.storage))
        for name, tensor in _strip_names(tensors).items()
    }
    size = sum(array.nbytes for array in arrays.values())
    if size > MOST_SHARING * len(data):
        refuse(f"tensors of {size} bytes lie over each other in a file of {len(data)}")
    return arrays
