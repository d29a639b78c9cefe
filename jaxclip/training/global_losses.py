"""`jaxclip.losses.contrastive_loss` for batches whose logits [n, n] do not fit on one device.

Three functions with the same value and gradient, up to rounding:
  gathered  every device gathers the embeddings of all and computes its own rows of the logits
  ring      the texts travel from device to device; only one block of the logits exists at a time
  chunked   the same on one device, chunk by chunk of texts

What makes ring and chunked possible: the cross-entropy of a row of logits needs their log-sum-exp
and the logit of the right pair, not the row. A log-sum-exp can be updated with one block of logits
after another (Milakov and Gimelshein 2018, arXiv 1805.02867). In the backward pass the softmax is
exp(logits - log-sum-exp), so each block is computed a second time in place of being kept.

`axis` is the name of the axis of devices inside `jax.shard_map` or `jax.pmap`; every device passes
its own b pairs and gets the loss over the n pairs of all.

Annotated: chapter 12, "The loss on many devices".
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.losses import cross_entropy_loss

Array = jax.Array


def _wide(image_embeds: Array, text_embeds: Array) -> tuple[Array, Array]:
    """Both in at least float32."""
    dtype = jnp.promote_types(image_embeds.dtype, jnp.float32)
    return image_embeds.astype(dtype), text_embeds.astype(dtype)


def gathered_contrastive_loss(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, *, axis: str
) -> Array:
    """`contrastive_loss` over the pairs of all devices; each computes [b, n] logits, twice.

    Args:
      image_embeds: [b, e], this device's, each row of length one.
      text_embeds: [b, e], each row of length one.
      logit_scale: the logarithm t of the factor on the cosines.
      axis: the name of the axis of devices.

    Returns:
      Scalar, the same on every device.
    """
    I_e, T_e = _wide(image_embeds, text_embeds)
    b = I_e.shape[0]
    every_I, every_T = (jax.lax.all_gather(x, axis, tiled=True) for x in (I_e, T_e))  # [n, e]
    labels = jax.lax.axis_index(axis) * b + jnp.arange(b)
    logits_i = jnp.dot(I_e, every_T.T) * jnp.exp(logit_scale)  # [b, n]
    logits_t = jnp.dot(T_e, every_I.T) * jnp.exp(logit_scale)  # [b, n]
    both = [cross_entropy_loss(logits, labels, axis=1) for logits in (logits_i, logits_t)]
    return jax.lax.pmean(sum(both) / 2, axis)


# A log-sum-exp, updated block by block ------------------------------------------------------------


class LogSumExp(NamedTuple):
    """log-sum-exp = top + log(total), each [b]; `top` is the maximum, so that nothing overflows."""

    top: Array
    total: Array


def _logsumexp_of_nothing(like: Array) -> LogSumExp:
    return LogSumExp(jnp.full_like(like, -jnp.inf), jnp.zeros_like(like))


def _logsumexp_update(so_far: LogSumExp, logits: Array, axis: int) -> LogSumExp:
    """The log-sum-exp of what it was over and of `logits`, over `axis`."""
    top = jnp.maximum(so_far.top, logits.max(axis))
    total = so_far.total * jnp.exp(so_far.top - top)  # to the new maximum
    return LogSumExp(top, total + jnp.exp(logits - jnp.expand_dims(top, axis)).sum(axis))


def _logsumexp_value(sums: LogSumExp) -> Array:
    return sums.top + jnp.log(sums.total)


# Texts in chunks, and around the ring -------------------------------------------------------------


def _to_chunks(tree: Any, chunk: int) -> Any:
    """Every leaf [b, ...] as [b / chunk, chunk, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), tree)


def _from_chunks(tree: Any) -> Any:
    """The inverse of `_to_chunks`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _send_to_next(tree: Any, axis: str | None) -> Any:
    """Each device's arrays to the next device of the ring; without an axis there is only one."""
    if axis is None:
        return tree
    n = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(k, (k + 1) % n) for k in range(n)])


def _around_ring(visit: Any, carry: Any, axis: str | None) -> Any:
    """`visit` once for the texts of every device; afterwards each device has its own again."""
    visits = 1 if axis is None else jax.lax.axis_size(axis)
    return jax.lax.scan(lambda carry, _: (visit(carry), None), carry, None, length=visits)[0]


