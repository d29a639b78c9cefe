"""What a model takes: arrays checked at the boundary, and split over any mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxclip.config import TextConfig, short_repr
from jaxclip.tokenizer import check_vocabulary

Array = jax.Array


def check_images(images: Any, sides: tuple[int, int]) -> Array:
    """Images [n, *sides, 3] as a jax array; ValueError for another shape or for integers."""
    wanted = f"images: expected floating-point pixels [n, {sides[0]}, {sides[1]}, 3], got"
    todo = "use np.stack([preprocess(image), ...]) with the preprocess that jaxclip.load returns"
    if not isinstance(images, np.ndarray | Array):
        raise ValueError(f"{wanted} {short_repr(images)}; {todo}")
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim != 4 or images.shape[1:] != (*sides, 3) or not floating:
        raise ValueError(f"{wanted} {images.dtype} {images.shape}; {todo}")
    return jnp.asarray(images)


def check_tokens(tokens: Any, config: TextConfig) -> Array:
    """Tokens [n, l] as a jax array, cut to the context length.

    ValueError for another shape or type, an id outside of the vocabulary or a text that is too
    long. Inside `jax.jit`, where no value is known, such a row becomes one whose features are NaN.
    """
    length, todo = config.context_length, "use model.tokenize(texts)"
    if not isinstance(tokens, np.ndarray | Array):
        raise ValueError(
            f"expected tokens [n, l] of whole numbers, got {short_repr(tokens)}; {todo}"
        )
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        got = f"{tokens.shape} {tokens.dtype}"
        raise ValueError(f"expected tokens [n, l] of whole numbers, got {got}; {todo}")
    if config.fixed_length and tokens.shape[1] != length:
        raise ValueError(
            f"expected tokens [n, {length}] with padding, which this model reads as well, got "
            f"{tokens.shape}; tokenize to the context length"
        )
    longer = tokens.shape[1] > length
    if not has_values(tokens):
        ids = jnp.asarray(tokens, jnp.int32)
        wrong = jnp.zeros((ids.shape[0], 1), bool)  # a size may be a symbol here: `jax.export`
        if longer:
            wrong = (ids[:, length:] != 0).any(axis=1, keepdims=True)
        if config.end_token is not None:
            wrong |= ~jnp.equal(ids[:, :length], config.end_token).any(axis=1, keepdims=True)
        if not longer and config.end_token is None:
            return ids
        return jnp.where(wrong, -1, ids[:, :length])  # -1 is never an id
    known = np.asarray(tokens)
    if known[:, length:].any():
        raise ValueError(
            f"expected at most {length} tokens, the model's context length, got a longer text; "
            "shorten it"
        )
    check_vocabulary(known[:, :length], config.vocab_size)
    if config.pooling == "end" and not (known[:, :length] == config.end_token).any(axis=1).all():
        raise ValueError(
            f"expected the end token {config.end_token} in every text, got a text without it; "
            "use the model's own tokenizer"
        )
    return jnp.asarray(tokens[:, :length] if longer else tokens)


def check_embeds(embeds: Any, width: int) -> Array:
    """Embeddings [n, width] as a jax array; ValueError for another shape."""
    if not isinstance(embeds, np.ndarray | Array):
        raise ValueError(f"expected embeddings [n, {width}], got {short_repr(embeds)}")
    if embeds.ndim != 2 or embeds.shape[1] != width:
        raise ValueError(f"expected embeddings [n, {width}], got {embeds.shape}")
    return jnp.asarray(embeds)


def has_values(array: np.ndarray | Array) -> bool:
    """Whether this process knows the array's values: no tracer, no part of it on another host."""
    if isinstance(array, np.ndarray):
        return True
    return not isinstance(array, jax.core.Tracer) and array.is_fully_addressable


def on_any_mesh(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function(model, *rows)`, also for rows that are split over a mesh with explicit axes.

    There JAX wants to know of every reshape and gather how its result is split. Inside of
    `function` the compiler decides, as on a mesh with automatic axes; the result's first axis is
    split as that of the first rows.
    """

    @functools.wraps(function)
    def run(model: Any, *rows: Array) -> Array:
        shardings = [jax.typeof(each).sharding for each in rows]
        meshes = [s.mesh for s in shardings if AxisType.Explicit in s.mesh.axis_types]
        if not meshes:
            return function(model, *rows)
        out = NamedSharding(meshes[0], PartitionSpec(shardings[0].spec[0]))
        return jax.sharding.auto_axes(function, out_sharding=out)(model, *rows)

    return run
