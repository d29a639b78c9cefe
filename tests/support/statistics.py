"""A model's parameters and its running statistics apart, in trees that keep the model's shape."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxclip.models.parameters import named_leaves, path_name

Tree = TypeVar("Tree")
Statistics = dict[str, jax.Array]  # running mean and var of every BatchNorm, by dotted path


def params_only(model: Tree) -> Tree:
    """The same tree with None for running statistics: what gradients and the optimiser are for.

    A Vision Transformer has none and is returned whole.
    """

    def emptied(variable: Any) -> Any:
        statistic = isinstance(variable, nnx.BatchStat)
        return jax.tree.map(lambda _: None, variable) if statistic else variable

    return jax.tree.map(emptied, model, is_leaf=lambda node: isinstance(node, nnx.Variable))


def running_statistics(model: Any) -> Statistics:
    """{dotted path: running mean or variance}; empty for a Vision Transformer."""
    parameters = named_leaves(params_only(model))
    return {path: leaf for path, leaf in named_leaves(model).items() if path not in parameters}


def with_statistics(model: Tree, statistics: Mapping[str, jax.Array]) -> Tree:
    """The model, whole or `params_only`, with these running statistics; itself unchanged."""

    def chosen(path: tuple[Any, ...], leaf: Any) -> Any:
        return statistics.get(path_name(path), leaf)

    return jax.tree_util.tree_map_with_path(chosen, model, is_leaf=lambda leaf: leaf is None)
