"""The Vision Transformer image tower (`clip/model.py: VisionTransformer`; paper section 2.4).

Annotated: chapter 2, "A picture to patches".
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import ClipConfig, TowerConfig, VisionConfig, name_sides, pooled_width
from jaxclip.models.layers import (
    Encoder,
    LayerNorm,
    Numerics,
    Taps,
    Transformer,
    make_projection,
    project,
)
from jaxclip.models.pools import MapHead, QueryPool
from jaxclip.models.starts import Initialiser, Start, starts_as_siglip

Array = jax.Array


class PatchConvolution(nnx.Module):
    """Convolution whose stride is its size, as one matrix product; the released have no bias."""

    def __init__(self, v: VisionConfig, *, numerics: Numerics, init: Initialiser) -> None:
        shape = (*v.patch_sides, 3, v.width)
        start: Start = "lecun" if starts_as_siglip(v) else (3 * math.prod(shape[:3])) ** -0.5
        self.kernel = init.kernel(shape, start)
        self.bias = init.constant((v.width,), 0.0) if v.patch_bias else None
        self.numerics = numerics

    def __call__(self, images: Array) -> Array:
        """images [n, h, w, c] -> [n, patches, d], patches row by row."""
        n, h, w, c = images.shape
        down, across = self.kernel.shape[:2]
        rows, columns = h // down, w // across
        x = images[:, : rows * down, : columns * across]  # the remainder is dropped, as in torch
        x = x.reshape(n, rows, down, columns, across, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, rows * columns, down * across * c)  # [n, patches, ppc]
        return self.numerics.dot(x, self.kernel, self.bias)


class VisionTransformer(Encoder):
    """Patches, a class token if any, blocks, a pool and a projection, as the config says.

    In the released models all is normalised before the blocks and the class token is pooled.
    """

    def __init__(
        self,
        config: ClipConfig | TowerConfig,
        *,
        remat: str,
        numerics: Numerics,
        init: Initialiser,
    ) -> None:
        v = config.vision
        assert isinstance(v, VisionConfig)
        options: dict[str, Any] = {"numerics": numerics, "init": init}
        std, epsilon = v.width**-0.5, v.layer_norm_epsilon
        self.conv1 = PatchConvolution(v, **options)
        self.class_embedding = init.normal((v.width,), std) if v.class_token else None
        self.positional_embedding = init.normal((v.tokens, v.width), std)
        self.ln_pre = LayerNorm(v.width, epsilon, init=init) if v.pre_norm else None
        self.transformer = Transformer(v, config.activation, remat=remat, **options)
        if v.pooling == "attention":
            self.attnpool = MapHead(v, config.activation, **options)
        if v.pooling == "queries":
            self.attn_pool = QueryPool(v, config.embed_dim, **options)
        self.ln_post = LayerNorm(pooled_width(v, config.embed_dim), epsilon, init=init)
        self.proj = make_projection(v, config.embed_dim, **options)
        self.tower = v
        self.numerics = numerics

    def __call__(self, images: Array, *, taps: Taps | None = None) -> Array:
        """images [n, h, w, c] -> image_features [n, e].

        Taps: `stem` [n, l, d] (what the first block sees), `hidden` [layers, n, l, d],
        `attention` [layers, n, a, l, m], `pooled` [n, d] (before the projection), and `last`
        [n, l, d], where every position is normalised before they are pooled.
        """
        stem = self.stem(images)
        x = self.transformer(stem, taps=taps)
        pooled = self.pool(x, taps)  # [n, d]
        if taps is not None:
            taps.update(stem=stem, pooled=pooled)
        return project(pooled, self.proj, self.numerics)  # [n, e]

    def stem(self, images: Array) -> Array:
        """images [n, h, w, c] -> [n, l, d], what the first block sees."""
        # not left to the number of positions: pixels may be left over
        if images.shape[1:3] != self.tower.image_sides:
            size = name_sides(self.tower.image_size)
            raise ValueError(f"expected pictures of {size} pixels a side, got {images.shape}")
        x = self.conv1(images)  # [n, p, d]
        n, _, d = x.shape
        if self.class_embedding is not None:
            first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (n, 1, d))
            x = jnp.concatenate([first, x], axis=1)  # [n, l, d]
        x = x + self.positional_embedding[...].astype(x.dtype)
        return x if self.ln_pre is None else self.ln_pre(x)

    def pool(self, x: Array, taps: Taps | None = None) -> Array:
        """x [n, l, d] -> [n, d], normalised before or after: of one token that is the same.

        CoCa's queries give as many channels as the features: [n, e].
        """
        v = self.tower
        if v.pooling == "queries":
            return self.ln_post(self.attn_pool(x))
        if v.pooling == "class":
            return self.ln_post(x[:, 0])
        if not v.norm_after_pooling:
            x = self.ln_post(x)
            if taps is not None:
                taps["last"] = x
        # the mean is of the patches, without the class token
        pooled = self.attnpool(x) if v.pooling == "attention" else x[:, v.class_token :].mean(1)
        return self.ln_post(pooled) if v.norm_after_pooling else pooled
