"""Our config from open_clip's `open_clip_config.json`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.checkpoint import shorten
from jaxclip.config import Activation, ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.convert.archive.inert import short_repr

from . import refusals, timm_trunk
from .compare import own_activation
from .infer import HEAD_WIDTH, mlp_width

CONFIG_NAME = "open_clip_config.json"

# open_clip/model.py: CLIPVisionCfg, CLIPTextCfg of version 3.3.0: the defaults.
_BLOCKS = {
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "final_ln_after_pool": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
VISION: dict[str, Any] = {
    **_BLOCKS,
    "layers": 12,
    "width": 768,
    "head_width": HEAD_WIDTH,
    "patch_size": 16,
    "image_size": 224,
    "attentional_pool": False,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "timm_model_name": None,
}
TEXT: dict[str, Any] = {
    **_BLOCKS,
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "embed_cls": False,
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "hf_model_name": None,
}
# Settings without effect on the results while the feature that they belong to is off, or of the
# tokenizer.
NO_EFFECT = {
    "patch_dropout",
    "output_tokens",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "tokenizer_mode",
    "tokenizer_kwargs",
    "hf_tokenizer_name",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
}
# Read into a config; every other setting must have its default.
VISION_READ = {"layers", "width", "head_width", "patch_size", "image_size", "mlp_ratio"}
VISION_READ |= {"act_kwargs", "norm_kwargs", "no_ln_pre", "final_ln_after_pool", "pool_type"}
VISION_READ |= {"attentional_pool", "attn_pooler_queries", "attn_pooler_heads"}
TEXT_READ = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "act_kwargs"}
TEXT_READ |= {"norm_kwargs", "eos_id", "no_causal_mask", "pool_type", "proj_bias", "proj_type"}
TEXT_READ |= {"embed_cls"}
MODEL: dict[str, Any] = {
    "quick_gelu": False,
    "custom_text": False,
    "nonscalar_logit_scale": False,
    "init_logit_bias": None,
}
MODEL_NO_EFFECT = {"embed_dim", "vision_cfg", "text_cfg", "init_logit_scale", "cast_dtype"}
MODEL_NO_EFFECT |= {"output_dict", "custom_text", "init_logit_bias"}
MODEL_NO_EFFECT |= {"multimodal_cfg"}  # of CoCa's decoder, which is left out
VISION_POOLING = {"tok": "class", "avg": "mean"}
TEXT_POOLING = {"argmax": "largest", "eos": "end", "last": "last", "first": "first"}


def _part(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    if type(value) is not dict:
        raise ValueError(f"{name}: expected a JSON object, got {short_repr(value)}")
    return value


def _differences(
    got: Mapping[str, Any], defaults: Mapping[str, Any], no_effect: set[str]
) -> list[str]:
    """The settings that are unknown, or not at their default, each as a text."""
    got = {key: value for key, value in got.items() if key not in no_effect}
    unknown = [f"{short_repr(key)} is unknown" for key in got if key not in defaults]
    return unknown + [
        f"{key}: expected {defaults[key]!r}, got {short_repr(got[key])}"
        for key in defaults
        if key in got and not is_same_setting(got[key], defaults[key])
    ]


def is_same_setting(got: Any, wanted: Any) -> bool:
    """Whether two values are equal; 1 is not True, and floats are compared to six places."""
    if type(wanted) is list and type(got) is list and len(got) == len(wanted):
        return all(map(is_same_setting, got, wanted))
    if type(wanted) is float and type(got) in (int, float):
        return bool(np.isclose(got, wanted, rtol=0, atol=1e-6))
    if type(wanted) is dict and type(got) is dict:
        return got.keys() == wanted.keys() and all(
            is_same_setting(got[key], wanted[key]) for key in wanted
        )
    if wanted is None and got == {}:
        return True
    return type(got) is type(wanted) and bool(got == wanted)


def _activation(cfg: Mapping[str, Any], quick_gelu: bool) -> Activation:
    kwargs = cfg["act_kwargs"]
    if kwargs in (None, {}):
        return "quick_gelu" if quick_gelu else "gelu"
    if kwargs != {"approximate": "tanh"} or quick_gelu:
        raise ValueError(
            "act_kwargs: expected none or {'approximate': 'tanh'} without quick_gelu, got "
            f"{short_repr(str(kwargs))}"
        )
    return "gelu_tanh"


def _number(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value < 1 << 24:
        raise ValueError(f"{name}: expected an integer of 1 or more, got {short_repr(value)}")
    return value


def _block_fields(cfg: Mapping[str, Any]) -> dict[str, Any]:
    width, ratio, norm = _number(cfg["width"], "width"), cfg["mlp_ratio"], cfg["norm_kwargs"]
    if type(ratio) not in (int, float) or not 0 < ratio <= 1024:
        raise ValueError(f"mlp_ratio: expected a number up to 1024, got {short_repr(ratio)}")
    norm = {} if norm is None else norm
    if type(norm) is not dict or norm.keys() - {"eps"}:
        raise ValueError(f"norm_kwargs: expected eps alone, got {short_repr(str(norm))}")
    return {
        "width": width,
        "layers": cfg["layers"],
        "mlp_width": mlp_width(width, int(width * ratio)),
        "layer_norm_epsilon": norm.get("eps", 1e-5),
    }


def _choice(cfg: Mapping[str, Any], key: str, known: Mapping[str, str]) -> Any:
    value = cfg[key]
    if type(value) is not str or value not in known:
        raise ValueError(f"{key}: expected one of {', '.join(known)}, got {short_repr(value)}")
    return known[value]


def _flag(cfg: Mapping[str, Any], key: str) -> bool:
    if type(cfg[key]) is not bool:
        raise ValueError(f"{key}: expected true or false, got {short_repr(cfg[key])}")
    return bool(cfg[key])


def _queries(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of CoCa's pooler, whose first query stands for the picture."""
    if cfg["pool_type"] != "tok":
        raise ValueError(
            "pool_type: expected 'tok' with attentional_pool, the first query, got "
            f"{short_repr(cfg['pool_type'])}"
        )
    return {
        "pooling": "queries",
        "queries": cfg["attn_pooler_queries"],
        "pool_heads": cfg["attn_pooler_heads"],
    }


