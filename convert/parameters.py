"""Every parameter of a model under our name with its shape, and the way back: sizes off shapes.

The names are those that the Flax modules have, written down a second time because no converter
imports jax; a test compares the two for every released model.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

from jaxclip.config import (
    Activation,
    ClipConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]
HEAD_WIDTH = 64  # of every head, where the file does not say (clip/model.py: CLIP)


def kind(path: str) -> str:
    """How a parameter lies in memory: "convolution", "linear", "projection" or "plain"."""
    leaf = path.rpartition(".")[2]
    if (leaf == "kernel" and "conv" in path) or path.endswith("downsample.0.kernel"):
        return "convolution"
    if leaf in ("kernel", "in_proj_kernel"):
        return "linear"
    return "projection" if path in ("visual.proj", "text.text_projection") else "plain"


def _norm(path: str, d: int) -> Shapes:
    return {f"{path}.scale": (d,), f"{path}.bias": (d,)}


def _batch_norm(path: str, d: int) -> Shapes:
    return {**_norm(path, d), f"{path}.mean": (d,), f"{path}.var": (d,)}


def _linear(path: str, inputs: int, outputs: int) -> Shapes:
    return {f"{path}.kernel": (inputs, outputs), f"{path}.bias": (outputs,)}


def _convolution(path: str, size: int, inputs: int, outputs: int) -> Shapes:
    return {f"{path}.kernel": (size, size, inputs, outputs)}


def _transformer(path: str, d: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(layers):
        block = f"{path}.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_kernel": (d, 3 * d)}
        shapes |= {f"{block}.attn.in_proj_bias": (3 * d,)}
        shapes |= _linear(f"{block}.attn.out_proj", d, d)
        shapes |= _norm(f"{block}.ln_1", d)
        shapes |= _linear(f"{block}.mlp.c_fc", d, 4 * d)
        shapes |= _linear(f"{block}.mlp.c_proj", 4 * d, d)
        shapes |= _norm(f"{block}.ln_2", d)
    return shapes


def _vision_transformer(v: VisionConfig, e: int) -> Shapes:
    return {
        "visual.class_embedding": (v.width,),
        "visual.positional_embedding": (v.tokens, v.width),
        "visual.proj": (v.width, e),
        **_convolution("visual.conv1", v.patch_size, 3, v.width),
        **_norm("visual.ln_pre", v.width),
        **_transformer("visual.transformer", v.width, v.layers),
        **_norm("visual.ln_post", v.width),
    }


def _bottleneck(path: str, inputs: int, width: int, downsample: bool) -> Shapes:
    shapes: Shapes = {}
    for i, size, wide, narrow in (
        (1, 1, inputs, width),
        (2, 3, width, width),
        (3, 1, width, 4 * width),
    ):
        shapes |= _convolution(f"{path}.conv{i}", size, wide, narrow)
        shapes |= _batch_norm(f"{path}.bn{i}", narrow)
    if downsample:
        shapes |= _convolution(f"{path}.downsample.0", 1, inputs, 4 * width)
        shapes |= _batch_norm(f"{path}.downsample.1", 4 * width)
    return shapes


def _resnet(v: ResNetConfig, e: int) -> Shapes:
    shapes: Shapes = {}
    inputs = 3
    for i, outputs in ((1, v.width // 2), (2, v.width // 2), (3, v.width)):
        shapes |= _convolution(f"visual.conv{i}", 3, inputs, outputs)
        shapes |= _batch_norm(f"visual.bn{i}", outputs)
        inputs = outputs
    for stage, blocks in enumerate(v.layers):
        width = v.width * 2**stage
        for i in range(blocks):
            shapes |= _bottleneck(f"visual.layer{stage + 1}.{i}", inputs, width, i == 0)
            inputs = 4 * width
    d = v.features
    shapes |= {"visual.attnpool.positional_embedding": (v.tokens, d)}
    for name, outputs in (("k_proj", d), ("q_proj", d), ("v_proj", d), ("c_proj", e)):
        shapes |= _linear(f"visual.attnpool.{name}", d, outputs)
    return shapes


def _text(t: TextConfig, e: int) -> Shapes:
    shapes: Shapes = {
        "text.token_embedding.embedding": (t.vocab_size, t.width),
        "text.text_projection": (t.width, e),
    }
    if t.kind == "cbow":
        return shapes
    return {
        **shapes,
        "text.positional_embedding": (t.context_length, t.width),
        **_transformer("text.transformer", t.width, t.layers),
        **_norm("text.ln_final", t.width),
    }


def parameters(config: ClipConfig) -> Shapes:
    """{our path, one entry a layer: our shape} of every parameter and running statistic."""
    v, e = config.vision, config.embed_dim
    tower = _resnet(v, e) if isinstance(v, ResNetConfig) else _vision_transformer(v, e)
    return {"logit_scale": (), **tower, **_text(config.text, e)}


# From shapes to sizes -----------------------------------------------------------------------------


def _side(positions: int, what: str) -> int:
    """The side of the square grid that so many positions and one more token stand for."""
    side = math.isqrt(positions - 1) if positions > 1 else 0
    if side < 1 or side**2 + 1 != positions:
        raise ValueError(f"{what} has {positions} positions, the square of a grid and one expected")
    return side


def _heads(width: int, said: int | None, tower: str) -> int:
    if said is None and (width < HEAD_WIDTH or width % HEAD_WIDTH):
        raise ValueError(
            f"the {tower} tower is {width} wide, a multiple of {HEAD_WIDTH} was expected as the "
            "file does not say how many heads it has"
        )
    return width // HEAD_WIDTH if said is None else said


def infer(
    shape: Callable[[str, int], Shape],
    layers: Callable[[str], int],
    *,
    activation: Activation,
    is_resnet: bool,
    heads: tuple[int | None, int | None] = (None, None),
    image_size: int | None = None,
) -> ClipConfig:
    """The config of a model from its shapes, as clip/model.py: build_model reads them.

    shape: of the parameter of that path of ours and that rank; ValueError where there is none.
    layers: how many numbers stand in the place of `{}` in a path of ours.
    heads: of the image and of the text tower where the file says them, else width // 64.
    image_size: where the file says it; a ResNet's shapes show it to a multiple of 32 only.
    """
    width, embed_dim = shape("text.text_projection", 2)
    vision: VisionConfig | ResNetConfig
    if is_resnet:
        stem = shape("visual.conv3.kernel", 4)[3]
        one, two, three, four = (layers(f"visual.layer{i}.{{}}.bn1.bias") for i in (1, 2, 3, 4))
        seen = 32 * _side(shape("visual.attnpool.positional_embedding", 2)[0], "the attention pool")
        if stem % 2:
            raise ValueError(f"the stem of the ResNet is {stem} wide, an even width was expected")
        vision = ResNetConfig(image_size or seen, stem, (one, two, three, four))
        if heads[0] not in (None, vision.heads) or stem * 32 % HEAD_WIDTH:
            raise ValueError(
                f"{heads[0]} heads came for the attention pool, {vision.heads} expected"
            )
    else:
        patch, _, _, d = shape("visual.conv1.kernel", 4)
        side = _side(shape("visual.positional_embedding", 2)[0], "the image tower")
        vision = VisionConfig(
            side * patch,
            patch,
            d,
            layers("visual.transformer.resblocks.{}.ln_1.bias"),
            _heads(d, heads[0], "image"),
        )
    vocab_size, _ = shape("text.token_embedding.embedding", 2)
    text = TextConfig(
        width,
        layers("text.transformer.resblocks.{}.ln_1.bias"),
        _heads(width, heads[1], "text"),
        context_length=shape("text.positional_embedding", 2)[0],
        vocab_size=vocab_size,
    )
    return ClipConfig(vision, text, embed_dim, activation)
