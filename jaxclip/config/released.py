"""The nine released models."""

from jaxclip.config.model import ClipConfig
from jaxclip.config.text import TextConfig
from jaxclip.config.vision import ResNetConfig, VisionConfig


def _resnet(
    embed_dim: int, size: int, layers: tuple[int, int, int, int], width: int, text: int
) -> ClipConfig:
    return ClipConfig(
        ResNetConfig(size, width, layers), TextConfig(text, heads=text // 64), embed_dim
    )


def _vit(embed_dim: int, size: int, patch: int, width: int, layers: int, text: int) -> ClipConfig:
    vision = VisionConfig(size, patch, width, layers, heads=width // 64)
    return ClipConfig(vision, TextConfig(text, heads=text // 64), embed_dim)


# The released models in the released order; all of them use quick_gelu.
RELEASED: dict[str, ClipConfig] = {
    "RN50": _resnet(1024, 224, (3, 4, 6, 3), 64, text=512),
    "RN101": _resnet(512, 224, (3, 4, 23, 3), 64, text=512),
    "RN50x4": _resnet(640, 288, (4, 6, 10, 6), 80, text=640),
    "RN50x16": _resnet(768, 384, (6, 8, 18, 8), 96, text=768),
    "RN50x64": _resnet(1024, 448, (3, 15, 36, 10), 128, text=1024),
    "ViT-B/32": _vit(512, 224, 32, 768, 12, text=512),
    "ViT-B/16": _vit(512, 224, 16, 768, 12, text=512),
    "ViT-L/14": _vit(768, 224, 14, 1024, 24, text=768),
    "ViT-L/14@336px": _vit(768, 336, 14, 1024, 24, text=768),
}
