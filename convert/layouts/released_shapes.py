"""Attention heads of the models whose shapes are well known, by shape.

A file of weights alone says neither how many heads its towers have nor at which token the text
tower pools. Of the shapes in this table both are known: the nine that OpenAI released, and those of
open_clip's own towers. Every size must be equal, but for the resolution, which changes neither.
"""

from typing import NamedTuple

from jaxclip.config import RELEASED, ClipConfig, ResNetConfig, Sides

from .infer import Heads


class _Shape(NamedTuple):
    """All sizes that decide which model it is; of a ResNet the blocks, and a patch size of 0."""

    patch: Sides
    width: int
    layers: int | tuple[int, ...]
    embed_dim: int
    text_width: int
    text_layers: int
    context_length: int = 77
    vocab_size: int = 49408
    mlp_width: int | None = None  # of the image tower, where it is not four times as wide


# open_clip 3.3.0, src/open_clip/model_configs/*.json: `head_width` (64 if not there) and `heads`.
# Models with a tower of another kind are not here, and those that pool elsewhere are below.
_OPEN_CLIP: dict[_Shape, Heads] = {
    _Shape(32, 384, 12, 384, 384, 12): (6, 6),  # ViT-S-32
    _Shape(16, 384, 12, 384, 384, 12): (6, 6),  # ViT-S-16
    _Shape(32, 384, 12, 256, 256, 10): (6, 4),  # ViT-S-32-alt
    _Shape(16, 384, 12, 256, 256, 10): (6, 4),  # ViT-S-16-alt
    _Shape(32, 512, 12, 512, 512, 12): (8, 8),  # ViT-M-32
    _Shape(16, 512, 12, 512, 512, 12): (8, 8),  # ViT-M-16
    _Shape(32, 896, 12, 640, 640, 12): (14, 10),  # ViT-B-32-plus-256
    _Shape(16, 896, 12, 640, 640, 12): (14, 10),  # ViT-B-16-plus, ViT-B-16-plus-240
    _Shape(16, 1024, 24, 768, 768, 12): (16, 12),  # ViT-L-16, ViT-L-16-320
    _Shape(14, 1280, 32, 1024, 1024, 24): (16, 16),  # ViT-H-14, ViT-H-14-378
    _Shape(16, 1280, 32, 1024, 1024, 24): (16, 16),  # ViT-H-16
    _Shape(14, 1408, 40, 1024, 1024, 24, mlp_width=6144): (16, 16),  # ViT-g-14
    _Shape(14, 1664, 48, 1280, 1280, 32, mlp_width=8192): (16, 20),  # ViT-bigG-14
    _Shape(14, 1792, 56, 1280, 1280, 36, mlp_width=15360): (16, 20),  # ViT-e-14
}

# Vocabularies of models that do not pool at the largest id of a text, so that shapes alone mislead.
# open_clip 3.3.0, text_cfg.pool_type "eos" or "last"; the others are not CLIP's own.
OTHER_POOLING = {
    901_629: "the worldwide models of MetaCLIP 2 (XLM-V)",
    250_100: "the worldwide models of MetaCLIP 2 (mT5)",
    32_000: "CLIPA and SigLIP",
    250_000: "SigLIP i18n",
    256_000: "SigLIP 2",
    64_000: "CoCa base",
}


def _shape(config: ClipConfig) -> _Shape:
    v, t = config.vision, config.text
    patch, inner = (0, None) if isinstance(v, ResNetConfig) else (v.patch_size, v.mlp_width)
    sizes = (config.embed_dim, t.width, t.layers, t.context_length, t.vocab_size)
    return _Shape(patch, v.width, v.layers, *sizes, inner)


_KNOWN = _OPEN_CLIP | {
    _shape(config): (config.vision.heads, config.text.heads) for config in RELEASED.values()
}


def known_heads(config: ClipConfig) -> Heads | None:
    """Heads of the image and text towers of that shape, or None; `config.*.heads` do not matter.

    >>> known_heads(RELEASED["ViT-L/14"])
    (16, 12)
    """
    return None if config.text.mlp_width is not None else _KNOWN.get(_shape(config))
