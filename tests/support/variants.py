"""Tiny random models of every way in which a tower may differ from the released ones."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxclip import shapes
from jaxclip.config import ClipConfig, TextConfig, TowerConfig, VisionConfig
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.training.sigmoid import sigmoid_loss

# Like the released models but tiny: what a variant changes is added to these.
PICTURES: dict[str, Any] = dict(image_size=20, patch_size=5, width=24, layers=3, heads=3)
TEXTS: dict[str, Any] = dict(width=16, layers=3, heads=2, context_length=13, vocab_size=101)
SIGLIP_PICTURES: dict[str, Any] = dict(
    layer_norm_epsilon=1e-6,
    patch_bias=True,
    class_token=False,
    pre_norm=False,
    pooling="attention",
    projection="none",
)
SIGLIP_TEXTS: dict[str, Any] = dict(
    layer_norm_epsilon=1e-6, causal=False, pooling="last", projection="linear"
)


def config(
    pictures: dict[str, Any] | None = None, texts: dict[str, Any] | None = None, **whole: Any
) -> ClipConfig:
    """A tiny model with these fields of its towers, and of the whole."""
    vision = VisionConfig(**PICTURES | (pictures or {}))
    options = {"embed_dim": vision.width if vision.projection == "none" else 7} | whole
    return ClipConfig(vision, TextConfig(**TEXTS | (texts or {})), **options)


VARIANTS: dict[str, ClipConfig] = {
    # open_clip's ViT-H, g and bigG: heads of 80 and so on, MLPs of other widths
    "wide heads": config({"width": 40, "heads": 2}, {"width": 24, "heads": 2}, activation="gelu"),
    "narrow MLP": config({"mlp_width": 61}, {"mlp_width": 37}, activation="gelu"),
    "epsilon": config({"layer_norm_epsilon": 1e-6}, {"layer_norm_epsilon": 1e-6}),
    "own activation": config({"own_activation": "gelu_tanh"}, {"own_activation": "gelu"}),
    "left over pixels": config({"image_size": 24}),
    "tall pictures": config({"image_size": (31, 15)}),  # a pixel is left over below
    "wide pictures": config({"image_size": (10, 27), "pooling": "mean"}, {"projection": "linear"}),
    "oblong patches": config({"image_size": (24, 25), "patch_size": (4, 5)}),
    "patch bias": config({"patch_bias": True}),
    "no class token": config({"class_token": False, "pooling": "mean"}),
    "no ln_pre": config({"pre_norm": False}),
    "mean": config({"pooling": "mean"}),
    "mean, norm after": config({"pooling": "mean", "norm_after_pooling": True}),
    "attention": config({"pooling": "attention"}),
    "attention, norm after": config({"pooling": "attention", "norm_after_pooling": True}),
    "linear": config({"projection": "linear"}, {"projection": "linear"}),
    "no projection": config({"projection": "none"}, {"width": 24, "projection": "none"}),
    "not causal": config(texts={"causal": False}),
    "end token": config(texts={"pooling": "end", "end_token": 3}),
    "last": config(texts={"pooling": "last"}),
    "first": config(texts={"causal": False, "pooling": "first"}),
    "queries": config({"pooling": "queries", "queries": 5, "pool_heads": 2}, embed_dim=14),
    "class token of text": config(texts={"pooling": "class_token"}),
    "class token, not causal": config(texts={"pooling": "class_token", "causal": False}),
    # whole families
    "SigLIP": config(SIGLIP_PICTURES, SIGLIP_TEXTS, activation="gelu", logit_bias=True),
    "SigLIP 2": config(
        SIGLIP_PICTURES | {"image_size": 23, "mlp_width": 67},
        SIGLIP_TEXTS | {"own_activation": "gelu_tanh"},
        activation="gelu",
        logit_bias=True,
    ),
}
SINGLE: dict[str, TowerConfig] = {
    "text": TowerConfig(TextConfig(**TEXTS, projection="none"), 16),
    "projected text": TowerConfig(TextConfig(**TEXTS, pooling="end", end_token=3), 7, "gelu"),
    "pictures": TowerConfig(VisionConfig(**PICTURES), 7, "gelu"),
    "SigLIP's pictures": TowerConfig(VisionConfig(**PICTURES | SIGLIP_PICTURES), 24, "gelu_tanh"),
}


def with_epsilon(config: ClipConfig, epsilon: float) -> ClipConfig:
    """The same model with another epsilon in every layer norm of its transformers."""
    change: dict[str, Any] = {"layer_norm_epsilon": epsilon}
    text = dataclasses.replace(config.text, **change)
    if not isinstance(config.vision, VisionConfig):
        return dataclasses.replace(config, text=text)
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, **change), text=text
    )


def flat(config: ClipConfig | TowerConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters of `config` in float64, as far from neutral values as `tiny.params`."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in sorted(shapes.parameters(config).items()):
        leaf = name.rpartition(".")[2]
        if name in ("logit_scale", "logit_bias"):
            found[name] = np.array(2.1 if name == "logit_scale" else -1.5)
        elif leaf == "scale":
            found[name] = rng.uniform(0.6, 1.4, size=shape)
        elif "embedding" in leaf or name == "visual.conv1.bias":
            found[name] = 0.03 * rng.normal(size=shape)
        elif len(shape) == 1:
            found[name] = (1.0 if leaf == "probe" else 0.3) * rng.normal(size=shape)
        else:
            gain = {"in_proj_kernel": 1.5}.get(leaf, 0.03 if "conv1" in name else 1.0)
            inputs = np.prod(shape[:-1])
            found[name] = gain * rng.normal(size=shape) * (inputs if gain != 0.03 else 1) ** -0.5
    return found


def batch(
    config: ClipConfig | TowerConfig, seed: int = 0, n: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, h, w, 3], float64, and tokens [n, l]: start, words, end, and padding of ones.

    Ids 100 (the largest) and 3 both occur once, at different positions, as ends of text.
    """
    rng = np.random.default_rng(seed)
    vision, text = config.vision or VisionConfig(**PICTURES), config.text or TextConfig(**TEXTS)
    images = rng.normal(size=(n, *vision.image_sides, 3))
    tokens = np.ones((n, text.context_length), np.int32)
    for row in tokens:
        words = int(rng.integers(2, text.context_length - 3))
        row[0] = text.vocab_size - 2
        row[1 : 1 + words] = rng.integers(4, text.vocab_size - 2, size=words)
        row[1 + words], row[2 + words] = text.vocab_size - 1, 3
        if text.pooling == "class_token":  # which hides padding, of zeros
            row[3 + words :] = 0
    return images, tokens


