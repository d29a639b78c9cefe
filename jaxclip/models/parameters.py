"""A model's parameters by official name: tree <-> flat arrays, shapes alone, running statistics."""

import math
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxclip import checkpoint, shapes
from jaxclip.config import RELEASED, ClipConfig, ResNetConfig, TowerConfig, name_sides

Array = jax.Array
Tree = TypeVar("Tree")
Put = Callable[[np.ndarray, Any], np.ndarray]  # (array, leaf with shape and dtype) -> its value
Tower = Literal["image", "text"]
TOWERS: dict[Tower, str] = {"image": "visual", "text": "text"}  # attribute of `Clip`, path prefix
PRODUCTS = ("kernel", "proj", "text_projection")  # how the names end of what enters a product
_LAYER = re.compile(r"\bresblocks\.\d+\.")


# Names --------------------------------------------------------------------------------------------


def _part(key: Any) -> str:
    found = [getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)]
    return str(found[0] if found else key)


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted official name of a leaf, from its path in a tree."""
    parts = [_part(key) for key in path]
    return ".".join(part.lstrip(".") for part in parts if part not in (".value", "value"))


def named_leaves(tree: Any) -> dict[str, Any]:
    """{dotted path: leaf} of a model, or of any tree of its shape (gradients, moments)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def describe(model: Any) -> str:
    """A model's architecture, number of parameters and dtype, in one line."""
    config = model.config
    towers = {tower: getattr(model, at) for tower, at in TOWERS.items() if hasattr(model, at)}
    dtype = np.dtype(next(iter(towers.values())).numerics.dtype).name
    name = _architecture(config)
    if isinstance(config, ClipConfig) and len(towers) < len(TOWERS):
        name = f"{' and '.join(towers)} tower of {name}"
    return f"{name}, {count_parameters(model):,} parameters, {dtype}"


def _architecture(config: ClipConfig | TowerConfig) -> str:
    named = [name for name, released in RELEASED.items() if released == config]
    if named:
        return named[0]
    if config.vision is None:
        assert config.text is not None
        return f"text tower of width {config.text.width}"
    kind = "ResNet" if isinstance(config.vision, ResNetConfig) else "ViT"
    name = f"{kind} at {name_sides(config.vision.image_size)} pixels"
    return name if isinstance(config, ClipConfig) else f"image tower of {name}"


def count_parameters(model: Any) -> int:
    """How many numbers a `Clip` learns, without running statistics, of the towers that it has.

    From its config: `hardware` pads kernels.
    """
    missing = tuple(f"{at}." for at in TOWERS.values() if not hasattr(model, at))
    return sum(
        math.prod(shape)
        for name, shape in shapes.parameters(model.config).items()
        if not name.startswith(missing) and not name.endswith((".mean", ".var"))
    )


# Shapes alone -------------------------------------------------------------------------------------


def copy_tree(tree: Tree) -> Tree:
    """The same leaves in modules of their own, whose attributes can be changed."""
    return jax.tree.map(lambda leaf: leaf, tree)


def without_tower(model: Tree, tower: Tower) -> Tree:
    """The model without that tower, whose attribute is missing; itself unchanged."""
    if tower not in TOWERS:
        raise ValueError(f"tower: expected {' or '.join(TOWERS)}, got {tower!r}")
    rest = copy_tree(model)
    delattr(rest, TOWERS[tower])
    return rest


def with_kernels(model: Tree, dtype: Any) -> Tree:
    """An abstract model whose kernels are kept in `dtype`: converted once, not in every call.

    The rest stays float32: biases, norms, embeddings, temperature.
    """

    def kept(path: tuple[Any, ...], leaf: Any) -> Any:
        kernel = path_name(path).endswith(PRODUCTS)
        return jax.ShapeDtypeStruct(leaf.shape, dtype) if kernel else leaf

    return jax.tree_util.tree_map_with_path(kept, model)


# To and from flat arrays --------------------------------------------------------------------------


def to_flat(tree: Any) -> checkpoint.Flat:
    """A model's (or a gradient's) arrays by official name, one entry a layer, as NumPy.

    ValueError for a model that `hardware` gave arrays of other shapes.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    flat = checkpoint.unstack(arrays)
    official = shapes.parameters(tree.config) if hasattr(tree, "config") else {}
    for name, array in flat.items():
        if array.shape != official.get(name, array.shape):
            raise ValueError(
                f"{name}: expected shape {official[name]}, got {array.shape}; give the model as it "
                "was before hardware.arrange, or hardware.plain(model)"
            )
    return flat


def _expected(like: Any) -> dict[str, tuple[int, ...]]:
    """{official name, one entry a layer: shape} of what a model of that config needs of `flat`."""
    held = {_LAYER.sub("resblocks.", name) for name in named_leaves(like)}
    official = shapes.parameters(like.config)
    return {name: s for name, s in official.items() if _LAYER.sub("resblocks.", name) in held}


def copy_array(array: np.ndarray, leaf: Any) -> np.ndarray:
    """The array in a leaf's number format; ValueError for numbers that are not finite in it."""
    with np.errstate(over="ignore"):  # refused below
        copied = array.astype(leaf.dtype)
    if not checkpoint.is_finite(copied):
        raise ValueError(f"{checkpoint.NOT_FINITE} in {leaf.dtype}; get the file again")
    return copied


def from_flat(flat: Mapping[str, np.ndarray], like: Tree, put: Put = copy_array) -> Tree:
    """A tree like `like` (a model, or an abstract one), filled from arrays by official name.

    Args:
      flat: one entry a layer.
      like: a `Clip`, whose config says which names and shapes are expected.
      put: makes the value of a leaf (`hardware.memory.put` is faster).

    Raises:
      ValueError: lists the names that are missing, unknown or of the wrong shape, or names an array
        whose numbers are not finite.
    """
    checkpoint.check(_expected(like), flat)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = {path_name(path): leaf for path, leaf in leaves}
    arrays = checkpoint.stack(flat) if checkpoint.is_stacked(expected) else flat

    def value(name: str) -> np.ndarray:
        try:
            return put(arrays[name], expected[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's copies run beside each other
        values = pool.map(value, expected)
        filled = [jax.device_put(each) for each in values]  # here: jax_enable_x64 is a thread's own
    return jax.tree_util.tree_unflatten(structure, filled)


# Parameters and running statistics ----------------------------------------------------------------


def split_statistics(model: Any) -> tuple[Any, Any, Any]:
    """(graphdef, params, stats) of a model; `nnx.merge` puts the three together again."""
    return nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[return-value]


def new_statistics(model: Any, statistics: Mapping[str, Array]) -> Any:
    """Running statistics by dotted path as the third part of `split_statistics(model)`."""

    def chosen(path: tuple[Any, ...], leaf: Any) -> Any:
        return statistics.get(path_name(path), leaf)

    return jax.tree_util.tree_map_with_path(chosen, split_statistics(model)[2])
