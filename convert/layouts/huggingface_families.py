"""Families of transformers, CLIP, MetaCLIP 2 and SigLIP, with the defaults of their configs.

A config names only what is not at the library's default, and `text_config` may be missing
altogether. The defaults are those of transformers 5.23.0, models/*/configuration_*.py; the same
values stand in every version since 4.31 (clip), 4.37 (siglip) and 4.56 (metaclip_2).

Where CLIP's text tower pools hangs on `eos_token_id`: 2, which the first files have by mistake,
means the largest id, any other value its first occurrence (modeling_clip.py: CLIPTextModel).
MetaCLIP 2 always takes the first occurrence, of 2 as well.
"""

from typing import Any, Literal, NamedTuple

from jaxclip.config import VisionConfig

from .table import Config

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
