"""The contrastive loss, literally as Figure 3 of the paper (NumPy twin: `reference.py`)."""

import jax
import jax.numpy as jnp

Array = jax.Array


def l2_normalize(x: Array, axis: int = -1) -> Array:
    """x / |x| along `axis`, without an epsilon, as in the official code (same shape out)."""
    return x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def cross_entropy_loss(logits: Array, labels: Array, axis: int) -> Array:
    """Mean of -log softmax over `axis` at the labels: logits [n, n], labels [n] -> scalar."""
    log_probabilities = jax.nn.log_softmax(logits, axis=axis)
    picked = jnp.take_along_axis(log_probabilities, jnp.expand_dims(labels, axis), axis=axis)
    return -picked.mean()


def contrastive_loss(image_embeds: Array, text_embeds: Array, logit_scale: Array) -> Array:
    """Symmetric cross-entropy over the cosine similarities of n pairs (Figure 3).

    Args:
      image_embeds: [n, e], each row of length one; row i belongs to row i of `text_embeds`.
      text_embeds: [n, e], each row of length one.
      logit_scale: the logarithm t of the factor on the cosines.

    Returns:
      Scalar, in at least float32; ln(n) when the embeddings say nothing.

    >>> import jax.numpy as jnp
    >>> round(float(contrastive_loss(jnp.eye(4), jnp.eye(4), jnp.log(10.0))), 6)
    0.000136
    """
    wide = jnp.promote_types(image_embeds.dtype, jnp.float32)
    I_e, T_e, t = image_embeds.astype(wide), text_embeds.astype(wide), logit_scale
    n = I_e.shape[0]

    # scaled pairwise cosine similarities [n, n]
    logits = jnp.dot(I_e, T_e.T) * jnp.exp(t)

    # symmetric loss function
    labels = jnp.arange(n)
    loss_i = cross_entropy_loss(logits, labels, axis=0)
    loss_t = cross_entropy_loss(logits, labels, axis=1)
    return (loss_i + loss_t) / 2
