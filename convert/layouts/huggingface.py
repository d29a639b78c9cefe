"""The layouts of Hugging Face's CLIP, MetaCLIP 2 and SigLIP: their keys and split projections.

It has no ResNets. `huggingface_config` reads the config.json beside them,
`huggingface_config_writing` writes it.
"""

from collections.abc import Callable, Mapping

import numpy as np

from jaxclip.config import ClipConfig

from .huggingface_families import SIGLIP, family_of
from .table import Config, Extras, Layout

WEIGHTS_NAME = "model.safetensors"

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
# What SigLIP has beside or instead of them.
SIGLIP_MODULES = {
    "visual.conv1.bias": "vision_model.embeddings.patch_embedding.bias",
    "visual.attnpool.probe": "vision_model.head.probe",
    "visual.attnpool.attn.in_proj_kernel": "vision_model.head.attention.in_proj_weight",
    "visual.attnpool.attn.in_proj_bias": "vision_model.head.attention.in_proj_bias",
    "visual.attnpool.attn.out_proj.kernel": "vision_model.head.attention.out_proj.weight",
    "visual.attnpool.attn.out_proj.bias": "vision_model.head.attention.out_proj.bias",
    "visual.attnpool.ln.scale": "vision_model.head.layernorm.weight",
    "visual.attnpool.ln.bias": "vision_model.head.layernorm.bias",
    "visual.attnpool.mlp.c_fc.kernel": "vision_model.head.mlp.fc1.weight",
    "visual.attnpool.mlp.c_fc.bias": "vision_model.head.mlp.fc1.bias",
    "visual.attnpool.mlp.c_proj.kernel": "vision_model.head.mlp.fc2.weight",
    "visual.attnpool.mlp.c_proj.bias": "vision_model.head.mlp.fc2.bias",
    "text.text_projection.kernel": "text_model.head.weight",
    "text.text_projection.bias": "text_model.head.bias",
    "logit_bias": "logit_bias",
}
# Of a tower alone; SigLIP's is part of its text tower.
PROJECTIONS = ("text_projection.weight", "visual_projection.weight")
SIGLIP_ONES = {"visual.attnpool.probe": 2, "logit_scale": 1, "logit_bias": 1}
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
    "joint": (1, 0),
    "projection": (1, 0),  # [e, d] -> [d, e]
    "convolution": (2, 3, 1, 0),  # [out, in, h, w] -> [h, w, in, out]
}


def names(path: str) -> tuple[str, ...]:
    """Of a parameter of CLIPModel or MetaClip2Model."""
    if path in MODULES:
        return (MODULES[path],)
    for ours, theirs in TOWERS.items():
        if path.startswith(f"{ours}."):
            layer, _, rest = path.removeprefix(f"{ours}.").partition(".")
            return tuple(f"{theirs}.{layer}.{part}" for part in BLOCK[rest])
    raise ValueError(f"{path}: expected a parameter of a Transformer; this layout has no other")


def siglip_names(path: str) -> tuple[str, ...]:
    """Of a parameter of SiglipModel."""
    return (SIGLIP_MODULES[path],) if path in SIGLIP_MODULES else names(path)


def _bare(of_whole: Callable[[str], tuple[str, ...]]) -> Callable[[str], tuple[str, ...]]:
    """Names of a tower alone as transformers 5 writes it: without `text_model.` in front."""

    def of_tower(path: str) -> tuple[str, ...]:
        return tuple(
            name.removeprefix("text_model.").removeprefix("vision_model.")
            for name in of_whole(path)
        )

    return of_tower


def _position_ids(config: Config, prefixes: Mapping[str, str]) -> list[Extras]:
    """`position_ids` 0, 1, 2, ..., which files from before 2023 hold."""
    lengths = {
        "text_model": config.text.context_length if config.text else None,
        "vision_model": config.vision.tokens if config.vision else None,
    }
    return [
        {f"{prefixes[tower]}embeddings.position_ids": np.arange(length, dtype=np.int64)[None]}
        for tower, length in lengths.items()
        if length is not None
    ]


def extras(config: Config) -> list[Extras]:
    return _position_ids(config, {"text_model": "text_model.", "vision_model": "vision_model."})


def bare_extras(config: Config) -> list[Extras]:
    return _position_ids(config, {"text_model": "", "vision_model": ""})


LAYOUT = Layout("huggingface", names, AXES, extras)
SIGLIP_LAYOUT = Layout("huggingface siglip", siglip_names, AXES, extras, SIGLIP_ONES)
BARE_LAYOUT = Layout("huggingface tower", _bare(names), AXES, bare_extras)
BARE_SIGLIP_LAYOUT = Layout(
    "huggingface siglip tower", _bare(siglip_names), AXES, bare_extras, SIGLIP_ONES
)
LAYOUTS = {
    layout.name: layout for layout in (LAYOUT, SIGLIP_LAYOUT, BARE_LAYOUT, BARE_SIGLIP_LAYOUT)
}


def find_layout(arrays: Mapping[str, np.ndarray]) -> Layout | None:
    """The layout of the names, or None where it is none of Hugging Face's."""
    is_whole = any(name.startswith(("vision_model.", "text_model.")) for name in arrays)
    is_bare = any(name.startswith("encoder.layers.0.self_attn.") for name in arrays)
    if not is_whole and not is_bare:
        return None
    if is_whole:
        signs = ("vision_model.head.probe", "text_model.head.weight")
        return SIGLIP_LAYOUT if any(name in arrays for name in signs) else LAYOUT
    signs = ("head.probe", "head.weight")
    return BARE_SIGLIP_LAYOUT if any(name in arrays for name in signs) else BARE_LAYOUT


def single_tower(arrays: Mapping[str, np.ndarray]) -> str | None:
    """ "text" or "vision" where the names are of that tower alone, None where of both."""
    held = {
        "text": (
            "text_model.embeddings.token_embedding.weight",
            "embeddings.token_embedding.weight",
        ),
        "vision": (
            "vision_model.embeddings.patch_embedding.weight",
            "embeddings.patch_embedding.weight",
        ),
    }
    found = [tower for tower, names in held.items() if any(name in arrays for name in names)]
    return found[0] if len(found) == 1 else None


def layout_to_write(config: Config, read_from: str) -> Layout:
    """The layout of a model of that config; without the prefix where it was read without it."""
    plain = SIGLIP_LAYOUT if family_of(config) is SIGLIP else LAYOUT
    bare = {LAYOUT.name: BARE_LAYOUT, SIGLIP_LAYOUT.name: BARE_SIGLIP_LAYOUT}[plain.name]
    return bare if read_from == bare.name and not isinstance(config, ClipConfig) else plain
