"""Our config from Hugging Face's `config.json` of CLIP, MetaCLIP 2 or SigLIP, whole or a tower."""

from collections.abc import Mapping
from typing import Any

from jaxclip.config import Activation, ClipConfig, TextConfig, TowerConfig, VisionConfig
from jaxclip.convert.archive.inert import short_repr

from . import refusals
from .compare import own_activation
from .huggingface_families import (
    FAMILIES,
    LARGEST_ID_POOLING,
    METACLIP2,
    PROJECTION_DIM,
    SIGLIP,
    Family,
)
from .infer import mlp_width
from .table import Config

CONFIG_NAME = "config.json"
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


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
