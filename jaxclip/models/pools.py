"""Pools of variants: a learned query attends to all positions of a Vision Transformer.

The released models pool by their class token (`vit.py`) or by a ResNet's own pool (`resnet.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import VisionConfig
from jaxclip.models.layers import Attention, LayerNorm, Linear, Mlp, Numerics, weigh
from jaxclip.models.starts import Initialiser

Array = jax.Array


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
