"""Whole models in foreign layouts, written down without our converters: tiny, random, as released.

The keys and shapes are those of clip/model.py, in torch's order of axes; number formats are those
of the released files (float16 where `convert_weights` makes it, float32 elsewhere). Hugging Face's
layout is made from the official one by names and by cutting the joint projection in three.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.config import Activation, ClipConfig, ResNetConfig, TextConfig, VisionConfig

Arrays = dict[str, np.ndarray]
TEXT = TextConfig(64, 3, heads=1, context_length=13, vocab_size=101)
VIT = ClipConfig(VisionConfig(20, 5, 128, 12, 2), TEXT, 40)  # nothing square but out_proj
RESNET = ClipConfig(ResNetConfig(64, 8, (2, 1, 1, 1)), TEXT, 40)


def config(base: ClipConfig = VIT, activation: Activation = "quick_gelu") -> ClipConfig:
    return ClipConfig(base.vision, base.text, base.embed_dim, activation)


def _transformer(prefix: str, d: int, layers: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    for i in range(layers):
        block = f"{prefix}transformer.resblocks.{i}"
        yield f"{block}.attn.in_proj_weight", (3 * d, d)
        yield f"{block}.attn.in_proj_bias", (3 * d,)
        yield f"{block}.attn.out_proj.weight", (d, d)
        yield f"{block}.attn.out_proj.bias", (d,)
        yield from ((f"{block}.ln_1.{leaf}", (d,)) for leaf in ("weight", "bias"))
        yield f"{block}.mlp.c_fc.weight", (4 * d, d)
        yield f"{block}.mlp.c_fc.bias", (4 * d,)
        yield f"{block}.mlp.c_proj.weight", (d, 4 * d)
        yield f"{block}.mlp.c_proj.bias", (d,)
        yield from ((f"{block}.ln_2.{leaf}", (d,)) for leaf in ("weight", "bias"))


def _batch_norm(name: str, d: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (d,)
    yield f"{name}.num_batches_tracked", ()


def _vit(v: VisionConfig, e: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    yield "visual.class_embedding", (v.width,)
    yield "visual.positional_embedding", ((v.image_size // v.patch_size) ** 2 + 1, v.width)
    yield "visual.proj", (v.width, e)
    yield "visual.conv1.weight", (v.width, 3, v.patch_size, v.patch_size)
    for name in ("ln_pre", "ln_post"):
        yield from ((f"visual.{name}.{leaf}", (v.width,)) for leaf in ("weight", "bias"))
    yield from _transformer("visual.", v.width, v.layers)


def _resnet(v: ResNetConfig, e: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    half = v.width // 2
    for i, (inputs, outputs) in enumerate(((3, half), (half, half), (half, v.width)), start=1):
        yield f"visual.conv{i}.weight", (outputs, inputs, 3, 3)
        yield from _batch_norm(f"visual.bn{i}", outputs)
    inputs = v.width
    for stage in range(4):
        planes = v.width * 2**stage
        for i in range(v.layers[stage]):
            block = f"visual.layer{stage + 1}.{i}"
            for j, (o, c, k) in enumerate(
                ((planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1)), start=1
            ):
                yield f"{block}.conv{j}.weight", (o, c, k, k)
                yield from _batch_norm(f"{block}.bn{j}", o)
            if i == 0:
                yield f"{block}.downsample.0.weight", (4 * planes, inputs, 1, 1)
                yield from _batch_norm(f"{block}.downsample.1", 4 * planes)
            inputs = 4 * planes
    d = 32 * v.width
    yield "visual.attnpool.positional_embedding", ((v.image_size // 32) ** 2 + 1, d)
    for name, outputs in (("k_proj", d), ("q_proj", d), ("v_proj", d), ("c_proj", e)):
        yield f"visual.attnpool.{name}.weight", (outputs, d)
        yield f"visual.attnpool.{name}.bias", (outputs,)


def shapes(config: ClipConfig) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Every key of the official state dict, without buffers, in the official order."""
    t, e = config.text, config.embed_dim
    yield "positional_embedding", (t.context_length, t.width)
    yield "text_projection", (t.width, e)
    yield "logit_scale", ()
    vision = config.vision
    yield from _resnet(vision, e) if isinstance(vision, ResNetConfig) else _vit(vision, e)
    yield from _transformer("", t.width, t.layers)
    yield "token_embedding.weight", (t.vocab_size, t.width)
    yield "ln_final.weight", (t.width,)
    yield "ln_final.bias", (t.width,)


_HALF = re.compile(
    r".*(conv\d\.weight|downsample\.0\.weight|in_proj_(weight|bias)|_proj\.(weight|bias)"
    r"|c_fc\.(weight|bias)|visual\.proj|text_projection)"
)