def _vision(data: Mapping[str, Any], quick_gelu: bool) -> tuple[Any, Activation | None]:
    """(config, activation) of the image tower; a ResNet has ReLU instead."""
    if data.get("timm_model_name") is not None:
        return timm_trunk.tower(data)  # always with its own activation
    cfg = {**VISION, **data}
    if type(cfg["layers"]) is list:
        size = refusals.square_side(cfg["image_size"], "image_size", "a ResNet")
        if cfg["head_width"] != HEAD_WIDTH:
            raise ValueError(f"head_width: expected 64 of a ResNet, got {cfg['head_width']!r:.40}")
        return ResNetConfig(size, cfg["width"], tuple(cfg["layers"])), None
    fields = _block_fields(cfg)
    head = _number(cfg["head_width"], "head_width")
    if cfg["attentional_pool"]:
        fields |= _queries(cfg)
    config = VisionConfig(
        refusals.sides(cfg["image_size"]),
        refusals.sides(cfg["patch_size"]),
        heads=max(fields["width"] // head, 1),
        pre_norm=not _flag(cfg, "no_ln_pre"),
        **{"pooling": _choice(cfg, "pool_type", VISION_POOLING), **fields},
        norm_after_pooling=_flag(cfg, "final_ln_after_pool"),
    )
    return config, _activation(cfg, quick_gelu)


def _text(data: Mapping[str, Any], quick_gelu: bool) -> tuple[TextConfig, Activation]:
    cfg = {**TEXT, **data}
    pooling = _choice(cfg, "pool_type", TEXT_POOLING)
    if _flag(cfg, "embed_cls"):
        pooling = "class_token"  # whatever pool_type says
    projection = "linear" if _flag(cfg, "proj_bias") else "matrix"
    config = TextConfig(
        heads=cfg["heads"],
        context_length=cfg["context_length"],
        vocab_size=cfg["vocab_size"],
        causal=not _flag(cfg, "no_causal_mask"),
        pooling=pooling,
        end_token=cfg["eos_id"] if pooling == "end" else None,
        projection=_choice(cfg, "proj_type", {"linear": projection, "none": "none"}),
        **_block_fields(cfg),
    )
    return config, _activation(cfg, quick_gelu)


def from_json(data: Mapping[str, Any]) -> ClipConfig:
    """The config that an `open_clip_config.json` describes.

    ValueError names what the model has that this library does not.
    """
    model = _part(data, "model_cfg")
    vision, text = _part(model, "vision_cfg"), _part(model, "text_cfg")
    refusals.check_open_clip(model)
    faults = _differences(vision, VISION, NO_EFFECT | VISION_READ | {"timm_model_name"})
    faults += _differences(text, TEXT, NO_EFFECT | TEXT_READ)
    faults += _differences(model, MODEL, MODEL_NO_EFFECT | {"quick_gelu"})
    if faults:
        raise ValueError(f"{CONFIG_NAME} asks for what jaxclip does not have: {shorten(faults)}")
    bias = model.get("init_logit_bias")
    try:
        quick_gelu = _flag({**MODEL, **model}, "quick_gelu")
        image_tower, of_images = _vision(vision, quick_gelu)
        text_tower, of_texts = _text(text, quick_gelu)
        image_tower, text_tower, activation = own_activation(
            image_tower, of_images, text_tower, of_texts
        )
        if image_tower.width == model.get("embed_dim") and vision.get("attentional_pool"):
            raise ValueError(
                "attentional_pool: expected an image tower of another width than embed_dim, as in "
                f"CoCa's released models, got {image_tower.width} for both"
            )
        return ClipConfig(
            image_tower, text_tower, model.get("embed_dim", 0), activation, bias is not None
        )
    except ValueError as error:
        raise ValueError(f"{CONFIG_NAME}: {error}") from None
