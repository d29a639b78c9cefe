"""Faults of blocks: activation, norms, attention, order. Each a small change of the exam's code.

A fault is called with the program and the tower, "image" or "text", that it is planted in.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.proofs.planted_faults.peers.program import Program
from experiments.proofs.planted_faults.peers.resnet import ModifiedResNet
from experiments.proofs.planted_faults.peers.towers import gelu_tanh, quick_gelu

Fault = Callable[[Program, str], None]


def tower(program: Program, name: str) -> Any:
    """The module of the image or of the text tower."""
    return program.clip.visual if name == "image" else program.clip.text


def blocks(program: Program, name: str) -> Any:
    return tower(program, name).transformer.resblocks


def attentions(program: Program, name: str) -> list[Any]:
    """Every module of the tower that attends."""
    module = tower(program, name)
    if isinstance(module, ModifiedResNet):
        return [module.attnpool]
    return [block.attn for block in module.transformer.resblocks]


# Blocks -------------------------------------------------------------------------------------------


def activate(activation: Callable[[Tensor], Tensor]) -> Fault:
    def plant(program: Program, name: str) -> None:
        for block in blocks(program, name):
            block.mlp.activation = activation

    return plant


def set_epsilon(eps: float) -> Fault:
    def plant(program: Program, name: str) -> None:
        for module in tower(program, name).modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps

    return plant


def put_norms_behind(program: Program, name: str) -> None:
    def forward(block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        x = block.ln_1(x + block.attn(x, mask))
        return block.ln_2(x + block.mlp(x))

    for block in blocks(program, name):
        block.forward = partial(forward, block)


def set_heads(count: int) -> Fault:
    def plant(program: Program, name: str) -> None:
        for attention in attentions(program, name):
            attention.heads = count

    return plant


def read_packed_as(order: str) -> Fault:
    """The thirds of the packed projection are read in another order than q, k, v."""

    def split(packed: Tensor) -> list[Tensor]:
        thirds = dict(zip(order, packed.chunk(3, dim=-1), strict=True))
        return [thirds[letter] for letter in "qkv"]

    def plant(program: Program, name: str) -> None:
        for attention in attentions(program, name):
            attention.split = split

    return plant


def transpose_attention_output(program: Program, name: str) -> None:
    for attention in attentions(program, name):
        attention.out_proj.weight.data = attention.out_proj.weight.data.T


def set_query_scale(power: float) -> Fault:
    """Scores are multiplied by the head width to this power, -1/2 being right."""

    def plant(program: Program, name: str) -> None:
        for attention in attentions(program, name):
            attention.scale = lambda head_width: head_width**power

    return plant


def drop_biases(program: Program, name: str) -> None:
    for key, value in tower(program, name).named_parameters():
        if key.endswith(("in_proj_bias", "_proj.bias", "c_fc.bias")):
            value.zero_()


def drop_attention_biases(program: Program, name: str) -> None:
    for block in blocks(program, name):
        block.attn.in_proj_bias.zero_()
        block.attn.out_proj.bias.zero_()


def order_layers(order: Callable[[list[int]], list[int]]) -> Fault:
    """The blocks run in another order, or some of them do not."""

    def plant(program: Program, name: str) -> None:
        old = blocks(program, name)
        order_ = order(list(range(len(old))))
        tower(program, name).transformer.resblocks = nn.ModuleList(old[i] for i in order_)

    return plant


reverse_layers = order_layers(lambda layers: layers[::-1])
swap_layers = order_layers(lambda layers: [0, 2, 1, *layers[3:]])
drop_last_layer = order_layers(lambda layers: layers[:-1])
drop_second_layer = order_layers(lambda layers: [0, *layers[2:]])
sort_layers_as_text = order_layers(lambda layers: sorted(layers, key=str))


exact_gelu, tanh_gelu = activate(F.gelu), activate(gelu_tanh)
take_quick_gelu, take_relu = activate(quick_gelu), activate(F.relu)
