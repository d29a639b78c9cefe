"""The name and shape of every parameter of a model, as its config determines them.

They are those that the Flax modules have, written down a second time because what reads files
imports no jax; a test compares the two for every released model.
"""

from typing import TypeAlias

from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]


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
    bias: Shapes = {"logit_bias": ()} if config.logit_bias else {}
    return {"logit_scale": (), **bias, **tower, **_text(config.text, e)}
