"""Models that jaxclip does not have, recognised by their config or by names of their tensors.

Each table names what such a file has, for the sentence "this file has X, which jaxclip does not
have". Names of open_clip 3.3.0's towers are those of timm 1.0.31.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from jaxclip.config import as_sides
from jaxclip.convert.archive.inert import short_repr

# The first pattern that a name of timm begins with says what the tower has.
TIMM_TOWERS = (
    (r"eva02_enormous|eva_", "EVA's image tower (attention without a bias of its keys)"),
    (r"eva02_", "EVA02's image tower (rotary positions and a SwiGLU MLP)"),
    (r"fastvit_", "MobileCLIP's FastViT trunk"),
    (r"vit_[a-z]+_mci", "MobileCLIP's convolutional stem"),
    (r"vit_pe_|vit_[a-z]+_pe_", "PE-Core's rotary positions (RoPE)"),
    (r"vitamin_", "ViTamin's convolutional stages"),
    (r"convnext", "a ConvNeXt image tower"),
    (r"swin", "a Swin image tower"),
    (r"vit_relpos", "relative positions in its image tower"),
    (r"vit_.*_gap_", "timm's image tower with layer scale or without an attention pool"),
    (r"naflex", "NaFlex's patches of any aspect ratio"),
)
# The first pattern that one of the names of a file's tensors matches says what the file has.
TENSORS = (
    (r"text_decoder\.", "CoCa's text decoder"),
    (r"visual\.attn_pool_contrastive\.", "a second attentional pooler, for the contrast"),
    (r".*\battn\.rel_pos\b", "relative positions in its image tower"),
    (r"visual\.trunk\.blocks\.\d+\.mlp\.fc1_g\.", "EVA02's SwiGLU MLP and rotary positions (RoPE)"),
    (r"visual\.(trunk\.)?blocks\.\d+\.mlp\.w[123]\.", "EVA02's SwiGLU MLP and rotary positions"),
    (r"visual\.(.*\.)?rope\b", "EVA's rotary positions (RoPE)"),
    (r"visual\.(trunk\.)?blocks\.\d+\.attn\.q_bias", "EVA's attention without a bias of its keys"),
    (r"visual\.trunk\.stem\..*conv_kxk", "MobileCLIP's FastViT trunk"),
    (r"image_encoder\.model\.", "MobileCLIP's image encoder in Apple's own layout"),
    (r"visual\.trunk\.patch_embed\.backbone\.stem", "ViTamin's convolutional stages"),
    (r"visual\.trunk\.patch_embed\.backbone", "MobileCLIP's convolutional stem"),
    (r"visual\.trunk\.stages\..*conv_dw", "a ConvNeXt image tower"),
    (r".*relative_position_bias_table", "a Swin image tower"),
    (r".*\.ls_?[12]\.gamma", "layer scale"),
    (r".*attn\.(ln_[qk]|q_norm|k_norm)\.", "normalised queries and keys"),
    (r".*\.(ln_inner|ln_attn|head_scale)", "scaled attention of NormFormer"),
    (
        r"text\.(transformer\.(embeddings|encoder|embed_tokens|layers|layer_norm|shared)|proj\.)",
        "a text tower of Hugging Face (RoBERTa, mT5, NLLB or another)",
    ),
    (r".*\brotary_|.*\brope\.", "rotary positions (RoPE)"),
    (
        r"(vision_model\.)?(encoder\.)?layers\.\d+\.self_attn\.qkv_proj",
        "fused attention of another model",
    ),
)
# `model_type` of Hugging Face's configs.
MODEL_TYPES = {
    "siglip2": "NaFlex's patches of any aspect ratio (Siglip2Model)",
    "siglip2_vision_model": "NaFlex's patches of any aspect ratio (Siglip2Model)",
    "siglip2_text_model": "the text tower of Siglip2Model (NaFlex)",
    "altclip": "AltCLIP's XLM-RoBERTa text tower",
    "chinese_clip": "Chinese-CLIP's BERT text tower",
    "clipseg": "CLIPSeg's decoder",
    "x_clip": "X-CLIP's video tower",
    "align": "ALIGN's EfficientNet and BERT",
    "blip": "BLIP's towers",
    "blip-2": "BLIP-2's Q-Former",
    "flava": "FLAVA's multimodal tower",
    "groupvit": "GroupViT's grouping blocks",
    "owlvit": "OWL-ViT's detection heads",
    "owlv2": "OWLv2's detection heads",
    "eva_clip": "EVA's image tower",
    "vision-text-dual-encoder": "two towers of any kind (VisionTextDualEncoder)",
    "jina_clip": "Jina CLIP's towers with rotary positions (RoPE)",
    "mobileclip": "MobileCLIP's FastViT trunk",
}
# Settings of open_clip that stand for a part of their own, with the values at which it is off.
SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "ls_init_value": ((None,), "layer scale"),
    "attentional_pool": ((False, None, True), "a second attentional pooler, for the contrast"),
    "qk_norm": ((False,), "normalised queries and keys"),
    "scaled_cosine_attn": ((False,), "scaled cosine attention"),
    "scale_heads": ((False,), "scaled attention of NormFormer"),
    "scale_attn_inner": ((False,), "scaled attention of NormFormer"),
    "scale_attn": ((False,), "scaled attention of NormFormer"),
    "scale_fc": ((False,), "a scaled MLP of NormFormer"),
}


def refuse(what: str) -> NoReturn:
    """ValueError: this file has `what`."""
    raise ValueError(f"this file has {what}, which jaxclip does not have")


def sides(value: Any) -> Any:
    """A size as a config of ours has it; what is no list of two integers stays for its checks.

    >>> sides([224, 224]), sides([224, 160]), sides(224)
    (224, (224, 160), 224)
    """
    if type(value) is not list or len(value) != 2 or any(type(side) is not int for side in value):
        return value
    return as_sides(*value)


def square_side(value: Any, name: str, tower: str) -> Any:
    """The side of a square, of which a config may say both lengths; ValueError where they differ.

    tower: that takes squares only.
    """
    side = sides(value)
    if type(side) is tuple:
        got = " x ".join(map(short_repr, side))
        raise ValueError(f"{name}: expected one side, as {tower} takes squares only, got {got}")
    return side


def check_tensors(names: Iterable[str], ranks: Mapping[str, int]) -> None:
    """ValueError that names the first part among the tensors that this library does not have."""
    names = list(names)
    for pattern, what in TENSORS:
        compiled = re.compile(pattern)
        if any(compiled.match(name) for name in names):
            refuse(what)
    if ranks.get("vision_model.embeddings.patch_embedding.weight") == 2:
        refuse(MODEL_TYPES["siglip2"])
    is_pool = any(name.startswith("visual.trunk.attn_pool.") for name in names)
    if is_pool and "visual.trunk.norm_pre.weight" in ranks:
        refuse("PE-Core's rotary positions (RoPE)")


def check_model_type(data: Mapping[str, Any]) -> None:
    """ValueError where a `config.json` is of another kind of model."""
    kind = data.get("model_type")
    if type(kind) is str and kind in MODEL_TYPES:
        refuse(MODEL_TYPES[kind])
    if "auto_map" in data:
        refuse("code of its own (auto_map)")


def _check_timm(name: Any) -> None:
    if type(name) is not str:
        return
    for pattern, what in TIMM_TOWERS:
        if re.match(pattern, name):
            refuse(f"{what}: {name[:80]}")
    if not re.match(r"vit_[a-z0-9]+_patch[0-9]+_(siglip|clip)_[0-9]+$", name):
        refuse(f"timm's image tower {short_repr(name)}")


def check_open_clip(model: Mapping[str, Any]) -> None:
    """ValueError where the `model_cfg` of open_clip asks for a part that this library lacks."""
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    for tower in (vision, text):
        if type(tower) is not dict:
            continue
        _check_timm(tower.get("timm_model_name"))
        if type(name := tower.get("hf_model_name")) is str:
            refuse(f"the text tower {name[:80]} of Hugging Face")
        for key, (off, what) in SETTINGS.items():
            if not any(
                type(tower.get(key, off[0])) is type(v) and tower.get(key, off[0]) == v for v in off
            ):
                refuse(what)