@functools.cache
def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a variant, images in float32."""
    images, tokens = batch(VARIANTS[name])
    return images.astype(np.float32), tokens


def model(name: str, config: ClipConfig | None = None) -> clip.Clip:
    """The Flax model of a variant's weights, by its own config or by a wrong one."""
    return parameters.from_flat(flat(VARIANTS[name]), clip.abstract(config or VARIANTS[name]))


def model64(name: str) -> clip.Clip:
    """The same in float64 throughout."""
    like = clip.abstract(VARIANTS[name], numerics=Numerics(np.float64))
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float64), like)
    return parameters.from_flat(flat(VARIANTS[name]), wide)


def loss(model: clip.Clip, images: Any, tokens: Any) -> Any:
    """The loss that a model trains with."""
    I_e, T_e = model.embed(images, tokens)
    temperature = [parameter[...] for parameter in model.temperature()]
    return (sigmoid_loss if model.config.logit_bias else contrastive_loss)(I_e, T_e, *temperature)


gradient = jax.jit(jax.grad(loss))


@functools.cache
def plain_gradient(name: str) -> dict[str, np.ndarray]:
    """The gradient of a variant's loss in float64, by official name."""
    with jax.enable_x64(True):
        return parameters.to_flat(gradient(model64(name), *inputs(name)))
