"""`config.json` of Hugging Face's CLIP, MetaCLIP 2 and SigLIP, whole or one tower, both ways.

A config names only what is not at the library's default, and `text_config` may be missing
altogether. The defaults are those of transformers 5.23.0, models/*/configuration_*.py; the same
values stand in every version since 4.31 (clip), 4.37 (siglip) and 4.56 (metaclip_2).

Where CLIP's text tower pools hangs on `eos_token_id`: 2, which the first files have by mistake,
means the largest id, any other value its first occurrence (modeling_clip.py: CLIPTextModel).
MetaCLIP 2 always takes the first occurrence, of 2 as well.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jaxclip.checkpoint import shorten
from jaxclip.config import (
    Activation,
    ClipConfig,
    ResNetConfig,
    TextConfig,
    TowerConfig,
    VisionConfig,
    name_sides,
)
from jaxclip.convert.archive.inert import short_repr

from . import refusals
from .compare import config_faults, own_activation, tower_activations
from .infer import mlp_width
from .table import Config

CONFIG_NAME = "config.json"
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_WRITTEN = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
LARGEST_ID_POOLING = 2  # the `eos_token_id` of the first files, which was a mistake
PROJECTION_DIM = 512


class Family(NamedTuple):
    """A class of transformers and the defaults of its config."""

    model: str  # class names begin with it
    model_type: str  # of the whole; its towers' end in _text_model and _vision_model
    text: dict[str, Any]
    vision: dict[str, Any]


_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,  # 2 before version 4.31
    "projection_dim": PROJECTION_DIM,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": PROJECTION_DIM,
}
_SIGLIP_TEXT = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "projection_size": None,  # then `hidden_size`
}
_SIGLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
CLIP = Family("CLIP", "clip", _CLIP_TEXT, _CLIP_VISION)
METACLIP2 = Family("MetaClip2", "metaclip_2", _CLIP_TEXT, _CLIP_VISION)
SIGLIP = Family("Siglip", "siglip", _SIGLIP_TEXT, _SIGLIP_VISION)
FAMILIES = {family.model_type: family for family in (CLIP, METACLIP2, SIGLIP)}


# From theirs to ours ------------------------------------------------------------------------------


def _tower(data: Mapping[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """One tower's config with defaults; `..._dict` overrides it, as in the library."""
    parts = [data.get(key) for key in (name, f"{name}_dict")]
    for part in parts:
        if part is not None and type(part) is not dict:
            raise ValueError(f"{name}: expected a JSON object, got {short_repr(part)}")
    plain, override = parts
    return {**defaults, **(plain or {}), **({**defaults, **override} if override else {})}


def _activation(tower: Mapping[str, Any]) -> Activation:
    name = tower["hidden_act"]
    if type(name) is not str or name not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {short_repr(name)}"
        )
    return ACTIVATIONS[name]


