"""What a model and a run are, in numbers: frozen dataclasses, and JSON both ways."""

import dataclasses
import json
from typing import Any, Literal, Self, get_args

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
TextKind = Literal["transformer", "cbow"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_positive(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in (int, "int"):
            ok = isinstance(value, int) and not isinstance(value, bool) and value > 0
            _require(
                ok,
                f"{type(config).__name__}.{field.name} must be a positive integer, {value!r} came",
            )


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision Transformer: pictures of `image_size` pixels a side, cut into patches."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int

    def __post_init__(self) -> None:
        _require_positive(self)
        size, patch, width, heads = self.image_size, self.patch_size, self.width, self.heads
        _require(size % patch == 0, f"image_size {size} is not a multiple of patch_size {patch}")
        _require(width % heads == 0, f"vision width {width} is not a multiple of heads {heads}")

    @property
    def tokens(self) -> int:
        """Positions the tower sees: one a patch and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Text transformer, or the pseudocode's other encoder, continuous bag of words.

    A bag of words has no blocks: it ignores `layers` and `heads`.
    """

    width: int
    layers: int = 12
    heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408
    kind: TextKind = "transformer"

    def __post_init__(self) -> None:
        _require_positive(self)
        kinds = get_args(TextKind)
        _require(self.kind in kinds, f"text kind {self.kind!r} is none of {', '.join(kinds)}")
        fits = self.kind == "cbow" or self.width % self.heads == 0
        _require(fits, f"text width {self.width} is not a multiple of heads {self.heads}")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers, the width of the joint space and the activation that the blocks use.

    The activation is part of the config because a weights file alone does not show it:
    the released models need `quick_gelu`, many others `gelu`.
    """

    vision: VisionConfig
    text: TextConfig
    embed_dim: int
    activation: Activation = "quick_gelu"

    def __post_init__(self) -> None:
        _require_positive(self)
        names = get_args(Activation)
        _require(
            self.activation in names,
            f"activation {self.activation!r} is none of {', '.join(names)}",
        )

    def to_json(self) -> str:
        """The config as one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote; ValueError names what is wrong with any other text."""
        try:
            data = json.loads(text)
            parts = {"vision": VisionConfig(**data["vision"]), "text": TextConfig(**data["text"])}
            return cls(**{**data, **parts})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            message = f"not a model config ({error}); expected what ClipConfig.to_json writes"
            raise ValueError(message) from None


# Small enough for two cores: sixteen patches a picture, and the bag of words, which costs next to
# nothing and starts to learn at once, where a text transformer first spends a hundred steps.
EMOJI = ClipConfig(
    vision=VisionConfig(image_size=48, patch_size=12, width=192, layers=4, heads=3),
    text=TextConfig(width=128, context_length=32, kind="cbow"),
    embed_dim=192,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run on the embedded emoji depends on; its run folder holds it."""

    steps: int = 600
    """Updates of the weights."""
    batch_size: int = 256
    """Pairs a step, over all devices."""
    learning_rate: float = 3e-3
    """Greatest learning rate, reached after the warm-up."""
    warmup: int = 40
    """Steps of linear warm-up."""
    weight_decay: float = 0.2
    """Decoupled weight decay, on matrices only."""
    seed: int = 0
    """Of the weights, the order of the data and the augmentation."""
    text_length: int = 16
    """Tokens of a caption that are kept in training; the longest name has 18."""
    log_every: int = 10
    """Steps from one line of metrics.jsonl to the next."""
    evaluate_every: int = 200
    """Steps between evaluations on the validation pictures."""
    save_every: int = 100
    """Steps between saves of the whole state, from which --resume continues."""
    model: ClipConfig = EMOJI
    """The model to train."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "save_every", "text_length"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} must be at least 1, {value} came")
        _require(self.batch_size >= 2, f"batch_size must be at least 2, {self.batch_size} came")
        _require(self.seed >= 0, f"seed must not be negative, {self.seed} came")
        _require(self.learning_rate > 0, f"learning_rate must be positive: {self.learning_rate}")
        context = self.model.text.context_length
        _require(
            3 <= self.text_length <= context,
            f"text_length must lie between 3 and the model's context length {context}, "
            f"{self.text_length} came",
        )

    def to_json(self) -> str:
        """The config as indented JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote; ValueError names what is wrong with any other text."""
        try:
            data = json.loads(text)
            return cls(**{**data, "model": ClipConfig.from_json(json.dumps(data["model"]))})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            message = f"not a training config ({error}); expected what this version writes"
            raise ValueError(message) from None


PRESETS = {"quick": TrainConfig(), "full": TrainConfig(steps=1200, evaluate_every=300)}
