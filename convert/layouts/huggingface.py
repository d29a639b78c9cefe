"""The layout of Hugging Face's CLIPModel: its keys, split projections, and `config.json`.

It has no ResNets. Where a file's `eos_token_id` is 2 the library pools at the largest id, as the
official code and we do; with any other value at its first occurrence. The two are the same where
that id is the largest of the vocabulary; elsewhere the model is refused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.config import Activation, ClipConfig, ResNetConfig, VisionConfig
from jaxclip.convert.archive.inert import short_repr

from .table import Extras, Layout

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
LAYER_NORM_EPSILON = 1e-5

# Ours -> theirs, outside the blocks.
MODULES = {
    "visual.conv1.kernel": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.scale": "vision_model.pre_layrnorm.weight",  # so spelled
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.scale": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "text.token_embedding.embedding": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.scale": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
    "text.text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "text.transformer.resblocks": "text_model.encoder.layers",
}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # in the order of in_proj
BLOCK = {
    "attn.in_proj_kernel": tuple(f"{part}.weight" for part in QKV),
    "attn.in_proj_bias": tuple(f"{part}.bias" for part in QKV),
    "attn.out_proj.kernel": ("self_attn.out_proj.weight",),
    "attn.out_proj.bias": ("self_attn.out_proj.bias",),
    "ln_1.scale": ("layer_norm1.weight",),
    "ln_1.bias": ("layer_norm1.bias",),
    "mlp.c_fc.kernel": ("mlp.fc1.weight",),
    "mlp.c_fc.bias": ("mlp.fc1.bias",),
    "mlp.c_proj.kernel": ("mlp.fc2.weight",),
    "mlp.c_proj.bias": ("mlp.fc2.bias",),
    "ln_2.scale": ("layer_norm2.weight",),
    "ln_2.bias": ("layer_norm2.bias",),
}
AXES = {
    "linear": (1, 0),  # [out, in] -> [in, out]
    "projection": (1, 0),  # [e, d] -> [d, e]
    "convolution": (2, 3, 1, 0),  # [out, in, h, w] -> [h, w, in, out]
}
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_WRITTEN = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

# transformers/models/clip/configuration_clip.py: the defaults of a config.
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": LAYER_NORM_EPSILON,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": LAYER_NORM_EPSILON,
}
EOS_TOKEN_ID = 49407
PROJECTION_DIM = 512
LARGEST_ID_POOLING = 2  # the `eos_token_id` of the first files, which was a mistake


def names(path: str) -> tuple[str, ...]:
    if path in MODULES:
        return (MODULES[path],)
    for ours, theirs in TOWERS.items():
        if path.startswith(f"{ours}."):
            layer, _, rest = path.removeprefix(f"{ours}.").partition(".")
            return tuple(f"{theirs}.{layer}.{part}" for part in BLOCK[rest])
    raise ValueError(f"{path}: expected a parameter of a Transformer; this layout has no other")


def extras(config: ClipConfig) -> list[Extras]:
    """`position_ids` 0, 1, 2, ..., which files from before 2023 hold."""
    lengths = {"text_model": config.text.context_length, "vision_model": config.vision.tokens}
    return [
        {f"{tower}.embeddings.position_ids": np.arange(length, dtype=np.int64)[None]}
        for tower, length in lengths.items()
    ]


LAYOUT = Layout("huggingface", names, AXES, extras)


def to_json(config: ClipConfig, dtype: str) -> dict[str, Any]:
    """The content of `config.json`; ValueError where transformers cannot build the model."""
    v, t = config.vision, config.text
    if isinstance(v, ResNetConfig):
        raise ValueError(
            "Hugging Face's CLIPModel has no ResNet; use the layout openai or open_clip"
        )
    activation = _WRITTEN[config.activation]
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": dtype,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": t.vocab_size,
            "hidden_size": t.width,
            "intermediate_size": 4 * t.width,
            "projection_dim": config.embed_dim,
            "num_hidden_layers": t.layers,
            "num_attention_heads": t.heads,
            "max_position_embeddings": t.context_length,
            "hidden_act": activation,
            "layer_norm_eps": LAYER_NORM_EPSILON,
            "pad_token_id": 1,
            "bos_token_id": t.vocab_size - 2,
            "eos_token_id": t.vocab_size - 1,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": v.width,
            "intermediate_size": 4 * v.width,
            "projection_dim": config.embed_dim,
            "num_hidden_layers": v.layers,
            "num_attention_heads": v.heads,
            "num_channels": 3,
            "image_size": v.image_size,
            "patch_size": v.patch_size,
            "hidden_act": activation,
            "layer_norm_eps": LAYER_NORM_EPSILON,
        },
    }


def _tower(data: Mapping[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """One tower's config with defaults; `..._dict` overrides it, as in the library."""
    parts = [data.get(key) for key in (name, f"{name}_dict")]
    for part in parts:
        if part is not None and type(part) is not dict:
            raise ValueError(f"{name}: expected a JSON object, got {short_repr(part)}")
    plain, override = parts
    return {**defaults, **(plain or {}), **({**defaults, **override} if override else {})}


