"""The whole state of a run in one file: weights, both Adam moments, step. Written whole or not."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import checkpoint

FORMAT = "jaxclip-state-1"


class State(NamedTuple):
    """`step` updates have been made; the next batch and key follow from it and the seed."""

    model: Any
    opt_state: Any
    step: int


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def save(path: Path, state: State) -> None:
    """Write the state; the file that was there is replaced only when the new one is complete."""
    arrays = {
        name: np.asarray(leaf) for name, leaf in _named((state.model, state.opt_state)).items()
    }
    checkpoint.save_arrays(path, arrays, {"format": FORMAT, "step": str(state.step)})


def load(path: Path, like: tuple[Any, Any]) -> State:
    """The state in `path`; `like` is a model and optimiser state of shapes.

    ValueError when the file is damaged, of another version or belongs to another config.
    """
    arrays, metadata = checkpoint.load_arrays(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {metadata.get('format')!r} came, {FORMAT!r} is what this version "
            "resumes from; start a new run"
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(place): leaf for place, leaf in leaves}
    checkpoint.check({name: leaf.shape for name, leaf in expected.items()}, arrays)
    filled = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in expected.items()]
    model, opt_state = jax.tree_util.tree_unflatten(structure, filled)
    return State(model, opt_state, int(metadata["step"]))
