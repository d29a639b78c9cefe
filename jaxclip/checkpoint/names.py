"""Parameters by name in their three forms: flat, nested, stacked."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

Flat: TypeAlias = dict[str, np.ndarray]
_LAYER = re.compile(r"^(.*\bresblocks)\.(\d+)\.(.*)$")
_STACK = re.compile(r"^(.*\bresblocks)\.(?!\d)(.*)$")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, leaf = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a.b": x}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def stack(flat: Mapping[str, np.ndarray]) -> Flat:
    """One entry a layer -> one entry a stack, in the order of the layers' numbers.

    ValueError when the layers of a stack are not numbered 0, 1, 2, ... without a gap.
    """
    stacked: Flat = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for path, value in flat.items():
        match = _LAYER.match(path)
        if match is None:
            stacked[path] = value
        else:
            layers.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = value
    for path, by_number in layers.items():
        if sorted(by_number) != list(range(len(by_number))):
            raise ValueError(
                f"{path}: expected layers 0 to {len(by_number) - 1}, got {sorted(by_number)[:40]}; "
                "the file is not a whole checkpoint"
            )
        shapes = {layer.shape for layer in by_number.values()}
        if len(shapes) > 1:
            raise ValueError(f"{path}: expected layers of one shape, got {sorted(shapes)[:8]}")
        stacked[path] = np.stack([by_number[i] for i in range(len(by_number))])
    return stacked


def is_stacked(names: Iterable[str]) -> bool:
    """Whether any of the paths stands for all layers of a stack at once."""
    return any(_STACK.match(name) for name in names)


def unstack(stacked: Mapping[str, np.ndarray]) -> Flat:
    """One entry a stack -> one entry a layer: the inverse of `stack`."""
    flat: Flat = {}
    for path, value in stacked.items():
        match = _STACK.match(path)
        if match is None:
            flat[path] = value
        else:
            flat.update({f"{match[1]}.{i}.{match[2]}": layer for i, layer in enumerate(value)})
    return flat
