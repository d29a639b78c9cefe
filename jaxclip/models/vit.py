"""The Vision Transformer image tower (`clip/model.py: VisionTransformer`; paper section 2.4).

Annotated: chapter 2, "A picture to patches".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import ClipConfig, TowerConfig, VisionConfig, pooled_width
from jaxclip.models.layers import (
    Attention,
    Encoder,
    LayerNorm,
    Linear,
    Mlp,
    Numerics,
    Taps,
    Transformer,
    make_projection,
    project,
    weigh,
)
from jaxclip.models.starts import Initialiser, Start, starts_as_siglip

Array = jax.Array


class PatchConvolution(nnx.Module):
    """Convolution whose stride is its size, as one matrix product; the released have no bias."""

    def __init__(self, v: VisionConfig, *, numerics: Numerics, init: Initialiser) -> None:
        p, fan_in = v.patch_size, v.patch_size**2 * 3
        start: Start = "lecun" if starts_as_siglip(v) else (3 * fan_in) ** -0.5
        self.kernel = init.kernel((p, p, 3, v.width), start)
        self.bias = init.constant((v.width,), 0.0) if v.patch_bias else None
        self.numerics = numerics

    def __call__(self, images: Array) -> Array:
        """images [n, h, w, c] -> [n, patches, d], patches row by row."""
        n, h, w, c = images.shape
        p = self.kernel.shape[0]
        rows, columns = h // p, w // p
        x = images[:, : rows * p, : columns * p]  # the remainder is dropped, as in torch
        x = x.reshape(n, rows, p, columns, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, rows * columns, p * p * c)  # [n, patches, ppc]
        return self.numerics.dot(x, self.kernel, self.bias)


class ProbeAttention(Attention):
    """`Attention` with one query, given from outside: [n, l, d] -> [n, d]."""

    def of_probe(self, probe: Array, x: Array) -> Array:
        """probe [d], x [n, l, d] -> [n, d]."""
        n, l, d = x.shape
        kernel, bias = self.in_proj_kernel[...], self.in_proj_bias[...]
        query = self.numerics.dot(probe[None], nnx.Param(kernel[:, :d]), nnx.Param(bias[:d]))
        both = self.numerics.dot(x, nnx.Param(kernel[:, d:]), nnx.Param(bias[d:]))  # [n, l, 2d]
        query = jnp.broadcast_to(
            query.reshape(self.heads, 1, -1), (n, self.heads, 1, d // self.heads)
        )
        key, value = both.reshape(n, l, 2, self.heads, -1).transpose(2, 0, 3, 1, 4)
        mixed, _ = weigh(query, key, value, None, self.numerics)  # [n, a, 1, k]
        return self.out_proj(mixed.reshape(n, d))


class MapHead(nnx.Module):
    """SigLIP's attention pool: a learned query, the probe, attends to all positions; then an MLP.

    Multihead attention pooling (big_vision, `models/vit.py: MAPHead`).
    """

    def __init__(
        self, v: VisionConfig, activation: str, *, numerics: Numerics, init: Initialiser
    ) -> None:
        options: dict[str, Any] = {"numerics": numerics, "init": init}
        self.probe = init.uniform((v.width,), (6 / (1 + v.width)) ** 0.5)
        self.attn = ProbeAttention(v.width, v.heads, v.layers, siglip=True, **options)
        self.ln = LayerNorm(v.width, v.layer_norm_epsilon, init=init)
        self.mlp = Mlp(v, v.own_activation or activation, **options)

    def __call__(self, x: Array) -> Array:
        """x [n, l, d] -> [n, d]."""
        pooled = self.attn.of_probe(self.probe[...], x)
        return pooled + self.mlp(self.ln(pooled))


class QueryAttention(nnx.Module):
    """Attention of one query to positions of another width, with a product each.

    torch.nn.MultiheadAttention with `kdim` and `vdim`, and its names.
    """

    def __init__(
        self, width: int, inputs: int, heads: int, *, numerics: Numerics, init: Initialiser
    ) -> None:
        self.q_proj_kernel = init.kernel((width, width), "xavier")
        self.k_proj_kernel = init.kernel((inputs, width), "xavier")
        self.v_proj_kernel = init.kernel((inputs, width), "xavier")
        self.in_proj_bias = init.constant((3 * width,), 0.0)
        self.out_proj = Linear(width, width, start="xavier", numerics=numerics, init=init)
        self.heads = heads
        self.numerics = numerics

    def __call__(self, query: Array, x: Array) -> Array:
        """query [e], x [n, l, d] -> [n, e]."""
        n, l, _ = x.shape
        a, dot = self.heads, self.numerics.dot
        b_q, b_k, b_v = (nnx.Param(b) for b in jnp.split(self.in_proj_bias[...], 3))
        q = dot(query[None], self.q_proj_kernel, b_q).reshape(a, 1, -1)  # [a, 1, k]
        k = dot(x, self.k_proj_kernel, b_k).reshape(n, l, a, -1).transpose(0, 2, 1, 3)
        v = dot(x, self.v_proj_kernel, b_v).reshape(n, l, a, -1).transpose(0, 2, 1, 3)
        mixed, _ = weigh(jnp.broadcast_to(q, (n, *q.shape)), k, v, None, self.numerics)
        return self.out_proj(mixed.reshape(n, -1))  # from [n, a, 1, k]


class QueryPool(nnx.Module):
    """CoCa's pooler as open_clip has it: learned queries attend to all positions.

    Each query attends for itself. The first one's answer stands for the picture; the others' are
    what CoCa's decoder reads, so that they are kept and not computed.
    """

    def __init__(self, v: VisionConfig, e: int, *, numerics: Numerics, init: Initialiser) -> None:
        assert v.queries is not None and v.pool_heads is not None
        self.query = init.normal((v.queries, e), 1.0)
        self.attn = QueryAttention(e, v.width, v.pool_heads, numerics=numerics, init=init)
        self.ln_q = LayerNorm(e, v.layer_norm_epsilon, init=init)
        self.ln_k = LayerNorm(v.width, v.layer_norm_epsilon, init=init)

    def __call__(self, x: Array) -> Array:
        """x [n, l, d] -> [n, e]."""
        return self.attn(self.ln_q(self.query[0]), self.ln_k(x))


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
        size = self.tower.image_size
        if images.shape[1:3] != (size, size):  # not left to the positions: pixels may be left over
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
