"""The loss of `jaxclip/losses.py` for batches whose logits [n, n] are too much for one device.

Three ways to the same number and the same gradient, up to rounding:
  gathered  every device gets the embeddings of all and computes its own rows of the logits
  ring      the texts travel from device to device; only one block of the logits exists at a time
  chunked   one device walks over blocks of texts
Ring and chunked never hold a whole row of logits: a log-sum-exp is kept up to date while the texts
pass (Milakov and Gimelshein 2018, arXiv 1805.02867), and the backward pass computes every block a
second time, since the softmax follows from the logits and their log-sum-exp.

`axis` is the name of the axis of devices inside `jax.shard_map` or `jax.pmap`; every device passes
its own b pairs and gets the loss over the n pairs of all.
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


# Log-sum-exp over texts that pass by -------------------------------------------------------------


class Running(NamedTuple):
    """log-sum-exp so far = top + log(total), each [b]."""

    top: Array
    total: Array


def _nothing_yet(like: Array) -> Running:
    return Running(jnp.full_like(like, -jnp.inf), jnp.zeros_like(like))


def _fold(so_far: Running, logits: Array, axis: int) -> Running:
    top = jnp.maximum(so_far.top, logits.max(axis))
    total = so_far.total * jnp.exp(so_far.top - top)
    return Running(top, total + jnp.exp(logits - jnp.expand_dims(top, axis)).sum(axis))


def _finish(running: Running) -> Array:
    return running.top + jnp.log(running.total)


def _cut(tree: Any, chunk: int) -> Any:
    """Every leaf [b, ...] as [b / chunk, chunk, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), tree)


def _join(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _pass_on(tree: Any, axis: str | None) -> Any:
    """To the next device of the ring; without an axis there is only one."""
    if axis is None:
        return tree
    n = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(k, (k + 1) % n) for k in range(n)])


def _round(visit: Any, carry: Any, axis: str | None) -> Any:
    """`visit` once for the texts of every device; afterwards what travels is home again."""
    stops = 1 if axis is None else jax.lax.axis_size(axis)
    return jax.lax.scan(lambda carry, _: (visit(carry), None), carry, None, length=stops)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _log_sums(images: Array, texts: Array, axis: str | None, chunk: int) -> tuple[Array, Array]:
    """Of logits = images @ texts.T: log-sum-exp over the texts, and over the images, each [b].

    images [b, e] times exp(t), texts [b, e]; the logits are [n, n] over all devices.
    """

    def block(over_texts: Running, passing: Any) -> Any:
        T, over_images = passing
        logits = jnp.dot(images, T.T)  # [b, chunk]
        return _fold(over_texts, logits, 1), _fold(over_images, logits, 0)

    def visit(carry: Any) -> Any:
        T, over_images, over_texts = carry
        passing = _cut((T, over_images), chunk)
        over_texts, over_images = jax.lax.scan(block, over_texts, passing)
        return (*_pass_on((T, _join(over_images)), axis), over_texts)

    start = _nothing_yet(images[:, 0])
    _, over_images, over_texts = _round(visit, (texts, start, start), axis)
    return _finish(over_texts), _finish(over_images)


def _log_sums_forward(images: Array, texts: Array, axis: str | None, chunk: int) -> Any:
    sums = _log_sums(images, texts, axis, chunk)
    return sums, (images, texts, sums)


def _log_sums_backward(axis: str | None, chunk: int, kept: Any, gradients: Any) -> Any:
    """A softmax is exp(logits - log-sum-exp): one more round computes it, block by block."""
    images, texts, (over_texts, over_images) = kept
    g_texts, g_images = gradients  # each [b]

    def block(d_images: Array, passing: Any) -> Any:
        T, over, g, d_texts = passing
        logits = jnp.dot(images, T.T)  # [b, chunk]
        by_image = jnp.exp(logits - over_texts[:, None]) * g_texts[:, None]
        d_logits = by_image + jnp.exp(logits - over) * g
        return d_images + jnp.dot(d_logits, T), d_texts + jnp.dot(d_logits.T, images)

    def visit(carry: Any) -> Any:
        T, over, g, d_texts, d_images = carry
        passing = _cut((T, over, g, d_texts), chunk)
        d_images, d_texts = jax.lax.scan(block, d_images, passing)
        return (*_pass_on((T, over, g, _join(d_texts)), axis), d_images)

    start = (texts, over_images, g_images, jnp.zeros_like(texts), jnp.zeros_like(images))
    *_, d_texts, d_images = _round(visit, start, axis)
    return d_images, d_texts


_log_sums.defvjp(_log_sums_forward, _log_sums_backward)


def _loss_of_own_pairs(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, axis: str | None, chunk: int | None
) -> Array:
    I_e, T_e = _wide(image_embeds, text_embeds)
    b = I_e.shape[0]
    chunk = b if chunk is None else chunk
    if b % chunk:
        raise ValueError(f"a chunk of {chunk} came, which does not divide {b} pairs a device")
    scaled = I_e * jnp.exp(logit_scale).astype(I_e.dtype)
    over_texts, over_images = _log_sums(scaled, T_e, axis, chunk)
    own = jnp.sum(scaled * T_e, axis=-1)  # the diagonal of the logits
    return jnp.mean(over_texts + over_images) / 2 - jnp.mean(own)


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
    own = _loss_of_own_pairs(image_embeds, text_embeds, logit_scale, axis, chunk)
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
    return _loss_of_own_pairs(image_embeds, text_embeds, logit_scale, None, chunk)
