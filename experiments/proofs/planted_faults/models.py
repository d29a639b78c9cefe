"""Configs and random weights of the exam's models: drawn by NumPy from a seed, in our layout.

The weights are those of a trained model as far as faults show by them: the sizes of the official
initialisation, but biases, gains and running statistics away from 0 and 1, and patches and
positions small enough that the first layer norm depends on its epsilon.
"""

import zlib
from functools import cache
from typing import Any

import numpy as np

from jaxclip.checkpoint import Flat
from jaxclip.config import RELEASED, ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.shapes import parameters

TINY = {
    # heads of 64 channels, as the official code has them
    "vit": ClipConfig(VisionConfig(32, 8, 128, 4, heads=2), TextConfig(64, 4, heads=1), 64),
    # other heads, exact GELU, both projections square
    "vit-gelu": ClipConfig(
        VisionConfig(48, 12, 64, 5, heads=4), TextConfig(64, 3, heads=4), 64, "gelu"
    ),
    "resnet": ClipConfig(ResNetConfig(96, 8, (1, 2, 1, 1)), TextConfig(64, 3, heads=1), 48),
}
FULL = {"ViT-B/32": RELEASED["ViT-B/32"]}
MODELS = TINY | FULL
SEED = 18
LOGIT_SCALES = {"vit": np.log(100), "vit-gelu": np.log(130), "resnet": np.log(60)}


def _depth(config: ClipConfig, name: str) -> int:
    """Residual blocks of a parameter's tower."""
    vision = config.vision
    image = sum(vision.layers) if isinstance(vision, ResNetConfig) else vision.layers
    return image if name.startswith("visual.") else config.text.layers


def _deviation(config: ClipConfig, name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation that the parameter is drawn with (clip/model.py: initialize)."""
    width = shape[-1] if name.endswith("embedding") else shape[0]
    match name.rpartition(".resblocks.")[2].split("."):
        case [_, "attn", "in_proj_kernel"]:
            return 1.5 * width**-0.5
        case [_, "attn", "out_proj", "kernel"]:
            return width**-0.5 * (2 * _depth(config, name)) ** -0.5
        case [_, "mlp", "c_fc", "kernel"]:
            return (2 * width) ** -0.5
        case [_, "mlp", "c_proj", "kernel"]:
            return (width / 4) ** -0.5 * (2 * _depth(config, name)) ** -0.5
    if name == "text.token_embedding.embedding":
        return 0.02
    if name == "text.positional_embedding":
        return 0.01
    if len(shape) == 4:
        patches = name == "visual.conv1.kernel" and not isinstance(config.vision, ResNetConfig)
        return (0.1 if patches else 2**0.5) * float(np.prod(shape[:-1])) ** -0.5
    return width**-0.5


def _draw(config: ClipConfig, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # of the name, not of the order
    leaf = name.rpartition(".")[2]
    if leaf == "var":
        return rng.uniform(0.5, 1.5, shape)
    if leaf == "scale":
        last = name.endswith("bn3.scale") and ".layer" in name  # adds to a shortcut
        return rng.uniform(0.2, 0.6, shape) if last else rng.uniform(0.6, 1.4, shape)
    if leaf == "mean":
        return rng.normal(0, 0.2, shape)
    if leaf in ("bias", "in_proj_bias"):
        return rng.normal(0, 0.1, shape)
    return rng.standard_normal(shape, np.float32) * np.float32(_deviation(config, name, shape))


@cache
def draw_weights(model: str, seed: int = SEED) -> Flat:
    """{our path: float32 array} of a model of the exam, the same on every machine."""
    config = MODELS[model]
    shapes = parameters(config)
    shapes.pop("logit_scale")
    flat = {n: _draw(config, n, shape, seed).astype(np.float32) for n, shape in shapes.items()}
    return flat | {"logit_scale": np.array(LOGIT_SCALES.get(model, np.log(100)), np.float32)}


def as_clip(model: str, seed: int = SEED) -> Any:
    """The model as a `jaxclip.Clip`, in float32."""
    from jaxclip.models.clip import abstract
    from jaxclip.models.parameters import from_flat

    return from_flat(draw_weights(model, seed), abstract(MODELS[model]))
