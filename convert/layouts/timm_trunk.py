"""The image towers that open_clip builds by a name of timm: `visual.trunk.*`.

A config beside such weights holds the name and no sizes; this table has them. timm has hundreds of
towers: those that are here are vision transformers as `VisionConfig` says them.
Source: timm 1.0.31, timm/models/vision_transformer.py; open_clip 3.3.0, open_clip/timm_model.py.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxclip.config import Activation, VisionConfig, name_sides
from jaxclip.convert.archive.inert import short_repr

from .infer import mlp_width
from .refusals import square_side


class Size(NamedTuple):
    """What timm's function of that name passes on; the MLP is `int(width * ratio)` wide."""

    width: int
    layers: int
    heads: int
    ratio: float = 4.0


# vit_{size}_patch{patch}_siglip_{image size}
SIGLIP = {
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "so400m": Size(1152, 27, 16, 3.7362),
    "giantopt": Size(1536, 40, 16),
}
# the released ones, by size, patch and image size; the others of that pattern do not exist
SIGLIP_NAMES = {
    ("base", 16): (224, 256, 384, 512),
    ("base", 32): (256,),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
# act_layer="gelu_tanh"; elsewhere exact, also for the other sizes of the same tower
SIGLIP_TANH = {("base", 32, 256), ("large", 16, 512)}
SIGLIP_TANH |= {("so400m", 16, side) for side in (256, 384, 512)}
SIGLIP_TANH |= {("giantopt", 16, side) for side in (256, 384)}
# vit_{size}_patch{patch}_clip_{image size}: a class token, `norm_pre`, epsilon 1e-5
CLIP = {"base": Size(768, 12, 12), "large": Size(1024, 24, 16), "huge": Size(1280, 32, 16)}
CLIP_NAMES = {
    ("base", 32): (224, 256, 384, 448),
    ("base", 16): (224, 384),
    ("large", 14): (224, 336),
    ("huge", 14): (224, 336, 378),
}
CLIP_EPSILON, SIGLIP_EPSILON = 1e-5, 1e-6
# The settings of open_clip's `vision_cfg` that go with each.
POOLS = {"siglip": "map", "clip": "token"}

MODULES = {
    "visual.conv1.kernel": "patch_embed.proj.weight",
    "visual.conv1.bias": "patch_embed.proj.bias",
    "visual.class_embedding": "cls_token",
    "visual.positional_embedding": "pos_embed",
    "visual.ln_pre.scale": "norm_pre.weight",
    "visual.ln_pre.bias": "norm_pre.bias",
    "visual.ln_post.scale": "norm.weight",
    "visual.ln_post.bias": "norm.bias",
    "visual.proj.kernel": "head.weight",
    "visual.proj.bias": "head.bias",
    "visual.attnpool.probe": "attn_pool.latent",
    "visual.attnpool.attn.out_proj.kernel": "attn_pool.proj.weight",
    "visual.attnpool.attn.out_proj.bias": "attn_pool.proj.bias",
    "visual.attnpool.ln.scale": "attn_pool.norm.weight",
    "visual.attnpool.ln.bias": "attn_pool.norm.bias",
    "visual.attnpool.mlp.c_fc.kernel": "attn_pool.mlp.fc1.weight",
    "visual.attnpool.mlp.c_fc.bias": "attn_pool.mlp.fc1.bias",
    "visual.attnpool.mlp.c_proj.kernel": "attn_pool.mlp.fc2.weight",
    "visual.attnpool.mlp.c_proj.bias": "attn_pool.mlp.fc2.bias",
}
JOINED = {
    "visual.attnpool.attn.in_proj_kernel": ("attn_pool.q.weight", "attn_pool.kv.weight"),
    "visual.attnpool.attn.in_proj_bias": ("attn_pool.q.bias", "attn_pool.kv.bias"),
}
SHARES = {path: (1, 2) for path in JOINED}  # keys and values lie in one array
ONES = {
    "visual.class_embedding": 2,
    "visual.positional_embedding": 1,
    "visual.attnpool.probe": 2,
}
BLOCK = {
    "attn.in_proj_kernel": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj.kernel": "attn.proj.weight",
    "attn.out_proj.bias": "attn.proj.bias",
    "ln_1.scale": "norm1.weight",
    "ln_1.bias": "norm1.bias",
    "mlp.c_fc.kernel": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.kernel": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
    "ln_2.scale": "norm2.weight",
    "ln_2.bias": "norm2.bias",
}
TRUNK, BLOCKS = "visual.trunk", "visual.transformer.resblocks."


def names(path: str) -> tuple[str, ...]:
    """Of a parameter of the image tower."""
    if path in JOINED:
        return tuple(f"{TRUNK}.{name}" for name in JOINED[path])
    if path in MODULES:
        return (f"{TRUNK}.{MODULES[path]}",)
    layer, _, rest = path.removeprefix(BLOCKS).partition(".")
    if not path.startswith(BLOCKS) or rest not in BLOCK:
        raise ValueError(f"{path}: expected a parameter of timm's vision transformer, got another")
    return (f"{TRUNK}.blocks.{layer}.{BLOCK[rest]}",)


def _activation(family: str, size: str, patch: int, image_size: int) -> Activation:
    is_tanh = family == "siglip" and (size, patch, image_size) in SIGLIP_TANH
    return "gelu_tanh" if is_tanh else "gelu"


_NAME = re.compile(r"vit_([a-z0-9]+)_patch([0-9]{1,3})_(siglip|clip)_([0-9]{1,5})")


def _build(size: Size, patch: int, family: str, image_size: int, has_head: bool) -> VisionConfig:
    is_siglip = family == "siglip"
    return VisionConfig(
        image_size,
        patch,
        size.width,
        size.layers,
        size.heads,
        mlp_width=mlp_width(size.width, int(size.width * size.ratio)),
        layer_norm_epsilon=SIGLIP_EPSILON if is_siglip else CLIP_EPSILON,
        patch_bias=is_siglip,
        class_token=not is_siglip,
        pre_norm=not is_siglip,
        pooling="attention" if is_siglip else "class",
        projection="linear" if has_head else "none",
    )


def tower(vision: Mapping[str, Any]) -> tuple[VisionConfig, Activation]:
    """(config, activation) of the tower of open_clip's `vision_cfg`; ValueError for another."""
    name = vision.get("timm_model_name")
    match = _NAME.fullmatch(name) if type(name) is str else None
    if match is None:
        raise ValueError(f"timm_model_name: expected a tower of SigLIP, got {short_repr(name)}")
    size, patch, family, image_size = match[1], int(match[2]), match[3], int(match[4])
    sizes, known = (SIGLIP, SIGLIP_NAMES) if family == "siglip" else (CLIP, CLIP_NAMES)
    if image_size not in known.get((size, patch), ()):
        raise ValueError(f"timm_model_name: expected a name of timm 1.0.31, got {short_repr(name)}")
    pool, projection = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if pool != POOLS[family] or projection not in (None, "", "none"):
        raise ValueError(
            f"{name}: expected timm_pool {POOLS[family]} and timm_proj null or none, got "
            f"{short_repr(pool)} and {short_repr(projection)}"
        )
    said = square_side(vision.get("image_size", 224), "image_size", f"timm's {name}")
    if said != image_size:
        raise ValueError(f"{name}: expected image_size {image_size}, got {short_repr(said)}")
    config = _build(sizes[size], patch, family, image_size, has_head=projection != "none")
    return config, _activation(family, size, patch, image_size)


def settings(config: VisionConfig, activation: Activation) -> dict[str, Any]:
    """The `vision_cfg` of a tower; ValueError where timm has no name for it."""
    family = "siglip" if config.pooling == "attention" else "clip"
    sizes, known = (SIGLIP, SIGLIP_NAMES) if family == "siglip" else (CLIP, CLIP_NAMES)
    has_head = config.projection == "linear"
    for (size, patch), image_sizes in known.items():
        if config.image_size not in image_sizes:
            continue
        if config == _build(sizes[size], patch, family, config.image_size, has_head):
            break
    else:
        raise ValueError(
            f"open_clip builds such an image tower by a name of timm, which has none for width "
            f"{config.width}, {config.layers} layers, patches of {name_sides(config.patch_size)} "
            f"and pictures of {name_sides(config.image_size)}; use the layout huggingface or "
            "jaxclip"
        )
    name = f"vit_{size}_patch{patch}_{family}_{config.image_size}"
    if (theirs := _activation(family, size, patch, config.image_size)) != activation:
        raise ValueError(
            f"timm's {name} has {theirs}, the image tower {activation}; use the layout huggingface "
            "or jaxclip"
        )
    return {
        "image_size": config.image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": POOLS[family],
        "timm_proj": None if has_head else "none",
    }