def _block_fields(tower: Mapping[str, Any]) -> dict[str, Any]:
    width, inner, heads = (
        tower[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    for key, value in (("hidden_size", width), ("num_attention_heads", heads)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{key}: expected 1 or more, got {short_repr(value)}")
    return {
        "width": width,
        "layers": tower["num_hidden_layers"],
        "heads": heads,
        "mlp_width": mlp_width(width, inner),
        "layer_norm_epsilon": tower["layer_norm_eps"],
    }


def _vision(tower: Mapping[str, Any], family: Family, projection: str) -> VisionConfig:
    if tower["num_channels"] != 3:
        raise ValueError(f"num_channels: expected 3, got {short_repr(tower['num_channels'])}")
    variant: dict[str, Any] = {"projection": projection}
    if family is SIGLIP:
        if tower["vision_use_head"] is not True:
            refusals.refuse("SigLIP's image tower without its attention pool (vision_use_head)")
        variant = {"patch_bias": True, "class_token": False, "pre_norm": False}
        variant |= {"pooling": "attention", "projection": "none"}
    size, patch = (
        refusals.square_side(tower[key], key, "an image tower of transformers")
        for key in ("image_size", "patch_size")
    )
    return VisionConfig(size, patch, **_block_fields(tower), **variant)


def _pooling(tower: Mapping[str, Any], family: Family, said: Mapping[str, Any]) -> dict[str, Any]:
    """`pooling` and `end_token` of a text tower of CLIP or MetaCLIP 2."""
    end, vocabulary = tower["eos_token_id"], tower["vocab_size"]
    if type(end) is not int:
        raise ValueError(f"eos_token_id: expected one id, got {short_repr(end)}")
    largest = vocabulary - 1 if type(vocabulary) is int else None
    if family is METACLIP2:
        return {"pooling": "end", "end_token": end}
    if "eos_token_id" not in said and end != largest:
        raise ValueError(
            f"eos_token_id: expected it in a config with a vocabulary of {vocabulary}, got none; "
            "transformers took 2, the largest id, before version 4.31 and takes 49407 now: write "
            "the one that is meant"
        )
    if end in (LARGEST_ID_POOLING, largest):
        return {"pooling": "largest"}
    return {"pooling": "end", "end_token": end}


def _text(
    tower: Mapping[str, Any], family: Family, projection: str, said: Mapping[str, Any]
) -> TextConfig:
    if family is SIGLIP:
        variant: dict[str, Any] = {"causal": False, "pooling": "last", "projection": "linear"}
    else:
        variant = {"projection": projection, **_pooling(tower, family, said)}
    return TextConfig(
        context_length=tower["max_position_embeddings"],
        vocab_size=tower["vocab_size"],
        **_block_fields(tower),
        **variant,
    )


def _said(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the config itself says of a tower, without the defaults."""
    return {**(data.get(name) or {}), **(data.get(f"{name}_dict") or {})}


def _whole(data: Mapping[str, Any], family: Family) -> ClipConfig:
    text = _tower(data, "text_config", family.text)
    vision = _tower(data, "vision_config", family.vision)
    if family is SIGLIP:
        embed_dim = text["projection_size"] or text["hidden_size"]
    else:
        embed_dim = data.get("projection_dim", PROJECTION_DIM)
    image_tower, text_tower, activation = own_activation(
        _vision(vision, family, "matrix"),
        _activation(vision),
        _text(text, family, "matrix", _said(data, "text_config")),
        _activation(text),
    )
    return ClipConfig(image_tower, text_tower, embed_dim, activation, logit_bias=family is SIGLIP)


def _one_tower(
    data: Mapping[str, Any], family: Family, tower: str, has_projection: bool
) -> TowerConfig:
    """Of a config of that tower, or of a whole model."""
    name = f"{tower}_config"
    inside = name in data or f"{name}_dict" in data
    defaults = family.text if tower == "text" else family.vision
    settings = _tower(data, name, defaults) if inside else {**defaults, **data}
    projection = "matrix" if has_projection else "none"
    if tower == "vision":
        config: VisionConfig | TextConfig = _vision(settings, family, projection)
    else:
        said = _said(data, name) if inside else data
        config = _text(settings, family, projection, said)
    embed_dim = config.width
    if family is SIGLIP and tower == "text":
        embed_dim = settings["projection_size"] or config.width
    elif has_projection:
        embed_dim = settings["projection_dim"]
    return TowerConfig(config, embed_dim, _activation(settings))


def _family(data: Mapping[str, Any], is_siglip: bool) -> Family:
    """The family that the config names; ValueError where the tensors are of another."""
    refusals.check_model_type(data)
    kind = data.get("model_type", "siglip" if is_siglip else "clip")
    base = (
        kind.removesuffix("_text_model").removesuffix("_vision_model") if type(kind) is str else ""
    )
    family = FAMILIES.get(base)
    if family is None or (family is SIGLIP) != is_siglip:
        expected = "siglip" if is_siglip else "clip or metaclip_2"
        raise ValueError(f"model_type: expected {expected}, got {short_repr(kind)}")
    return family


def from_json(
    data: Mapping[str, Any], *, is_siglip: bool, tower: str | None, has_projection: bool = True
) -> Config:
    """The config that a `config.json` describes.

    is_siglip, tower ("text", "vision" or None for both), has_projection: as the tensors show them.
    ValueError names what the model has that this library does not.
    """
    try:
        family = _family(data, is_siglip)
        if tower is None:
            return _whole(data, family)
        return _one_tower(data, family, tower, has_projection)
    except ValueError as error:
        if "this file has" in str(error):
            raise
        raise ValueError(f"{CONFIG_NAME}: {error}") from None


# From ours to theirs ------------------------------------------------------------------------------


def family_of(config: Config) -> Family:
    """The family of transformers that such a model is written as."""
    text, vision = config.text, config.vision
    if isinstance(vision, VisionConfig) and vision.pooling == "attention":
        return SIGLIP
    if text is None:
        return CLIP
    if text.projection == "linear":
        return SIGLIP
    ends = (LARGEST_ID_POOLING, text.vocab_size - 1)
    return METACLIP2 if text.pooling == "end" and text.end_token in ends else CLIP


def processor_of(config: Config) -> Literal["CLIP", "Siglip"]:
    """The library's image processor for such a model."""
    return "Siglip" if family_of(config) is SIGLIP else "CLIP"


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
