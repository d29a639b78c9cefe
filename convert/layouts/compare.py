"""Whether two configs are one model, and the activation of each tower."""

import dataclasses
from typing import Any

from jaxclip.config import (
    Activation,
    ClipConfig,
    ResNetConfig,
    TextConfig,
    TowerConfig,
    VisionConfig,
)

# Not of the model: of what goes into it.
NOT_OF_THE_MODEL = {"pictures", "tokenizer"}
Towers = tuple[VisionConfig | ResNetConfig, TextConfig, Activation]


def tower_activations(config: ClipConfig) -> tuple[Activation, Activation]:
    """(of the image tower, of the text tower); of a ResNet, which has ReLU, the model's."""
    v = config.vision
    own = None if isinstance(v, ResNetConfig) else v.own_activation
    return own or config.activation, config.text.own_activation or config.activation


def own_activation(
    vision: VisionConfig | ResNetConfig,
    of_images: Activation | None,
    text: TextConfig,
    of_texts: Activation,
) -> Towers:
    """(image tower, text tower, activation of the model): the text tower's own where it differs."""
    activation = of_images or of_texts
    if of_texts != activation:
        text = dataclasses.replace(text, own_activation=of_texts)
    return vision, text, activation


def _fields(config: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name in NOT_OF_THE_MODEL | {"own_activation", "activation"}:
            continue
        value = getattr(config, field.name)
        if field.name == "mlp_width":
            value = value or 4 * config.width
        if dataclasses.is_dataclass(value):
            found |= _fields(value, f"{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = value
    return found


def config_faults(expected: ClipConfig | TowerConfig, got: ClipConfig | TowerConfig) -> list[str]:
    """Each field in which `got` is another model than `expected`, as a text."""
    one, other = _fields(expected), _fields(got)
    if isinstance(expected, ClipConfig) and isinstance(got, ClipConfig):
        names = ("activation of the image tower", "activation of the text tower")
        one |= dict(zip(names, tower_activations(expected), strict=True))
        other |= dict(zip(names, tower_activations(got), strict=True))
    elif isinstance(expected, TowerConfig) and isinstance(got, TowerConfig):
        one["activation"] = expected.tower.own_activation or expected.activation
        other["activation"] = got.tower.own_activation or got.activation
    missing = object()
    return [
        f"{name}: expected {one.get(name)}, got {other.get(name)}"
        for name in {**one, **other}
        if one.get(name, missing) != other.get(name, missing)
    ]
