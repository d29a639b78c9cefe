"""Hugging Face's `config.json` of CLIP, MetaCLIP 2 or SigLIP from our config, whole or a tower."""

from typing import Any

from jaxclip.checkpoint import shorten
from jaxclip.config import (
    Activation,
    ResNetConfig,
    TextConfig,
    TowerConfig,
    VisionConfig,
    name_sides,
)

from .compare import config_faults, tower_activations
from .huggingface_config import from_json
from .huggingface_families import SIGLIP, Family, family_of
from .table import Config

_WRITTEN = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def _blocks_to_json(tower: VisionConfig | TextConfig, activation: Activation) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": _WRITTEN[activation],
        "layer_norm_eps": tower.layer_norm_epsilon,
    }


def _text_to_json(t: TextConfig, embed_dim: int, act: Activation, family: Family) -> dict[str, Any]:
    found = {
        "model_type": f"{family.model_type}_text_model",
        "vocab_size": t.vocab_size,
        "max_position_embeddings": t.context_length,
        **_blocks_to_json(t, act),
    }
    if family is SIGLIP:
        return {**found, "projection_size": embed_dim}
    end = t.vocab_size - 1 if t.end_token is None else t.end_token
    start = t.vocab_size - 2 if t.end_token is None else 0
    ends = {"pad_token_id": 1, "bos_token_id": start, "eos_token_id": end}
    return {**found, "projection_dim": embed_dim, **ends}


def _vision_to_json(
    v: VisionConfig, embed_dim: int, act: Activation, family: Family
) -> dict[str, Any]:
    found = {
        "model_type": f"{family.model_type}_vision_model",
        "num_channels": 3,
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        **_blocks_to_json(v, act),
    }
    return found if family is SIGLIP else {**found, "projection_dim": embed_dim}


def _one_tower_to_json(config: TowerConfig, family: Family) -> tuple[dict[str, Any], str]:
    """(content of `config.json`, "text" or "vision")."""
    activation = config.tower.own_activation or config.activation
    if isinstance(config.tower, TextConfig):
        data = _text_to_json(config.tower, config.embed_dim, activation, family)
        tower, name = "text", "TextModel"
    else:
        data = _vision_to_json(config.tower, config.embed_dim, activation, family)
        tower, name = "vision", "VisionModel"
    if family is not SIGLIP and config.tower.projection == "matrix":
        name += "WithProjection"
    return {"architectures": [f"{family.model}{name}"], **data}, tower


def _check_written(data: dict[str, Any], config: Config, tower: str | None) -> None:
    """ValueError where reading what was written gives another model."""
    one = config.tower if isinstance(config, TowerConfig) else None
    has_projection = one is None or one.projection != "none"
    is_siglip = family_of(config) is SIGLIP
    again = from_json(data, is_siglip=is_siglip, tower=tower, has_projection=has_projection)
    if faults := config_faults(again, config):
        name = f"{family_of(config).model} of transformers"
        raise ValueError(f"{name} has no such model: {shorten(faults)}; use the layout jaxclip")


def to_json(config: Config, dtype: str) -> dict[str, Any]:
    """The content of `config.json`; ValueError where transformers cannot build the model."""
    if isinstance(config.vision, ResNetConfig):
        raise ValueError(
            "Hugging Face's CLIPModel has no ResNet; use the layout openai or open_clip"
        )
    if (v := config.vision) is not None and not v.is_square:
        raise ValueError(
            "expected square pictures and patches, as an image tower of transformers takes, got "
            f"{name_sides(v.image_size)} and {name_sides(v.patch_size)}; use the layout open_clip "
            "or jaxclip"
        )
    family, e = family_of(config), config.embed_dim
    if isinstance(config, TowerConfig):
        data, tower = _one_tower_to_json(config, family)
        data["dtype"] = dtype
        _check_written(data, config, tower)
        return data
    of_images, of_texts = tower_activations(config)
    data = {
        "architectures": [f"{family.model}Model"],
        "model_type": family.model_type,
        "dtype": dtype,
        "text_config": _text_to_json(config.text, e, of_texts, family),
        "vision_config": _vision_to_json(config.vision, e, of_images, family),
    }
    if family is not SIGLIP:
        data |= {"projection_dim": e, "logit_scale_init_value": 2.6592}
    _check_written(data, config, None)
    return data
