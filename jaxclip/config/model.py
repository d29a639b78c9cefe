"""The configs of both towers together and of one alone, with JSON both ways."""

import dataclasses
import json
from typing import Any, Self, get_args

from jaxclip.config.fields import (
    LARGEST,
    Activation,
    check_choices,
    check_sizes,
    name_sides,
    require,
    short_repr,
)
from jaxclip.config.pictures import CLIP_PICTURES, PictureConfig
from jaxclip.config.text import TextConfig, text_from_json
from jaxclip.config.vision import ResNetConfig, VisionConfig, vision_from_json

# Fields that `to_json` writes whatever their value. It leaves out any other at its default, so that
# the configs of models as released stay the same text.
WRITTEN = ("layers", "heads", "context_length", "vocab_size", "kind", "activation", "logit_bias")


def pooled_width(tower: VisionConfig | TextConfig, embed_dim: int) -> int:
    """Channels of what a tower pools, which its projection takes."""
    return embed_dim if tower.pooling == "queries" else tower.width


def _check_projection(tower: VisionConfig | TextConfig, embed_dim: int) -> None:
    """ValueError where a tower without a projection is not as wide as the joint space."""
    require(
        tower.projection != "none" or tower.width == embed_dim,
        f"{type(tower).__name__}.projection: expected none only where the width is embed_dim, "
        f"{embed_dim}; got none and the width {tower.width}",
    )
    heads = (isinstance(tower, VisionConfig) and tower.pool_heads) or 1
    require(
        embed_dim % heads == 0,
        f"VisionConfig.pool_heads: expected a divisor of embed_dim, {embed_dim}, got {heads}",
    )


def _as_dict(config: Any) -> dict[str, Any]:
    """The fields of a config by name, without those left at a default that is not `WRITTEN`."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in WRITTEN or value != field.default:
            found[field.name] = _as_dict(value) if dataclasses.is_dataclass(value) else value
    return found


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers, the width of the joint space and the activation that the blocks use.

    The activation is part of the config because a weights file alone does not show it:
    the released models need `quick_gelu`, many others `gelu`.
    """

    vision: VisionConfig | ResNetConfig
    text: TextConfig
    embed_dim: int
    activation: Activation = "quick_gelu"
    logit_bias: bool = False
    """Whether a number is added to every logit: it then trains with SigLIP's loss."""
    pictures: PictureConfig = CLIP_PICTURES

    def __post_init__(self) -> None:
        check_sizes(self)
        names = get_args(Activation)
        require(
            self.activation in names,
            f"activation: expected one of {', '.join(names)}, got {short_repr(self.activation)}",
        )
        require(
            type(self.logit_bias) is bool,
            f"ClipConfig.logit_bias: expected true or false, got {short_repr(self.logit_bias)}",
        )
        if isinstance(self.vision, VisionConfig):
            _check_projection(self.vision, self.embed_dim)
        _check_projection(self.text, self.embed_dim)

    def to_json(self) -> str:
        """The config as one line of JSON, keys sorted."""
        return json.dumps(_as_dict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote; ValueError for any other text."""
        try:
            data = json.loads(text)
            parts: dict[str, Any] = {"vision": vision_from_json(data["vision"])}
            parts["text"] = text_from_json(data["text"])
            parts["pictures"] = PictureConfig.from_dict(data.get("pictures", {}))
            return cls(**{**data, **parts})
        except (TypeError, KeyError, RecursionError, json.JSONDecodeError) as error:
            message = f"expected a config that ClipConfig.to_json wrote, got another text ({error})"
            raise ValueError(message) from None


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One tower alone, as Stable Diffusion and others use it: no logits, no temperature."""

    tower: VisionConfig | TextConfig
    embed_dim: int
    """Of its features: the tower's width where it has no projection."""
    activation: Activation = "quick_gelu"
    pictures: PictureConfig = CLIP_PICTURES
    """Of an image tower."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_choices(self, activation=Activation)
        require(
            isinstance(self.tower, VisionConfig | TextConfig),
            "TowerConfig.tower: expected a VisionConfig or a TextConfig, got "
            f"{short_repr(self.tower)}",
        )
        _check_projection(self.tower, self.embed_dim)

    @property
    def vision(self) -> VisionConfig | None:
        """The tower, if it is an image tower."""
        return self.tower if isinstance(self.tower, VisionConfig) else None

    @property
    def text(self) -> TextConfig | None:
        """The tower, if it is a text tower."""
        return self.tower if isinstance(self.tower, TextConfig) else None

    def to_json(self) -> str:
        """The config as one line of JSON, keys sorted."""
        return json.dumps(_as_dict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote; ValueError for any other text."""
        try:
            data = json.loads(text)
            tower = data["tower"]
            parts: dict[str, Any] = {"pictures": PictureConfig.from_dict(data.get("pictures", {}))}
            parts["tower"] = (
                vision_from_json(tower) if "image_size" in tower else text_from_json(tower)
            )
            return cls(**{**data, **parts})
        except (TypeError, KeyError, RecursionError, json.JSONDecodeError) as error:
            message = f"expected a config that TowerConfig.to_json wrote, got another one ({error})"
            raise ValueError(message) from None


def differences(config: ClipConfig) -> list[str]:
    """What makes the towers compute otherwise than the released ones, such as "text.causal False".

    Sizes are none of it unless they are not square, nor is the activation of the whole model.
    """
    free = {"heads", "kind", "mlp_width"}
    oblong = [
        f"vision.{name} {name_sides(sides)}"
        for name in ("image_size", "patch_size")
        if type(sides := getattr(config.vision, name, None)) is tuple
    ]
    return oblong + [
        f"{name}.{field.name} {'of its own' if field.name == 'tokenizer' else repr(value)}"
        for name, tower in (("vision", config.vision), ("text", config.text))
        for field in dataclasses.fields(tower)
        if field.name not in free
        and field.default is not dataclasses.MISSING
        and field.name not in LARGEST
        and (value := getattr(tower, field.name)) != field.default
    ]


def read_config(text: str) -> ClipConfig | TowerConfig:
    """The config that `to_json` of either kind wrote; ValueError for any other text."""
    return (TowerConfig if '"tower"' in text else ClipConfig).from_json(text)
