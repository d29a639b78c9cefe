"""Faults of what stands around the blocks: pooling, projection, masks, positions, logits."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.proofs.planted_faults import models
from experiments.proofs.planted_faults.peers.block_faults import Fault, attentions, blocks, tower
from experiments.proofs.planted_faults.peers.program import Program, load
from experiments.proofs.planted_faults.peers.resnet import AttentionPool, ModifiedResNet

# Ends of the towers -------------------------------------------------------------------------------


def skip(norm: str) -> Fault:
    def plant(program: Program, name: str) -> None:
        setattr(tower(program, name), norm, nn.Identity())

    return plant


def transpose_projection(program: Program, name: str) -> None:
    parameter = "proj" if name == "image" else "text_projection"
    getattr(tower(program, name), parameter).t_()


def drop_projection(program: Program, name: str) -> None:
    module = tower(program, name)
    end = module.attnpool if isinstance(module, ModifiedResNet) else module
    end.project = lambda x: x


def pool_by(choose: Callable[..., Tensor]) -> Fault:
    def plant(program: Program, name: str) -> None:
        tower(program, name).pool = lambda x, *tokens: choose(x, *tokens)

    return plant


pool_first = pool_by(lambda x, *_: x[:, 0])
pool_last = pool_by(lambda x, *_: x[:, -1])
pool_mean = pool_by(lambda x, *_: x.mean(1))
pool_mean_of_patches = pool_by(lambda x, *_: x[:, 1:].mean(1))
pool_before_end = pool_by(lambda x, tokens: x[torch.arange(len(x)), tokens.argmax(-1) - 1])


def normalise_features(program: Program, name: str) -> None:
    method = "encode_image" if name == "image" else "encode_text"
    encode = getattr(program.clip, method)
    setattr(program.clip, method, lambda x: F.normalize(encode(x), dim=-1))


def load_other_weights(program: Program, name: str) -> None:
    other = load(program.config, models.draw_weights(program.model, models.SEED + 1))
    program.clip = other


# Masks, positions, tokens -------------------------------------------------------------------------


def drop_causal_mask(program: Program, name: str) -> None:
    program.clip.text.mask = lambda length: None


def shift_causal_mask(program: Program, name: str) -> None:
    """Each token sees the next one too."""
    program.clip.text.mask = lambda length: torch.ones(length, length).tril(1).bool()


def mask_image_tower(program: Program, name: str) -> None:
    tokens = len(program.clip.visual.positional_embedding)
    program.clip.visual.mask = torch.ones(tokens, tokens).tril().bool()


def positions_of(program: Program, name: str) -> Tensor:
    module = tower(program, name)
    module = module.attnpool if isinstance(module, ModifiedResNet) else module
    return module.positional_embedding


def count_positions_from_one(program: Program, name: str) -> None:
    """Position i takes row i + 1; the last keeps its own."""
    table = positions_of(program, name)
    table.copy_(torch.cat([table[1:], table[-1:]]))


def put_class_position_last(program: Program, name: str) -> None:
    """Position i takes row i - 1: the table has the class token's row last."""
    positions_of(program, name).copy_(positions_of(program, name).roll(1, 0))


def drop_positions(program: Program, name: str) -> None:
    positions_of(program, name).zero_()


def interpolate_positions(program: Program, name: str) -> None:
    """The grid is resized to its own size plus 0.1, as DINO's code does."""
    table = positions_of(program, name)
    side = math.isqrt(len(table) - 1)
    grid = table[1:].T.reshape(1, -1, side, side)
    scale = (side + 0.1) / side
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    table[1:] = grid[0].flatten(1).T


def transpose_position_grid(program: Program, name: str) -> None:
    table = positions_of(program, name)
    side = math.isqrt(len(table) - 1)
    table[1:] = table[1:].unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1).clone()


def flatten_by_columns(program: Program, name: str) -> None:
    module = tower(program, name)
    if isinstance(module, ModifiedResNet):
        module.attnpool.cells = lambda x: x.mT.flatten(2).mT
    else:
        module.patches = lambda pixels: module.conv1(pixels).mT.flatten(2).mT