def openai(config: ClipConfig = VIT, seed: int = 0, *, buffers: bool = True) -> Arrays:
    """A state dict as the released archives hold it; values as in `tests.support.tiny`."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    if buffers:
        t = config.text
        arrays["input_resolution"] = np.array(config.vision.image_size)
        arrays |= {"context_length": np.array(t.context_length)}
        arrays |= {"vocab_size": np.array(t.vocab_size)}
    for name, shape in shapes(config):
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(int(rng.integers(1, 1 << 40)))
            continue
        value = rng.normal(size=shape)
        if name == "logit_scale":
            value = np.array(2.1)
        elif name.endswith("running_var") or ("weight" in name and len(shape) == 1):
            value = rng.uniform(0.5, 1.5, size=shape)  # gains and variances
        elif "embedding" in name:
            value = value * 0.1
        elif len(shape) > 1:
            rows = name in ("visual.proj", "text_projection")
            value = value / np.sqrt(shape[0] if rows else np.prod(shape[1:]))
        else:
            value = value * 0.3
        arrays[name] = value.astype(np.float16 if _HALF.fullmatch(name) else np.float32)
    return arrays


def custom_text(arrays: Arrays) -> Arrays:
    """The keys of open_clip's CustomTextCLIP."""
    own = ("visual.", "logit_scale")
    return {k if k.startswith(own) else f"text.{k}": value for k, value in arrays.items()}


_RENAMED = (
    (r"^(visual\.)?transformer\.resblocks\.", r"\1encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
    (r"^visual\.conv1\.", "visual.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "visual.embeddings.class_embedding"),
    (r"^(visual\.)?positional_embedding$", r"\1embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^visual\.ln_pre\.", "visual.pre_layrnorm."),
    (r"^visual\.ln_post\.", "visual.post_layernorm."),
    (r"^ln_final\.", "final_layer_norm."),
)


def hugging_face(official: Arrays, *, position_ids: bool = False) -> Arrays:
    """The same model under the keys of CLIPModel."""
    arrays: Arrays = {}
    for name, value in official.items():
        if name in ("visual.proj", "text_projection"):
            arrays[f"{name.replace('.proj', '_projection')}.weight"] = value.T
            continue
        if name in ("logit_scale", "input_resolution", "context_length", "vocab_size"):
            if name == "logit_scale":
                arrays[name] = value
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        is_visual = name.startswith("visual.")
        name = f"vision_model.{name[7:]}" if is_visual else f"text_model.{name}"
        if (joint := re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", name)) is None:
            arrays[name] = value
            continue
        d = len(value) // 3
        for i, part in enumerate("qkv"):
            own = value[i * d : (i + 1) * d]
            arrays[f"{joint[1]}.self_attn.{part}_proj.{joint[2]}"] = own
    if position_ids:
        for tower in ("text_model", "vision_model"):
            length = len(arrays[f"{tower}.embeddings.position_embedding.weight"])
            arrays[f"{tower}.embeddings.position_ids"] = np.arange(length)[None]
    return {
        name: np.ascontiguousarray(value) if value.ndim else value for name, value in arrays.items()
    }


def hugging_face_config(config: ClipConfig = VIT, **changes: Any) -> dict[str, Any]:
    """`config.json`, as short as the library's defaults allow."""
    v, t = config.vision, config.text
    assert isinstance(v, VisionConfig)
    names = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
    act = {} if config.activation == "quick_gelu" else {"hidden_act": names[config.activation]}
    return {
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {
            "hidden_size": t.width,
            "intermediate_size": 4 * t.width,
            "num_hidden_layers": t.layers,
            "num_attention_heads": t.heads,
            "max_position_embeddings": t.context_length,
            "vocab_size": t.vocab_size,
            "eos_token_id": t.vocab_size - 1,
            **act,
        },
        "vision_config": {
            "hidden_size": v.width,
            "intermediate_size": 4 * v.width,
            "num_attention_heads": v.heads,
            "num_hidden_layers": v.layers,
            "image_size": v.image_size,
            "patch_size": v.patch_size,
            **act,
        },
        **changes,
    }


def open_clip_config(config: ClipConfig = VIT, **changes: Any) -> dict[str, Any]:
    """`open_clip_config.json`, as open_clip 3.3.0 has it for its models."""
    v, t = config.vision, config.text
    vision: dict[str, Any] = {"image_size": v.image_size, "width": v.width}
    if isinstance(v, ResNetConfig):
        vision |= {"layers": list(v.layers), "patch_size": None}
    else:
        vision |= {"layers": v.layers, "patch_size": v.patch_size}
    text = {
        "context_length": t.context_length,
        "vocab_size": t.vocab_size,
        "width": t.width,
        "heads": t.heads,
        "layers": t.layers,
    }
    model = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text, **changes}
    if config.activation == "quick_gelu":
        model["quick_gelu"] = True
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return {"model_cfg": model, "preprocess_cfg": {"mean": mean, "std": std}}


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
