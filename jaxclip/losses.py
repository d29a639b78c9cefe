"""Figure 3 of the paper in JAX, with its letters (NumPy twin: `reference.py`).

Annotated: chapter 5, "Figure 3, line by line".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def l2_normalize(x: Array, axis: int = -1) -> Array:
    """x / |x| along `axis`, of the same shape; no epsilon, as in the released code."""
    return x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def cross_entropy_loss(logits: Array, labels: Array, axis: int) -> Array:
    """Mean of -log softmax over `axis` at the labels: logits [n, n], labels [n] -> scalar."""
    log_probabilities = jax.nn.log_softmax(logits, axis=axis)
    picked = jnp.take_along_axis(log_probabilities, jnp.expand_dims(labels, axis), axis=axis)
    return -picked.mean()


def contrastive_loss(image_embeds: Array, text_embeds: Array, logit_scale: Array) -> Array:
    """Symmetric cross-entropy over the cosine similarities of n pairs (Figure 3).

    Args:
      image_embeds: I_e [n, e], rows of unit length; row i belongs to row i of `text_embeds`.
      text_embeds: T_e [n, e], rows of unit length.
      logit_scale: t, the logarithm of the factor on the cosines.

    Returns:
      Scalar, in at least float32; ln(n) when the embeddings carry no information.

    Example:
      >>> round(float(contrastive_loss(jnp.eye(4), jnp.eye(4), jnp.log(10.0))), 6)
      0.000136
    """
    wide = jnp.promote_types(image_embeds.dtype, jnp.float32)
    I_e, T_e, t = image_embeds.astype(wide), text_embeds.astype(wide), logit_scale
    n = I_e.shape[0]

    # scaled pairwise cosine similarities
    logits = jnp.dot(I_e, T_e.T) * jnp.exp(t)  # [n, n]

    # symmetric loss function
    labels = jnp.arange(n)  # [n]
    loss_i = cross_entropy_loss(logits, labels, axis=0)
    loss_t = cross_entropy_loss(logits, labels, axis=1)
    loss = (loss_i + loss_t) / 2
    return loss


def figure_3(
    images: Array,  # [n, h, w, c]
    texts: Array,  # [n, l]
    image_encoder: Callable[[Array], Array],  # ResNet or Vision Transformer
    text_encoder: Callable[[Array], Array],  # CBOW or Text Transformer
    W_i: Array,  # [d_i, e]
    W_t: Array,  # [d_t, e]
    t: Array,  # []
) -> Array:
    """The loss of a minibatch of pairs: Figure 3, whole.

    For reading. In the released code, and so in `jaxclip.models`, the projections W_i and W_t are
    the last step of the towers: `Clip.embed` returns I_e and T_e, `contrastive_loss` does the rest.
    """
    # extract feature representations of each modality
    I_f = image_encoder(images)  # [n, d_i]
    T_f = text_encoder(texts)  # [n, d_t]

    # joint multimodal embedding
    I_e = l2_normalize(jnp.dot(I_f, W_i), axis=1)  # [n, e]
    T_e = l2_normalize(jnp.dot(T_f, W_t), axis=1)  # [n, e]

    return contrastive_loss(I_e, T_e, t)
