"""Modules of a model given other classes: the same attributes and names, other arithmetic."""

from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxclip.models.encoders import Encoders

Model = TypeVar("Model", bound=Encoders)  # a `Clip` or a `SingleTower`


def modules_of(module: Any) -> Iterator[Any]:
    """The module and all modules below it; quicker than `nnx.iter_modules`."""
    yield module
    for value in list(module if isinstance(module, nnx.List) else vars(module).values()):
        if isinstance(value, nnx.Module | nnx.List):
            yield from modules_of(value)


def become(module: Any, other: type | None) -> None:
    """Give a module another class: the same attributes, other methods. None leaves it as it is."""
    if other is not None:
        object.__setattr__(module, "__class__", other)  # NNX would record an attribute


def unstack(stacked: Any) -> list[Any]:
    """One module per layer of a stack, of arrays or of shapes."""
    leaves, structure = jax.tree.flatten(stacked)

    def layer(leaf: Any, i: int) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf[i]

    return [
        jax.tree.unflatten(structure, [layer(leaf, i) for leaf in leaves])
        for i in range(leaves[0].shape[0])
    ]