# Both log-sum-exps of the logits, and their gradient ----------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _both_logsumexps(
    images: Array, texts: Array, axis: str | None, chunk: int
) -> tuple[Array, Array]:
    """Of logits = images @ texts.T: log-sum-exp over the texts, and over the images, each [b].

    images [b, e] times exp(t), texts [b, e]; the logits are [n, n] over all devices. Texts travel
    with the log-sum-exp over the images that they have met; that over the texts stays at home.
    """

    def one_chunk(over_texts: LogSumExp, passing: Any) -> Any:
        T, over_images = passing
        logits = jnp.dot(images, T.T)  # [b, chunk]
        over_images = _logsumexp_update(over_images, logits, 0)
        return _logsumexp_update(over_texts, logits, 1), over_images

    def visit(carry: Any) -> Any:
        T, over_images, over_texts = carry
        passing = _to_chunks((T, over_images), chunk)
        over_texts, over_images = jax.lax.scan(one_chunk, over_texts, passing)
        return (*_send_to_next((T, _from_chunks(over_images)), axis), over_texts)

    nothing = _logsumexp_of_nothing(images[:, 0])
    _, over_images, over_texts = _around_ring(visit, (texts, nothing, nothing), axis)
    return _logsumexp_value(over_texts), _logsumexp_value(over_images)


def _forward(images: Array, texts: Array, axis: str | None, chunk: int) -> Any:
    sums = _both_logsumexps(images, texts, axis, chunk)
    return sums, (images, texts, sums)


def _backward(axis: str | None, chunk: int, residuals: Any, gradients: Any) -> Any:
    """The derivative of a log-sum-exp is a softmax: one more round computes it, chunk by chunk."""
    images, texts, (over_texts, over_images) = residuals
    g_texts, g_images = gradients  # each [b]

    def one_chunk(d_images: Array, passing: Any) -> Any:
        T, over, g, d_texts = passing
        logits = jnp.dot(images, T.T)  # [b, chunk]
        d_logits = jnp.exp(logits - over_texts[:, None]) * g_texts[:, None]
        d_logits += jnp.exp(logits - over) * g
        return d_images + jnp.dot(d_logits, T), d_texts + jnp.dot(d_logits.T, images)

    def visit(carry: Any) -> Any:
        T, over, g, d_texts, d_images = carry
        passing = _to_chunks((T, over, g, d_texts), chunk)
        d_images, d_texts = jax.lax.scan(one_chunk, d_images, passing)
        return (*_send_to_next((T, over, g, _from_chunks(d_texts)), axis), d_images)

    start = (texts, over_images, g_images, jnp.zeros_like(texts), jnp.zeros_like(images))
    *_, d_texts, d_images = _around_ring(visit, start, axis)
    return d_images, d_texts


_both_logsumexps.defvjp(_forward, _backward)


def _mean_loss_of_own_pairs(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, axis: str | None, chunk: int | None
) -> Array:
    """Cross-entropy = log-sum-exp - logit of the right pair, both ways, mean over the b pairs."""
    I_e, T_e = _wide(image_embeds, text_embeds)
    b = I_e.shape[0]
    chunk = b if chunk is None else chunk
    if b % chunk:
        raise ValueError(f"chunk: expected a divisor of {b}, the pairs of a device, got {chunk}")
    scaled = I_e * jnp.exp(logit_scale).astype(I_e.dtype)
    over_texts, over_images = _both_logsumexps(scaled, T_e, axis, chunk)
    right = jnp.sum(scaled * T_e, axis=-1)  # the diagonal of the logits
    return jnp.mean(over_texts + over_images) / 2 - jnp.mean(right)


def ring_contrastive_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    *,
    axis: str,
    chunk: int | None = None,
) -> Array:
    """`contrastive_loss` over the pairs of all devices; each holds [b, chunk] logits at a time.

    Args:
      image_embeds: [b, e], this device's, each row of length one.
      text_embeds: [b, e], each row of length one; they travel once around the ring.
      logit_scale: the logarithm t of the factor on the cosines.
      axis: the name of the axis of devices.
      chunk: texts a block, a divisor of b; all b unless given.

    Returns:
      Scalar, the same on every device.
    """
    own = _mean_loss_of_own_pairs(image_embeds, text_embeds, logit_scale, axis, chunk)
    return jax.lax.pmean(own, axis)


def chunked_contrastive_loss(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, *, chunk: int
) -> Array:
    """`contrastive_loss` on one device, which holds [n, chunk] logits at a time.

    Args:
      image_embeds: [n, e], each row of length one.
      text_embeds: [n, e], each row of length one.
      logit_scale: the logarithm t of the factor on the cosines.
      chunk: texts a block, a divisor of n.

    >>> import jax.numpy as jnp
    >>> round(float(chunked_contrastive_loss(jnp.eye(4), jnp.eye(4), jnp.log(10.0), chunk=2)), 6)
    0.000136
    """
    return _mean_loss_of_own_pairs(image_embeds, text_embeds, logit_scale, None, chunk)
