"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343): not in the CLIP paper.

Every pair of an image and a text is a question of its own: do they belong together? No softmax, so
nothing has to be known about the other pairs of a row. It has a bias beside the temperature, so the
model has to have one as well: `ClipConfig.logit_bias`.

Annotated: chapter 7, "Why the loss is symmetric".
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def sigmoid_loss(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, logit_bias: Array
) -> Array:
    """Mean over n images of the sum over n texts of -log sigmoid(+-logits) (SigLIP, algorithm 1).

    Args:
      image_embeds: [n, e], each row of length one; row i belongs to row i of `text_embeds`.
      text_embeds: [n, e], each row of length one.
      logit_scale: the logarithm t of the factor on the cosines.
      logit_bias: b, added to every logit.

    >>> import jax.numpy as jnp
    >>> round(float(sigmoid_loss(jnp.eye(4), jnp.eye(4), jnp.log(10.0), -5.0)), 6)
    0.026861
    """
    wide = jnp.promote_types(image_embeds.dtype, jnp.float32)
    I_e, T_e = image_embeds.astype(wide), text_embeds.astype(wide)
    n = I_e.shape[0]
    logits = jnp.dot(I_e, T_e.T) * jnp.exp(logit_scale) + logit_bias  # [n, n]
    labels = 2 * jnp.eye(n) - 1  # 1 on the diagonal, else -1
    return -jax.nn.log_sigmoid(labels * logits).sum() / n


def ring_sigmoid_loss(
    image_embeds: Array, text_embeds: Array, logit_scale: Array, logit_bias: Array, *, axis: str
) -> Array:
    """`sigmoid_loss` over the pairs of all devices; each has [b, b] logits at a time.

    A right pair differs from a wrong one by its logit: -log sigmoid(z) = -log sigmoid(-z) - z. So
    all are counted as wrong while the texts travel, and the diagonal is put right at the end.
    """
    wide = jnp.promote_types(image_embeds.dtype, jnp.float32)
    I_e, T_e = image_embeds.astype(wide), text_embeds.astype(wide)
    n = jax.lax.axis_size(axis)
    ring = [(k, (k + 1) % n) for k in range(n)]

    def wrong(T: Array) -> Array:
        logits = jnp.dot(I_e, T.T) * jnp.exp(logit_scale) + logit_bias  # [b, b]
        return jax.nn.softplus(logits).sum(axis=1)

    @jax.checkpoint  # the backward pass keeps the texts of every stop, but no logits
    def visit(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        T, total = carry
        T = jax.lax.ppermute(T, axis, ring)
        return (T, total + wrong(T)), None

    (_, total), _ = jax.lax.scan(visit, (T_e, wrong(T_e)), None, length=n - 1)
    own = jnp.sum(I_e * T_e, axis=-1) * jnp.exp(logit_scale) + logit_bias  # [b]
    return jax.lax.pmean(jnp.mean(total - own), axis)
