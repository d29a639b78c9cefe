"""The modified ResNet of the exam in PyTorch (clip/model.py: ModifiedResNet)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut; an average pool in the place of a stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = nn.Module()
        self.shortens = stride > 1 or inputs != 4 * width
        if self.shortens:
            self.downsample.add_module("0", nn.Conv2d(inputs, 4 * width, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(4 * width))
        self.shrink = nn.AvgPool2d(stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.shrink(y)))
        if self.shortens:
            convolution, norm = self.downsample.children()
            x = norm(convolution(self.shrink(x)))
        return F.relu(x + y)


class AttentionPool(nn.Module):
    """Attention with one query, the mean of all cells."""

    def __init__(self, width: int, heads: int, tokens: int, embed: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed)
        self.heads = heads

    def cells(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, h w, c], row by row."""
        return x.flatten(2).mT

    def positions(self) -> Tensor:
        return self.positional_embedding

    def tokens(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The query [n, 1, d], and what it attends to [n, l, d]: the mean before the cells."""
        x = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + self.positions()
        return x[:, :1], x

    def scale(self, head_width: int) -> float:
        return head_width**-0.5

    def project(self, x: Tensor) -> Tensor:
        return self.c_proj(x)

    def forward(self, x: Tensor) -> Tensor:
        query, x = self.tokens(self.cells(x))
        projected = self.q_proj(query), self.k_proj(x), self.v_proj(x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projected)
        weights = (self.scale(q.shape[-1]) * q @ k.mT).softmax(-1)  # [n, a, 1, l]
        return self.project((weights @ v).transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    def __init__(self, vision: Any, embed: int) -> None:
        super().__init__()
        width = vision.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shrink: nn.Module = nn.AvgPool2d(2)
        inputs = width
        for i, count in enumerate(vision.layers):
            blocks = nn.Sequential()
            for j in range(count):
                blocks.append(Bottleneck(inputs, width * 2**i, 2 if i > 0 and j == 0 else 1))
                inputs = 4 * width * 2**i
            self.add_module(f"layer{i + 1}", blocks)
        self.attnpool = AttentionPool(vision.features, vision.heads, vision.tokens, embed)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        x = self.shrink(x)
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{i}")(x)
        return self.attnpool(x)
