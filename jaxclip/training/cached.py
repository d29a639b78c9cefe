"""Gradient caching: the exact gradient of a batch whose activations do not fit (Gao et al. 2021,
arXiv 2101.06983).

The loss needs the embeddings of all pairs, but a tower needs only its own picture or text. So the
batch passes the towers in microbatches, first forward only, for the embeddings; the loss is
differentiated with respect to these; then every microbatch passes forward again and back, with its
share of that gradient. Nothing is approximated, unlike in the mean over the losses of microbatches.

In JAX that is `jax.checkpoint` around one microbatch, inside a loop: the forward pass keeps the
inputs of the loop and no activation, and the backward pass computes them again.

BatchNorm is the one thing that looks across a batch. Here each microbatch is normalised by its own
statistics, in both passes the same, so the gradient is that of a model which sees the batch in
microbatches; the new running statistics are the mean of what each would make of the old. Towers
without BatchNorm give the gradient of the whole batch.

Annotated: chapter 12, "The loss on many devices".
"""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
Embed = Callable[[Array, Array], tuple[Array, Array, Any]]  # (images, tokens) -> (I_e, T_e, stats)


def _deal(x: Array, microbatches: int) -> Array:
    """[n, ...] -> [m, n / m, ...]; microbatch k has the rows k, k + m, k + 2 m, ...

    Dealt like cards, so that rows which are spread over devices stay on their devices.
    """
    if x.shape[0] % microbatches:
        raise ValueError(
            f"microbatches: expected a divisor of {x.shape[0]}, the batch, got {microbatches}"
        )
    return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)


def _collect(x: Array) -> Array:
    """The inverse of `_deal`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def embed_in_microbatches(
    embed: Embed, microbatches: int, images: Array, tokens: Array
) -> tuple[Array, Array, Any]:
    """What `embed(images, tokens)` returns, with the activations of n / m pairs at a time.

    Args:
      embed: both towers, as in training.
      microbatches: m, a divisor of n (under `shard_map` and `pmap`, of one device's pairs).
      images: [n, h, w, c].
      tokens: [n, l].
    """
    dealt = _deal(images, microbatches), _deal(tokens, microbatches)
    # inside a loop nothing is merged with the first pass: `prevent_cse` would only cost time
    again = jax.checkpoint(lambda pairs: embed(*pairs), prevent_cse=False)
    I_e, T_e, stats = jax.lax.map(again, dealt)  # [m, n / m, e] twice
    return _collect(I_e), _collect(T_e), jax.tree.map(lambda x: x.mean(0), stats)