def put_class_token_last(program: Program, name: str) -> None:
    visual = program.clip.visual

    def tokens(patches: Tensor) -> Tensor:
        last = visual.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([patches, last], dim=1) + visual.positions()

    visual.tokens = tokens
    visual.pool = lambda x: x[:, -1]


def pool_first_of_class_token_last(program: Program, name: str) -> None:
    """The same, but the first token is still the one that is pooled."""
    put_class_token_last(program, name)
    program.clip.visual.pool = lambda x: x[:, 0]


def forget_class_embedding(program: Program, name: str) -> None:
    """The parameter was not loaded and stayed zero."""
    program.clip.visual.class_embedding.zero_()


def leave_class_token_out(program: Program, name: str) -> None:
    """Patches alone, each with its own position; the first is pooled."""
    visual = program.clip.visual
    visual.tokens = lambda patches: patches + visual.positions()[1:]


# The ResNet ---------------------------------------------------------------------------------------


def leave_in_training_mode(program: Program, name: str) -> None:
    program.clip.visual.train()


def query_without_attending_to_mean(program: Program, name: str) -> None:
    """The mean is the query, but not among what it attends to."""
    pool: AttentionPool = program.clip.visual.attnpool

    def tokens(cells: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + pool.positions()
        return x[:, :1], x[:, 1:]

    pool.tokens = tokens  # type: ignore[method-assign]


def query_with_first_cell(program: Program, name: str) -> None:
    """No mean at all: the first cell is the query."""
    pool: AttentionPool = program.clip.visual.attnpool

    def tokens(cells: Tensor) -> tuple[Tensor, Tensor]:
        x = cells + pool.positions()[1:]
        return x[:, :1], x

    pool.tokens = tokens  # type: ignore[method-assign]


# Logits -------------------------------------------------------------------------------------------


def multiply_by_logarithm(program: Program, name: str) -> None:
    program.clip.scale = lambda: program.clip.logit_scale


def clip_scale(program: Program, name: str) -> None:
    program.clip.scale = lambda: program.clip.logit_scale.exp().clamp(max=100)


def forget_scale(program: Program, name: str) -> None:
    program.clip.scale = lambda: 1.0


def softmax_over_images(program: Program, name: str) -> None:
    logits = program.clip.logits
    program.clip.logits = lambda image, text: logits(image, text).softmax(0)


def transpose_logits(program: Program, name: str) -> None:
    logits = program.clip.logits
    program.clip.logits = lambda image, text: logits(image, text).T


# Faults that no list can have ---------------------------------------------------------------------


class Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def pad_stem_on_one_side(program: Program, name: str) -> None:
    """Padding "SAME" of TensorFlow and Flax at a stride of 2: one row of zeros, below."""
    stem = program.clip.visual.conv1
    stem.padding = (0, 0)
    stem.register_forward_pre_hook(lambda module, inputs: F.pad(inputs[0], (0, 1, 0, 1)))


def pool_stem_by_maximum(program: Program, name: str) -> None:
    program.clip.visual.shrink = nn.MaxPool2d(2)


def drop_residual(program: Program, name: str) -> None:
    """The shortcut around the MLP of the second block is missing."""
    block = blocks(program, name)[1]
    block.forward = lambda x, mask: block.mlp(block.ln_2(x + block.attn(block.ln_1(x), mask)))


def leave_dropout_on(program: Program, name: str) -> None:
    torch.manual_seed(0)
    for block in blocks(program, name):
        block.mlp.activation = nn.Sequential(Activation(block.mlp.activation), nn.Dropout(0.1))
        block.mlp.activation.train()


def scale_values(program: Program, name: str) -> None:
    """The value projection of the last block was scaled by 1.1, as a wrong LoRA merge would."""
    attention = attentions(program, name)[-1]
    width = attention.in_proj_weight.shape[1]
    attention.in_proj_weight[2 * width :] *= 1.1
