"""The Vision Transformer image tower (`clip/model.py: VisionTransformer`; paper section 2.4).

Annotated: chapter 2, "A picture to patches".
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import ClipConfig, VisionConfig
from jaxclip.models.layers import Encoder, Initialiser, LayerNorm, Numerics, Taps, Transformer

Array = jax.Array


class PatchConvolution(nnx.Module):
    """Convolution whose stride is its size, without bias, as one matrix product."""

    def __init__(self, patch: int, width: int, *, numerics: Numerics, init: Initialiser) -> None:
        fan_in = patch * patch * 3
        self.kernel = init.normal((patch, patch, 3, width), (3 * fan_in) ** -0.5)
        self.numerics = numerics

    def __call__(self, images: Array) -> Array:
        """images [n, h, w, c] -> [n, patches, d], patches row by row."""
        n, h, w, c = images.shape
        p = self.kernel.shape[0]
        x = images.reshape(n, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, (h // p) * (w // p), p * p * c)  # [n, patches, ppc]
        return self.numerics.dot(x, self.kernel)


class VisionTransformer(Encoder):
    """Patches and a class token, normalised before the blocks; the class token is projected."""

    def __init__(
        self, config: ClipConfig, *, remat: str, numerics: Numerics, init: Initialiser
    ) -> None:
        v = config.vision
        assert isinstance(v, VisionConfig)
        std = v.width**-0.5
        self.conv1 = PatchConvolution(v.patch_size, v.width, numerics=numerics, init=init)
        self.class_embedding = init.normal((v.width,), std)
        self.positional_embedding = init.normal((v.tokens, v.width), std)
        self.ln_pre = LayerNorm(v.width, init=init)
        self.transformer = Transformer(
            v, config.activation, remat=remat, numerics=numerics, init=init
        )
        self.ln_post = LayerNorm(v.width, init=init)
        self.proj = init.normal((v.width, config.embed_dim), std)
        self.numerics = numerics

    def __call__(self, images: Array, *, taps: Taps | None = None) -> Array:
        """images [n, h, w, c] -> image_features [n, e].

        Taps: `stem` [n, l, d] (what the first block sees), `hidden` [layers, n, l, d],
        `attention` [layers, n, a, l, m], `pooled` [n, d] (before the projection).
        """
        x = self.conv1(images)  # [n, p, d]
        n, _, d = x.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (n, 1, d))
        x = jnp.concatenate([first, x], axis=1)  # [n, l, d]
        stem = self.ln_pre(x + self.positional_embedding[...].astype(x.dtype))
        x = self.transformer(stem, taps=taps)
        pooled = self.ln_post(x[:, 0])  # [n, d]
        if taps is not None:
            taps.update(stem=stem, pooled=pooled)
        return self.numerics.dot(pooled, self.proj)  # [n, e]
