"""Tiny random CLIP models and batches, made so that every mistake shows.

Sizes are odd and differ from each other, so that a transposed or swapped axis is a shape error;
twelve blocks, so that an order by string (0, 1, 10, 11, 2) departs from the order by number;
biases, gains and attention far from their neutral values. Token, positional and patch embeddings
are as small as at the released initialisation, so that the first layer norm of each tower feels
an epsilon of 1e-6 in place of 1e-5 even in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

VISION_HEADS = 3  # of 8, with the default widths
TEXT_HEADS = 2  # of 8


def params(
    seed: int = 0,
    *,
    vision_width: int = 24,
    vision_layers: int = 12,
    patch: int = 5,
    image_size: int = 20,
    text_width: int = 16,
    text_layers: int = 12,
    vocab: int = 101,
    context: int = 13,
    embed: int = 7,
    text: str = "transformer",
) -> dict[str, Any]:
    """A whole model as a nested dict of float64 arrays; `text` is "transformer" or "cbow"."""
    rng = np.random.default_rng(seed)
    positions = 1 + (image_size // patch) ** 2
    visual = {
        "conv1": {"kernel": 0.03 * _matrix(rng, 3 * patch**2, vision_width, (patch, patch, 3))},
        "class_embedding": 0.03 * rng.normal(size=vision_width),
        "positional_embedding": 0.03 * rng.normal(size=(positions, vision_width)),
        "ln_pre": _layer_norm(rng, vision_width),
        "transformer": _transformer(rng, vision_width, vision_layers),
        "ln_post": _layer_norm(rng, vision_width),
        "proj": _matrix(rng, vision_width, embed),
    }
    words = {
        "token_embedding": {"embedding": 0.02 * rng.normal(size=(vocab, text_width))},
        "text_projection": _matrix(rng, text_width, embed),
    }
    if text == "transformer":
        words |= {
            "positional_embedding": 0.01 * rng.normal(size=(context, text_width)),
            "transformer": _transformer(rng, text_width, text_layers),
            "ln_final": _layer_norm(rng, text_width),
        }
    elif text != "cbow":
        raise ValueError(f"text is {text!r}, expected 'transformer' or 'cbow'")
    return {"visual": visual, "text": words, "logit_scale": np.array(2.1)}


def resnet(
    seed: int = 0,
    *,
    width: int = 16,
    layers: tuple[int, ...] = (1, 2, 1, 1),
    image_size: int = 96,
    embed: int = 7,
) -> dict[str, Any]:
    """The branch `visual` of a ResNet; put it in the place of the one in `params`.

    Running statistics are far from 0 and 1, and nothing adds zero, unlike in a new model.
    """
    rng = np.random.default_rng(seed)
    features = 32 * width
    stem = ((3, width // 2), (width // 2, width // 2), (width // 2, width))
    visual: dict[str, Any] = {}
    for i, (inputs, outputs) in enumerate(stem, start=1):
        visual[f"conv{i}"] = {"kernel": _convolution(rng, 3, inputs, outputs)}
        visual[f"bn{i}"] = _batch_norm(rng, outputs)
    inputs = width
    for i, count in enumerate(layers):
        blocks = {}
        for j in range(count):
            blocks[str(j)] = _bottleneck(rng, inputs, width * 2**i, downsample=j == 0)
            inputs = 4 * width * 2**i
        visual[f"layer{i + 1}"] = blocks
    tokens = (image_size // 32) ** 2 + 1
    projections = {f"{name}_proj": _linear(rng, features, features) for name in "qkv"}
    visual["attnpool"] = {
        "positional_embedding": 0.3 * rng.normal(size=(tokens, features)),
        **projections,
        "c_proj": _linear(rng, features, embed),
    }
    return visual


def batch(
    seed: int = 0, n: int = 5, *, image_size: int = 20, vocab: int = 101, context: int = 13
) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, h, w, 3], float64, and tokens [n, l], int32: start, words, end, zeros.

    The start id is vocab - 2 and the end id vocab - 1. Lengths run from a text that fills the
    context to one without words, in random order.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, image_size, image_size, 3))
    tokens = np.zeros((n, context), np.int32)
    lengths = rng.permutation(np.linspace(context - 2, 0, n).astype(int))
    for row, words in zip(tokens, lengths, strict=True):
        row[0] = vocab - 2
        row[1 : 1 + words] = rng.integers(1, vocab - 2, size=words)
        row[1 + words] = vocab - 1
    return images, tokens


def cast(tree: Any, dtype: Any) -> Any:
    """The same nested dict with every array in another dtype."""
    if isinstance(tree, dict):
        return {name: cast(branch, dtype) for name, branch in tree.items()}
    return np.asarray(tree, dtype)


def _transformer(rng: np.random.Generator, width: int, layers: int) -> dict[str, Any]:
    return {"resblocks": {str(i): _block(rng, width) for i in range(layers)}}


def _block(rng: np.random.Generator, width: int) -> dict[str, Any]:
    return {
        "attn": {
            # 1.5: scores of standard deviation above 2, so that attention is far from uniform
            "in_proj_kernel": 1.5 * _matrix(rng, width, 3 * width),
            "in_proj_bias": 0.3 * rng.normal(size=3 * width),
            "out_proj": _linear(rng, width, width),
        },
        "ln_1": _layer_norm(rng, width),
        "mlp": {
            "c_fc": _linear(rng, width, 4 * width),
            "c_proj": _linear(rng, 4 * width, width),
        },
        "ln_2": _layer_norm(rng, width),
    }


def _bottleneck(
    rng: np.random.Generator, inputs: int, width: int, *, downsample: bool
) -> dict[str, Any]:
    block: dict[str, Any] = {}
    shapes = ((1, inputs, width), (3, width, width), (1, width, 4 * width))
    for i, (size, wide, narrow) in enumerate(shapes, start=1):
        block[f"conv{i}"] = {"kernel": _convolution(rng, size, wide, narrow)}
        block[f"bn{i}"] = _batch_norm(rng, narrow)
    if downsample:
        block["downsample"] = {
            "0": {"kernel": _convolution(rng, 1, inputs, 4 * width)},
            "1": _batch_norm(rng, 4 * width),
        }
    return block


def _convolution(rng: np.random.Generator, size: int, inputs: int, outputs: int) -> np.ndarray:
    return _matrix(rng, size * size * inputs, outputs, (size, size, inputs))


def _batch_norm(rng: np.random.Generator, width: int) -> dict[str, np.ndarray]:
    statistics = {"mean": 0.3 * rng.normal(size=width), "var": rng.uniform(0.4, 1.6, size=width)}
    return {**_layer_norm(rng, width), **statistics}


def _linear(rng: np.random.Generator, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {"kernel": _matrix(rng, inputs, outputs), "bias": 0.3 * rng.normal(size=outputs)}


def _layer_norm(rng: np.random.Generator, width: int) -> dict[str, np.ndarray]:
    return {"scale": rng.uniform(0.6, 1.4, size=width), "bias": 0.3 * rng.normal(size=width)}


def _matrix(
    rng: np.random.Generator, inputs: int, outputs: int, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """[inputs, outputs], or [*shape, outputs]; keeps the size of what it multiplies."""
    return rng.normal(size=(*(shape or (inputs,)), outputs)) * inputs**-0.5
