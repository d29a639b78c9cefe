"""open_clip's `open_clip_config.json` from our config."""

import math
from typing import Any

from jaxclip.checkpoint import shorten
from jaxclip.config import Activation, ClipConfig, ResNetConfig, Sides, TextConfig, VisionConfig
from jaxclip.model_tokenizer import FILE_NAME

from . import timm_trunk
from .compare import config_faults, tower_activations
from .infer import HEAD_WIDTH
from .open_clip import has_trunk, needs_custom_text
from .open_clip_config import TEXT_POOLING, from_json
from .pictures import to_open_clip

# The nearest that open_clip has: it repairs encodings always, and makes "_" a space.
CLEAN = {"none": "whitespace", "lower": "lower", "siglip": "canonicalize"}
CLEAN |= {"canonicalize": "canonicalize", "whitespace": "whitespace", "whitespace, lower": "lower"}
LOGIT_BIAS = -10  # SigLIP's starting value; the weights hold the trained one


def _ratio(width: int, inner: int) -> float:
    """The `mlp_ratio` of an MLP that is `int(width * ratio)` wide; to four places if they do.

    >>> _ratio(1408, 6144), _ratio(768, 3072)
    (4.3637, 4.0)
    """
    for places in (4, 8, 12):
        ratio = math.ceil(inner / width * 10**places) / 10**places
        if int(width * ratio) == inner:
            return ratio
    raise ValueError(f"no mlp_ratio of open_clip gives an MLP of {inner} channels at width {width}")


def _blocks_to_json(tower: VisionConfig | TextConfig, activation: Activation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tower.mlp_width is not None:
        found["mlp_ratio"] = _ratio(tower.width, tower.mlp_width)
    if activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    if tower.layer_norm_epsilon != 1e-5:
        found["norm_kwargs"] = {"eps": tower.layer_norm_epsilon}
    return found


def _sides_to_json(sides: Sides) -> int | list[int]:
    return sides if isinstance(sides, int) else list(sides)


def _vision_to_json(v: VisionConfig | ResNetConfig, activation: Activation) -> dict[str, Any]:
    vision: dict[str, Any] = {"image_size": _sides_to_json(v.image_size), "width": v.width}
    if isinstance(v, ResNetConfig):
        return vision | {"layers": list(v.layers), "patch_size": None}
    vision |= {"layers": v.layers, "patch_size": _sides_to_json(v.patch_size)}
    if v.width != HEAD_WIDTH * v.heads:
        vision["head_width"] = v.width // v.heads
    if not v.pre_norm:
        vision["no_ln_pre"] = True
    if v.pooling == "mean":
        vision["pool_type"] = "avg"
    if v.pooling == "queries":
        vision |= {"attentional_pool": True, "attn_pooler_queries": v.queries}
        vision["attn_pooler_heads"] = v.pool_heads
    if v.norm_after_pooling:
        vision["final_ln_after_pool"] = True
    return vision | _blocks_to_json(v, activation)


def _text_to_json(t: TextConfig, activation: Activation) -> dict[str, Any]:
    text: dict[str, Any] = {
        "context_length": t.context_length,
        "vocab_size": t.vocab_size,
        "width": t.width,
        "heads": t.heads,
        "layers": t.layers,
    }
    if t.tokenizer is not None:  # of any name: open_clip reads the one beside the weights
        text["hf_tokenizer_name"] = FILE_NAME
        text["tokenizer_kwargs"] = {"clean": CLEAN[t.tokenizer.clean]}
    if not t.causal:
        text["no_causal_mask"] = True
    if t.pooling == "class_token":
        text["embed_cls"] = True
    elif t.pooling != "largest":
        text["pool_type"] = {ours: theirs for theirs, ours in TEXT_POOLING.items()}[t.pooling]
    if t.end_token is not None:
        text["eos_id"] = t.end_token
    if t.projection == "linear":
        text["proj_bias"] = True
    elif t.projection == "none":
        text["proj_type"] = "none"
    return text | _blocks_to_json(t, activation)


def to_json(config: ClipConfig, *, custom_text: bool = False) -> dict[str, Any]:
    """The content of `open_clip_config.json`.

    ValueError where open_clip cannot build the model.
    """
    v = config.vision
    of_images, of_texts = tower_activations(config)
    model: dict[str, Any] = {"embed_dim": config.embed_dim}
    if of_texts == "quick_gelu":
        model["quick_gelu"] = True
    if has_trunk(config):
        assert isinstance(v, VisionConfig)
        vision = timm_trunk.settings(v, of_images)
    else:
        vision = _vision_to_json(v, of_images)
    if custom_text or needs_custom_text(config):
        model["custom_text"] = True
    if config.logit_bias:
        model["init_logit_bias"] = LOGIT_BIAS
    model |= {"vision_cfg": vision, "text_cfg": _text_to_json(config.text, of_texts)}
    data = {"model_cfg": model, "preprocess_cfg": to_open_clip(config.pictures)}
    if faults := config_faults(from_json(data), config):  # what its fields cannot say
        raise ValueError(f"open_clip has no such model: {shorten(faults)}")
    return data