def _towers(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    text = _tower(data, "text_config", {**TEXT, "eos_token_id": EOS_TOKEN_ID})
    return text, _tower(data, "vision_config", VISION)


def activation(data: Mapping[str, Any]) -> Activation:
    """The activation that both towers name."""
    named = [tower["hidden_act"] for tower in _towers(data)]
    for name in named:
        if type(name) is not str or name not in ACTIVATIONS:
            raise ValueError(
                f"{CONFIG_NAME}: hidden_act: expected one of {', '.join(ACTIVATIONS)}, got "
                f"{short_repr(name)}"
            )
    found = {ACTIVATIONS[name] for name in named}
    if len(found) > 1:
        raise ValueError(
            f"{CONFIG_NAME}: hidden_act: expected one activation for both towers, got {named[0]} "
            f"and {named[1]}; this library has one for both"
        )
    return found.pop()


def heads(data: Mapping[str, Any]) -> tuple[int, int]:
    """(heads of the image tower, heads of the text tower)."""
    text, vision = (tower["num_attention_heads"] for tower in _towers(data))
    for value in (text, vision):
        if type(value) is not int or value < 1:
            raise ValueError(
                f"{CONFIG_NAME}: num_attention_heads: expected 1 or more, got {short_repr(value)}"
            )
    return vision, text


def check(data: Mapping[str, Any], config: ClipConfig) -> None:
    """ValueError listing where a `config.json` describes another model than `config`."""
    assert isinstance(config.vision, VisionConfig)
    expected = to_json(config, "float32")
    faults = []
    for tower, name, defaults in zip(
        _towers(data), ("text_config", "vision_config"), (TEXT, VISION), strict=True
    ):
        for key in defaults.keys() - {"hidden_act"}:
            got, wanted = tower[key], expected[name][key]
            if type(got) not in (int, float) or got != wanted:
                faults.append(f"{name}.{key}: expected {wanted}, got {short_repr(got)}")
    if data.get("projection_dim", PROJECTION_DIM) != config.embed_dim:
        got = short_repr(data.get("projection_dim"))
        faults.append(f"projection_dim: expected {config.embed_dim}, got {got}")
    end, largest = _towers(data)[0]["eos_token_id"], config.text.vocab_size - 1
    if type(end) is not int or end not in (LARGEST_ID_POOLING, largest):
        faults.append(
            f"eos_token_id: expected {LARGEST_ID_POOLING} or the largest id {largest}, at which "
            f"this library pools, got {short_repr(end)}"
        )
    if data.get("model_type", "clip") != "clip":
        faults.append(f"model_type: expected 'clip', got {short_repr(data['model_type'])}")
    if faults:
        raise ValueError(
            f"{CONFIG_NAME} does not describe the weights: {'; '.join(sorted(faults))}"
        )
