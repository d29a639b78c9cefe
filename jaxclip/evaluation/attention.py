"""Where a model looks: attention of the token that becomes the image's features, over the picture.

Of a Vision Transformer: the class token's weights in the last block. Of a ResNet: those of the
attention pool, whose query is the mean of the last grid (paper section 2.4). Both averaged over the
heads, without the token's attention to itself.
"""

import math

import jax
import jax.numpy as jnp

from jaxclip.models.clip import Clip
from jaxclip.models.resnet import AttentionPool, ModifiedResNet

Array = jax.Array


def attention_map(model: Clip, images: Array) -> Array:
    """images [n, h, w, c] -> weights [n, rows, columns] of the last grid; each map sums to 1."""
    if isinstance(model.visual, ModifiedResNet):
        grid = model.visual(images, intermediates=True)[1]["layer4"]  # [n, rows, columns, d]
        weights, shape = _pool_weights(model.visual.attnpool, grid), grid.shape[1:3]
    else:
        seen = model.visual(images, intermediates=True)[1]["attention"]  # [layers, n, a, l, m]
        weights = seen[-1, :, :, 0].mean(1)  # [n, m]
        side = math.isqrt(weights.shape[1] - 1)
        shape = (side, side)
    over_picture = weights[:, 1:]
    maps = over_picture / over_picture.sum(-1, keepdims=True)
    return maps.reshape(-1, *shape)


def _pool_weights(pool: AttentionPool, grid: Array) -> Array:
    """Weights [n, rows * columns + 1] of the mean's query, as `AttentionPool` computes them."""
    n, h, w, d = grid.shape
    a, k, l = pool.heads, d // pool.heads, h * w + 1
    x = grid.reshape(n, h * w, d)
    x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # [n, l, d]
    x = x + pool.positional_embedding[...]
    query = pool.q_proj(x[:, 0]).reshape(n, a, k)
    key = pool.k_proj(x).reshape(n, l, a, k)
    scores = jnp.einsum("nak,nlak->nal", query * k**-0.5, key)
    return jax.nn.softmax(scores, axis=-1).mean(1)
