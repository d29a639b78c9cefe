"""The layout of open_clip: the official keys, and `open_clip_config.json` with the rest.

Its CustomTextCLIP keeps the text tower under `text.`, as we do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.checkpoint import shorten
from jaxclip.config import Activation, ClipConfig, ResNetConfig
from jaxclip.convert.archive.inert import short_repr

from . import openai
from .infer import HEAD_WIDTH
from .pictures import to_open_clip
from .table import Extras, Layout

CONFIG_NAME = "open_clip_config.json"

# open_clip/model.py: CLIPVisionCfg, CLIPTextCfg: the defaults, which build the released towers.
# Another value in a file means another model.
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
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "timm_model_name": None,
}
TEXT: dict[str, Any] = {
    **_BLOCKS,
    "context_length": 77,
    "vocab_size": 49408,
    "hf_tokenizer_name": None,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "embed_cls": False,
    "pad_id": 0,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "hf_model_name": None,
}
# Settings without effect on the results while the feature that they belong to is off.
NO_EFFECT = {
    "patch_dropout",
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "tokenizer_mode",
    "tokenizer_kwargs",
    "eos_id",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
}
MODEL: dict[str, Any] = {
    "quick_gelu": False,
    "custom_text": False,
    "nonscalar_logit_scale": False,
    "init_logit_bias": None,
}
MODEL_NO_EFFECT = {"embed_dim", "vision_cfg", "text_cfg", "init_logit_scale", "cast_dtype"}
MODEL_NO_EFFECT |= {"output_dict"}


def extras(config: ClipConfig) -> list[Extras]:
    return [openai.counters(config)]


def custom_names(path: str) -> tuple[str, ...]:
    return (openai.official_leaf(path),)


LAYOUT = Layout("open_clip", openai.names, openai.AXES, extras)
CUSTOM_TEXT = Layout("open_clip custom_text", custom_names, openai.AXES, extras)


def _tanh(config: ClipConfig) -> dict[str, str] | None:
    return {"approximate": "tanh"} if config.activation == "gelu_tanh" else None


def to_json(config: ClipConfig, *, custom_text: bool = False) -> dict[str, Any]:
    """The content of `open_clip_config.json`.

    ValueError where open_clip cannot build the model.
    """
    v, t = config.vision, config.text
    vision: dict[str, Any] = {"image_size": v.image_size, "width": v.width}
    if isinstance(v, ResNetConfig):
        vision |= {"layers": list(v.layers), "patch_size": None}
    else:
        if v.width % v.heads:
            raise ValueError(f"image width {v.width} is no multiple of its {v.heads} heads")
        vision |= {"layers": v.layers, "patch_size": v.patch_size}
        if v.width != HEAD_WIDTH * v.heads:
            vision["head_width"] = v.width // v.heads
    text: dict[str, Any] = {
        "context_length": t.context_length,
        "vocab_size": t.vocab_size,
        "width": t.width,
        "heads": t.heads,
        "layers": t.layers,
    }
    if (tanh := _tanh(config)) is not None:
        text["act_kwargs"] = tanh
        if not isinstance(v, ResNetConfig):
            vision["act_kwargs"] = tanh
    model: dict[str, Any] = {"embed_dim": config.embed_dim}
    if config.activation == "quick_gelu":
        model["quick_gelu"] = True
    if custom_text:
        model["custom_text"] = True
    model |= {"vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": to_open_clip(config.pictures)}


def _part(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    if type(value) is not dict:
        raise ValueError(f"{name}: expected a JSON object, got {short_repr(value)}")
    return value


def activation(data: dict[str, Any]) -> Activation:
    """The activation of a config; open_clip's GELU is exact unless `act_kwargs` says tanh."""
    model = _part(data, "model_cfg")
    if model.get("quick_gelu") is True:
        return "quick_gelu"
    tanh = _part(model, "text_cfg").get("act_kwargs") == {"approximate": "tanh"}
    return "gelu_tanh" if tanh else "gelu"


def sizes(data: dict[str, Any]) -> tuple[tuple[int | None, int | None], int | None]:
    """((image heads, text heads), image size); None where the config has no valid number."""
    model = _part(data, "model_cfg")
    vision, text = {**VISION, **_part(model, "vision_cfg")}, {**TEXT, **_part(model, "text_cfg")}
    width, head, size = vision["width"], vision["head_width"], vision["image_size"]
    heads = None
    if type(width) is int and type(head) is int and head > 0 and type(vision["layers"]) is int:
        heads = width // head or None
    of_text = text["heads"] if type(text["heads"]) is int and text["heads"] > 0 else None
    return (heads, of_text), size if type(size) is int and 0 < size < 1 << 20 else None


def _differences(
    got: Mapping[str, Any],
    expected: Mapping[str, Any],
    defaults: Mapping[str, Any],
    no_effect: set[str],
) -> list[str]:
    """The settings that make another model than `expected`, each as a text."""
    got = {key: value for key, value in got.items() if key not in no_effect}
    unknown = [f"{short_repr(key)} is unknown" for key in got if key not in defaults]
    filled, wanted = {**defaults, **got}, {**defaults, **expected}
    return unknown + [
        f"{key}: expected {wanted[key]!r}, got {short_repr(filled[key])}"
        for key in defaults
        if not is_same_setting(filled[key], wanted[key])
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


def check(data: dict[str, Any], config: ClipConfig, *, custom_text: bool) -> None:
    """ValueError listing where an `open_clip_config.json` describes another model than `config`."""
    expected = to_json(config, custom_text=custom_text)["model_cfg"]
    model = _part(data, "model_cfg")
    vision, text = dict(_part(model, "vision_cfg")), dict(_part(model, "text_cfg"))
    for tower in (vision, text):
        if tower.get("norm_kwargs") == {"eps": 1e-5}:  # what it is anyway
            tower["norm_kwargs"] = None
    if isinstance(config.vision, ResNetConfig):  # has neither; ReLU stays ReLU
        vision |= {"patch_size": None, "act_kwargs": None}
    model = {**model, "custom_text": custom_text}  # the keys show it
    faults = _differences(vision, expected["vision_cfg"], VISION, NO_EFFECT)
    faults += _differences(text, expected["text_cfg"], TEXT, NO_EFFECT)
    head = {key: expected[key] for key in ("quick_gelu", "custom_text") if key in expected}
    faults += _differences(model, head, MODEL, MODEL_NO_EFFECT)
    if model.get("embed_dim") != config.embed_dim:
        faults.append(
            f"embed_dim: expected {config.embed_dim}, got {short_repr(model.get('embed_dim'))}"
        )
    if faults:
        raise ValueError(
            f"{CONFIG_NAME} describes another model than the weights, or one that this library "
            f"does not have: {shorten(faults)}"
        )
