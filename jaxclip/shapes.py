"""The name and shape of every parameter of a model, as its config determines them.

They are those that the Flax modules have, written down a second time because what reads files
imports no jax; a test compares the two for every released model.
"""

from typing import TypeAlias

from jaxclip.config import (
    ClipConfig,
    ResNetConfig,
    Sides,
    TextConfig,
    TowerConfig,
    VisionConfig,
    both_sides,
    pooled_width,
)

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]


def _norm(path: str, d: int) -> Shapes:
    return {f"{path}.scale": (d,), f"{path}.bias": (d,)}


def _batch_norm(path: str, d: int) -> Shapes:
    return {**_norm(path, d), f"{path}.mean": (d,), f"{path}.var": (d,)}


def _linear(path: str, inputs: int, outputs: int) -> Shapes:
    return {f"{path}.kernel": (inputs, outputs), f"{path}.bias": (outputs,)}


def _convolution(path: str, size: Sides, inputs: int, outputs: int) -> Shapes:
    return {f"{path}.kernel": (*both_sides(size), inputs, outputs)}


def _attention(path: str, d: int) -> Shapes:
    packed: Shapes = {f"{path}.in_proj_kernel": (d, 3 * d), f"{path}.in_proj_bias": (3 * d,)}
    return packed | _linear(f"{path}.out_proj", d, d)


def _mlp(path: str, d: int, inner: int) -> Shapes:
    return _linear(f"{path}.c_fc", d, inner) | _linear(f"{path}.c_proj", inner, d)


def _transformer(path: str, tower: VisionConfig | TextConfig) -> Shapes:
    shapes: Shapes = {}
    for i in range(tower.layers):
        block = f"{path}.resblocks.{i}"
        shapes |= _attention(f"{block}.attn", tower.width)
        shapes |= _norm(f"{block}.ln_1", tower.width)
        shapes |= _mlp(f"{block}.mlp", tower.width, tower.inner_width)
        shapes |= _norm(f"{block}.ln_2", tower.width)
    return shapes


def _projection(path: str, tower: VisionConfig | TextConfig, e: int) -> Shapes:
    width = pooled_width(tower, e)
    if tower.projection == "linear":
        return _linear(path, width, e)
    return {path: (width, e)} if tower.projection == "matrix" else {}


def _attention_pool(v: VisionConfig) -> Shapes:
    """SigLIP's: attention with a learned query, and an MLP beside a shortcut."""
    return {
        "visual.attnpool.probe": (v.width,),
        **_attention("visual.attnpool.attn", v.width),
        **_norm("visual.attnpool.ln", v.width),
        **_mlp("visual.attnpool.mlp", v.width, v.inner_width),
    }


def _query_pool(v: VisionConfig, e: int) -> Shapes:
    """CoCa's: attention with learned queries, e channels wide."""
    path, d = "visual.attn_pool", v.width
    assert v.queries is not None
    return {
        f"{path}.query": (v.queries, e),
        f"{path}.attn.q_proj_kernel": (e, e),
        f"{path}.attn.k_proj_kernel": (d, e),
        f"{path}.attn.v_proj_kernel": (d, e),
        f"{path}.attn.in_proj_bias": (3 * e,),
        **_linear(f"{path}.attn.out_proj", e, e),
        **_norm(f"{path}.ln_q", e),
        **_norm(f"{path}.ln_k", d),
    }


def _vision_transformer(v: VisionConfig, e: int) -> Shapes:
    """In the official order, from which the playground's weights are drawn."""
    shapes: Shapes = {"visual.class_embedding": (v.width,)} if v.class_token else {}
    shapes |= {"visual.positional_embedding": (v.tokens, v.width)}
    shapes |= _projection("visual.proj", v, e)
    shapes |= _convolution("visual.conv1", v.patch_size, 3, v.width)
    if v.patch_bias:
        shapes |= {"visual.conv1.bias": (v.width,)}
    if v.pre_norm:
        shapes |= _norm("visual.ln_pre", v.width)
    shapes |= _transformer("visual.transformer", v)
    shapes |= _norm("visual.ln_post", pooled_width(v, e))
    if v.pooling == "queries":
        shapes |= _query_pool(v, e)
    return shapes | _attention_pool(v) if v.pooling == "attention" else shapes


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
        **_projection("text.text_projection", t, e),
    }
    if t.kind == "cbow":
        return shapes
    if t.pooling == "class_token":
        shapes |= {"text.cls_emb": (t.width,)}
    return {
        **shapes,
        "text.positional_embedding": (t.positions, t.width),
        **_transformer("text.transformer", t),
        **_norm("text.ln_final", t.width),
    }


def _tower(tower: VisionConfig | ResNetConfig | TextConfig, e: int) -> Shapes:
    if isinstance(tower, TextConfig):
        return _text(tower, e)
    return _resnet(tower, e) if isinstance(tower, ResNetConfig) else _vision_transformer(tower, e)


def parameters(config: ClipConfig | TowerConfig) -> Shapes:
    """{our path, one entry a layer: our shape} of every parameter and running statistic."""
    e = config.embed_dim
    if isinstance(config, TowerConfig):
        return _tower(config.tower, e)
    bias: Shapes = {"logit_bias": ()} if config.logit_bias else {}
    return {"logit_scale": (), **bias, **_tower(config.vision, e), **_tower(config.text, e)}
