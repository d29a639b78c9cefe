"""A model's config from the shapes of its parameters, as clip/model.py: build_model reads them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxclip.config import Activation, ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.shapes import Shape

Heads: TypeAlias = tuple[int, int]  # of the image tower, of the text tower
HEAD_WIDTH = 64  # of every head of the models that OpenAI released (clip/model.py: CLIP)


def kind(path: str) -> str:
    """How a parameter lies in memory: "convolution", "joint", "linear", "projection" or "plain"."""
    leaf = path.rpartition(".")[2]
    if (leaf == "kernel" and "conv" in path) or path.endswith("downsample.0.kernel"):
        return "convolution"
    if leaf == "in_proj_kernel":
        return "joint"
    if leaf == "kernel" or leaf.endswith("_proj_kernel"):
        return "linear"
    return "projection" if path in ("visual.proj", "text.text_projection") else "plain"


# From shapes to sizes -----------------------------------------------------------------------------


def _side(positions: int, what: str) -> int:
    """The side of the square grid that so many positions and one more token stand for."""
    side = math.isqrt(positions - 1) if positions > 1 else 0
    if side < 1 or side**2 + 1 != positions:
        raise ValueError(
            f"{what}: expected a square and one more positions, got {positions}; another grid "
            "needs the config beside its weights"
        )
    return side


def mlp_width(width: int, inner: int) -> int | None:
    """`mlp_width` of a config: none where it is four times the width."""
    return None if inner == 4 * width else inner


def _blocks(
    shape: Callable[[str, int], Shape], layers: Callable[[str], int], path: str
) -> dict[str, Any]:
    """Layers and MLP width of the transformer at that path."""
    count = layers(f"{path}.resblocks.{{}}.ln_1.bias")
    width, inner = shape(f"{path}.resblocks.0.mlp.c_fc.kernel", 2)
    return {"layers": count, "mlp_width": mlp_width(width, inner)}


def infer(
    shape: Callable[[str, int], Shape],
    layers: Callable[[str], int],
    *,
    is_resnet: bool,
    image_size: int | None = None,
) -> ClipConfig:
    """The config of a model as far as its shapes show it: transformers with one head each.

    The rest is as in the released models: class token, `ln_pre`, causal text, pooled at the largest
    id. Shapes cannot show another model.

    shape: of the parameter of that path of ours and that rank; ValueError where there is none.
    layers: how many numbers stand in the place of `{}` in a path of ours.
    image_size: where the file says it; a ResNet's shapes show it to a multiple of 32 only.
    """
    width, embed_dim = shape("text.text_projection", 2)
    vision: VisionConfig | ResNetConfig
    if is_resnet:
        stem = shape("visual.conv3.kernel", 4)[3]
        one, two, three, four = (layers(f"visual.layer{i}.{{}}.bn1.bias") for i in (1, 2, 3, 4))
        seen = 32 * _side(shape("visual.attnpool.positional_embedding", 2)[0], "the attention pool")
        vision = ResNetConfig(image_size or seen, stem, (one, two, three, four))
    else:
        patch, across, _, d = shape("visual.conv1.kernel", 4)
        if patch != across:
            raise ValueError(
                f"the image tower: expected square patches, got {patch} x {across}; they need the "
                "config beside the weights"
            )
        side = _side(shape("visual.positional_embedding", 2)[0], "the image tower")
        sizes = _blocks(shape, layers, "visual.transformer")
        vision = VisionConfig(side * patch, patch, d, heads=1, **sizes)
    text = TextConfig(
        width,
        heads=1,
        context_length=shape("text.positional_embedding", 2)[0],
        vocab_size=shape("text.token_embedding.embedding", 2)[0],
        **_blocks(shape, layers, "text.transformer"),
    )
    return ClipConfig(vision, text, embed_dim)


def complete(config: ClipConfig, activation: Activation, heads: Heads) -> ClipConfig:
    """The config with what shapes do not show; ValueError where the widths do not suit the heads.

    heads: of the image tower and of the text tower.
    """
    image, text = heads
    vision = config.vision
    if not isinstance(vision, ResNetConfig):
        vision = dataclasses.replace(vision, heads=image)
    elif image != vision.heads:
        raise ValueError(f"expected {vision.heads} heads of the attention pool, got {image}")
    towers: dict[str, Any] = {"vision": vision}
    towers["text"] = dataclasses.replace(config.text, heads=text)
    return dataclasses.replace(config, **towers, activation=activation)
