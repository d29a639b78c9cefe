"""A plain CLIP in PyTorch for the exam: blocks, the Vision Transformer, the text tower.

Written from the paper and the official code, with the official names of parameters. What a fault
changes is an attribute or a short method, so that a fault is one small change.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu, "gelu_tanh": gelu_tanh}


class Attention(nn.Module):
    """Multi-head self-attention; q, k and v are the thirds of one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def split(self, packed: Tensor) -> Any:
        """[n, l, 3d] -> q, k, v [n, l, d]."""
        return packed.chunk(3, dim=-1)

    def scale(self, head_width: int) -> float:
        return head_width**-0.5

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, l, d = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # [n, l, 3d]
        q, k, v = (part.view(n, l, self.heads, -1).transpose(1, 2) for part in self.split(packed))
        scores = self.scale(q.shape[-1]) * q @ k.mT  # [n, a, l, m]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        x = scores.softmax(-1) @ v  # [n, a, l, k]
        return self.out_proj(x.transpose(1, 2).reshape(n, l, d))


class Mlp(nn.Module):
    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Residual attention block, norms before."""

    def __init__(self, width: int, heads: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks one after the other; `hidden` keeps the residual stream of the last call."""

    def __init__(self, width: int, layers: int, heads: int, activation: Any) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))
        self.hidden: list[Tensor] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.hidden = [x]
        for block in self.resblocks:
            x = block(x, mask)
            self.hidden.append(x)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, vision: Any, embed: int, activation: Any) -> None:
        super().__init__()
        width = vision.width
        self.conv1 = nn.Conv2d(3, width, vision.patch_size, vision.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(vision.tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, vision.layers, vision.heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed))
        self.mask: Tensor | None = None

    def patches(self, pixels: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, p, d], row by row."""
        return self.conv1(pixels).flatten(2).mT

    def positions(self) -> Tensor:
        return self.positional_embedding

    def tokens(self, patches: Tensor) -> Tensor:
        """The class token before the patches, and positions: [n, p, d] -> [n, 1 + p, d]."""
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.positions()

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def project(self, x: Tensor) -> Tensor:
        return x @ self.proj

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.ln_pre(self.tokens(self.patches(pixels)))
        x = self.transformer(x, self.mask)
        return self.project(self.ln_post(self.pool(x)))


class TextTransformer(nn.Module):
    def __init__(self, text: Any, embed: int, activation: Any) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.transformer = Transformer(text.width, text.layers, text.heads, activation)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, embed))

    def positions(self, length: int) -> Tensor:
        return self.positional_embedding[:length]

    def mask(self, length: int) -> Tensor | None:
        """[l, m], true where token l may attend to token m."""
        return torch.ones(length, length, dtype=torch.bool).tril()

    def end(self, tokens: Tensor) -> Tensor:
        """Where each row ends: its largest id."""
        return tokens.argmax(-1)

    def pool(self, x: Tensor, tokens: Tensor) -> Tensor:
        return x[torch.arange(len(x)), self.end(tokens)]

    def project(self, x: Tensor) -> Tensor:
        return x @ self.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positions(length)
        x = self.ln_final(self.transformer(x, self.mask(length)))
        return self.project(self.pool(x, tokens))
