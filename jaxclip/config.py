"""The configs of a model as frozen dataclasses, with JSON both ways; the released models.

Annotated: chapter 13, "Where the released code differs from the paper".
"""

import dataclasses
import json
import math
import re
from typing import Any, Literal, Self, TypeAlias, get_args

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
TextKind = Literal["transformer", "cbow"]
VisionPooling = Literal["class", "mean", "attention", "queries"]
TextPooling = Literal["largest", "end", "last", "first", "class_token"]
Projection = Literal["matrix", "linear", "none"]
Clean = Literal["none", "lower", "siglip", "canonicalize", "whitespace", "whitespace, lower"]
Interpolation = Literal["bicubic", "bilinear"]
Resize = Literal["shortest", "squash", "longest"]
Steps = Literal["openai", "transformers"]
Remat = Literal["none", "products", "products_and_attention", "full"]
Sides: TypeAlias = int | tuple[int, int]  # of a square, or height and width of what is none


def require(condition: object, message: str) -> None:
    """ValueError with that message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def short_repr(value: object) -> str:
    """A foreign value for an error message: one short line, and nothing inside it is called."""
    if isinstance(value, (str, bytes)):
        return repr(value[:80])
    if type(value) is int and value.bit_length() > 256:  # Python may refuse to print it
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:80] if type(value) in (int, float, bool) else f"a {type(value).__name__}"


MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the released preprocessing, in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)

# The largest sizes that a config may claim: some times those of the largest models, and small
# enough that no number taken from a file or a flag makes an endless loop or an endless allocation.
LARGEST = {
    "image_size": 16_384,
    "patch_size": 16_384,
    "width": 16_384,
    "layers": 1_024,
    "heads": 1_024,
    "context_length": 8_192,
    "vocab_size": 1 << 24,
    "embed_dim": 16_384,
    "mlp_width": 131_072,
}
LARGEST_STEM = 1_024  # channels of a ResNet's stem; the attention pool is 32 times as wide
MOST_POSITIONS = (1 << 16) + 1  # of an image tower: a grid of 256 x 256 and one more


# Fields that `to_json` writes whatever their value. It leaves out any other at its default, so that
# the configs of models as released stay the same text.
WRITTEN = ("layers", "heads", "context_length", "vocab_size", "kind", "activation", "logit_bias")


def _check_choices(config: Any, **choices: Any) -> None:
    """ValueError unless each field is one of the values of its `Literal`."""
    for name, kind in choices.items():
        value, known = getattr(config, name), get_args(kind)
        require(
            type(value) is str and value in known,
            f"{type(config).__name__}.{name}: expected one of {', '.join(known)}, "
            f"got {short_repr(value)}",
        )


def _check_blocks(config: Any) -> None:
    """ValueError unless what a tower says of its blocks makes sense."""
    of, epsilon = type(config).__name__, config.layer_norm_epsilon
    require(
        config.mlp_width is None
        or (type(config.mlp_width) is int and 0 < config.mlp_width <= LARGEST["mlp_width"]),
        f"{of}.mlp_width: expected none or an integer from 1 to {LARGEST['mlp_width']:,}, "
        f"got {short_repr(config.mlp_width)}",
    )
    require(
        type(epsilon) is float and 0 < epsilon < 1,
        f"{of}.layer_norm_epsilon: expected a number between 0 and 1, got {short_repr(epsilon)}",
    )
    if config.own_activation is not None:
        _check_choices(config, own_activation=Activation)
    _check_choices(config, projection=Projection)


def _check_queries(v: Any) -> None:
    """ValueError unless exactly the pooling "queries" says how many, and of how many heads."""
    for name, largest in (("queries", LARGEST["context_length"]), ("pool_heads", LARGEST["heads"])):
        value, wanted = getattr(v, name), f"an integer from 1 to {largest:,}"
        is_wanted = v.pooling == "queries"
        fits = type(value) is int and 0 < value <= largest if is_wanted else value is None
        require(
            fits,
            f"VisionConfig.{name}: expected {wanted if is_wanted else 'none'} for pooling "
            f"{short_repr(v.pooling)}, got {short_repr(value)}",
        )
    require(
        v.pooling != "queries" or (v.projection == "matrix" and v.norm_after_pooling is False),
        "vision pooling queries: expected projection matrix and no norm_after_pooling, got others",
    )


def _check_flags(config: Any, *names: str) -> None:
    """ValueError unless each of the fields is true or false."""
    for name in names:
        value = getattr(config, name)
        require(
            type(value) is bool,
            f"{type(config).__name__}.{name}: expected true or false, got {short_repr(value)}",
        )


def _check_sizes(config: Any) -> None:
    """ValueError unless every integer of a config lies between 1 and the largest it may be."""
    for field in dataclasses.fields(config):
        if field.type in (int, "int"):
            value, largest = getattr(config, field.name), LARGEST[field.name]
            require(
                type(value) is int and 0 < value <= largest,
                f"{type(config).__name__}.{field.name}: expected an integer from 1 to {largest:,}, "
                f"got {short_repr(value)}",
            )


def both_sides(sides: Sides) -> tuple[int, int]:
    """Height and width.

    >>> both_sides(224), both_sides((224, 160))
    ((224, 224), (224, 160))
    """
    return (sides, sides) if isinstance(sides, int) else sides


def as_sides(height: int, width: int) -> Sides:
    """One integer for a square, as a config keeps it, or both."""
    return height if height == width else (height, width)


def name_sides(sides: Sides) -> str:
    """For a message: "224", or "224 x 160" where height and width differ."""
    return " x ".join(map(str, (sides,) if isinstance(sides, int) else sides))


def check_sides(name: str, sides: Any, largest: int) -> None:
    """ValueError unless it is one integer for a square, or height and width that differ."""
    both = sides if type(sides) is tuple and len(sides) == 2 else (sides,)
    require(
        all(type(side) is int and 0 < side <= largest for side in both),
        f"{name}: expected an integer from 1 to {largest:,}, or two of them, height and width, "
        f"got {short_repr(sides) if both == (sides,) else ' and '.join(map(short_repr, both))}",
    )
    require(
        len(both) == 1 or both[0] != both[1],
        f"{name}: expected one integer for a square, got {both[0]} twice",
    )


def _check_positions(config: Any) -> None:
    """ValueError where the grid of an image tower has more positions than a model can take."""
    require(
        config.tokens <= MOST_POSITIONS,
        f"expected an image tower of at most {MOST_POSITIONS:,} positions, got {config.tokens:,}; "
        "use a smaller image_size",
    )


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision Transformer: pictures of `image_size` pixels a side, cut into patches.

    Both sizes are one integer for a square, or height and width. What is left of a side after the
    last whole patch is ignored, as a convolution does. The rest says how a tower differs from the
    released ones.
    """

    image_size: Sides
    patch_size: Sides
    width: int
    layers: int
    heads: int
    mlp_width: int | None = None
    """Channels inside of a block's MLP; four times the width if none."""
    layer_norm_epsilon: float = 1e-5
    own_activation: Activation | None = None
    """Where it is not the model's."""
    patch_bias: bool = False
    class_token: bool = True
    pre_norm: bool = True
    """Whether `ln_pre` normalises before the first block."""
    pooling: VisionPooling = "class"
    """The class token; the mean of the patches; SigLIP's attention pool over all positions; or the
    first of CoCa's queries, whose attention has as many channels as the features."""
    norm_after_pooling: bool = False
    """Whether `ln_post` normalises what was pooled, or every position before that."""
    projection: Projection = "matrix"
    """To the joint space: a matrix, with a bias as well ("linear"), or none: as wide already."""
    queries: int | None = None
    """How many the pooling "queries" has; the features need the first alone."""
    pool_heads: int | None = None
    """Heads of their attention."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_blocks(self)
        _check_queries(self)
        _check_flags(self, "patch_bias", "class_token", "pre_norm", "norm_after_pooling")
        _check_choices(self, pooling=VisionPooling)
        for name in ("image_size", "patch_size"):
            check_sides(f"VisionConfig.{name}", getattr(self, name), LARGEST[name])
        require(
            min(self.grid) > 0,
            f"image_size: expected patch_size {name_sides(self.patch_size)} or more, "
            f"got {name_sides(self.image_size)}",
        )
        width, heads = self.width, self.heads
        require(
            width % heads == 0, f"vision width: expected a multiple of {heads} heads, got {width}"
        )
        require(
            self.class_token or self.pooling != "class",
            "vision pooling: expected mean or attention without a class token, got class",
        )
        _check_positions(self)

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return both_sides(self.image_size)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return both_sides(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (down, across) = self.image_sides, self.patch_sides
        return height // down, width // across

    @property
    def is_square(self) -> bool:
        """Whether pictures and patches are."""
        return isinstance(self.image_size, int) and isinstance(self.patch_size, int)

    @property
    def tokens(self) -> int:
        """Positions of the tower: one a patch and the class token, if it has one."""
        return math.prod(self.grid) + int(self.class_token)

    @property
    def inner_width(self) -> int:
        """Channels inside of a block's MLP."""
        return self.mlp_width or 4 * self.width


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Modified ResNet: stem of `width` channels, four stages of `layers` blocks, attention pool.

    The towers of the paper's RN50x4, x16 and x64 differ from RN50 in all three numbers. Pictures
    are square: neither the released code nor open_clip has another attention pool.
    """

    image_size: int
    width: int
    layers: tuple[int, int, int, int]
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        _check_sizes(self)
        size, width, layers = self.image_size, self.width, self.layers
        whole = isinstance(layers, tuple) and all(type(blocks) is int for blocks in layers)
        require(
            whole and len(layers) == 4 and 0 < min(layers) <= max(layers) <= LARGEST["layers"],
            "ResNetConfig.layers: expected four integers from 1 to "
            f"{LARGEST['layers']:,}, got {short_repr(layers)}",
        )
        require(
            width <= LARGEST_STEM,
            f"ResNetConfig.width: expected an integer from 1 to {LARGEST_STEM:,}, got {width}",
        )
        require(
            self.kind == "resnet", f"vision kind: expected 'resnet', got {short_repr(self.kind)}"
        )
        require(width % 2 == 0, f"ResNet width: expected an even number, got {width}")
        # at one pixel less the first convolution rounds up, and the released code fails
        require(
            size >= 32 and size % 32 != 31,
            f"image_size: expected at least 32 and no multiple of 32 less one, got {size}",
        )
        _check_positions(self)

    @property
    def heads(self) -> int:
        """Heads of the attention pool, 64 channels each (clip/model.py: CLIP)."""
        return self.features // 64

    @property
    def features(self) -> int:
        """Channels of the last stage, the input of the attention pool."""
        return self.width * 32

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return both_sides(self.image_size)

    is_square = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage."""
        return both_sides(self.image_size // 32)

    @property
    def tokens(self) -> int:
        """Positions of the attention pool: one a cell of the last grid and their mean."""
        return math.prod(self.grid) + 1


def _vision(data: dict[str, Any]) -> VisionConfig | ResNetConfig:
    """The image tower's config from JSON: a ResNet names its kind, a transformer names none."""
    if "kind" in data:
        return ResNetConfig(**{**data, "layers": tuple(data["layers"])})
    items = {**data}.items()  # TypeError for what is no object
    fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in items}
    return VisionConfig(**fields)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The `tokenizer.json` beside a model's weights, and the rules around it."""

    sha256: str | None
    """Of the file; None where the model needs one and none was beside its weights."""
    pad: int = 0
    """The id that fills a row."""
    end: int | None = None
    """The id after the text, if any; it stays where the text is cut."""
    start: int | None = None
    """The id before the text, if any."""
    clean: Clean = "none"
    """What happens to a text first: nothing; lower case; transformers' rule for SigLIP (lower case,
    no punctuation); or one of open_clip's, which repair encodings and HTML escapes as well."""
    pad_left: bool = False

    def __post_init__(self) -> None:
        sha256 = self.sha256
        require(
            sha256 is None or (type(sha256) is str and re.fullmatch("[0-9a-f]{64}", sha256)),
            f"TokenizerConfig.sha256: expected 64 hexadecimal digits, got {short_repr(sha256)}",
        )
        for name in ("pad", "end", "start"):
            value = getattr(self, name)
            require(
                (value is None and name != "pad")
                or (type(value) is int and 0 <= value < LARGEST["vocab_size"]),
                f"TokenizerConfig.{name}: expected an id, got {short_repr(value)}",
            )
        _check_choices(self, clean=Clean)
        _check_flags(self, "pad_left")


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
    mlp_width: int | None = None
    """Channels inside of a block's MLP; four times the width if none."""
    layer_norm_epsilon: float = 1e-5
    own_activation: Activation | None = None
    """Where it is not the model's."""
    causal: bool = True
    pooling: TextPooling = "largest"
    """The position of the largest id, of the first `end_token`, the last or the first one; or
    CoCa's class token, one more after the text; id 0 is then padding, which is hidden."""
    end_token: int | None = None
    """The id that "end" looks for."""
    projection: Projection = "matrix"
    """To the joint space: a matrix, with a bias as well ("linear"), or none: as wide already."""
    tokenizer: TokenizerConfig | None = None
    """CLIP's own if none."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_blocks(self)
        _check_flags(self, "causal")
        of = self.tokenizer
        require(
            of is None or max(of.pad, of.end or 0, of.start or 0) < self.vocab_size,
            f"text tokenizer: expected ids below {self.vocab_size}, got {of}",
        )
        _check_choices(self, pooling=TextPooling)
        kinds = get_args(TextKind)
        require(
            self.kind in kinds,
            f"text kind: expected one of {', '.join(kinds)}, got {short_repr(self.kind)}",
        )
        end = self.end_token
        require(
            (end is None) == (self.pooling != "end")
            and (end is None or (type(end) is int and 0 <= end < self.vocab_size)),
            f"text end_token: expected an id below {self.vocab_size} for pooling end, none for "
            f"another, got {short_repr(end)} for {self.pooling}",
        )
        fits = self.kind == "cbow" or self.width % self.heads == 0
        require(fits, f"text width: expected a multiple of {self.heads} heads, got {self.width}")
        require(
            self.kind != "cbow" or (self.causal and self.pooling == "largest"),
            "text kind cbow: expected causal and pooling largest, got something else",
        )

    @property
    def inner_width(self) -> int:
        """Channels inside of a block's MLP."""
        return self.mlp_width or 4 * self.width

    @property
    def positions(self) -> int:
        """Of the context and of the class token, if the text has one."""
        return self.context_length + int(self.pooling == "class_token")

    @property
    def fixed_length(self) -> bool:
        """Whether a text must fill the context: its features depend on the length of its row."""
        return not self.causal or self.pooling in ("last", "class_token")


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


def _text(data: dict[str, Any]) -> TextConfig:
    """The text tower's config from JSON."""
    fields = {**data}  # TypeError for what is no object
    own = fields.get("tokenizer")
    fields["tokenizer"] = None if own is None else TokenizerConfig(**own)
    return TextConfig(**fields)


def _as_dict(config: Any) -> dict[str, Any]:
    """The fields of a config by name, without those left at a default that is not `WRITTEN`."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in WRITTEN or value != field.default:
            found[field.name] = _as_dict(value) if dataclasses.is_dataclass(value) else value
    return found


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """How a picture becomes pixels; by default as for the released models."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    """Shortest side to size, then the middle; both sides, whatever the shape; or longest side to
    size, then a border."""
    fill: int = 0
    """Value of the border in every channel, 0 to 255."""
    steps: Steps = "openai"
    """Whose order: "openai" resizes in the picture's own mode and rounds half a pixel of the crop
    to even; "transformers" converts to RGB on white first and rounds it down."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and all(type(x) in (int, float) for x in values)
            require(
                numbers and len(values) == 3 and all(math.isfinite(x) for x in values),
                f"{name}: expected three finite numbers, got {values!r:.80}",
            )
        require(min(self.std) > 0, f"std: expected three positive numbers, got {self.std!r:.80}")
        _check_choices(self, interpolation=Interpolation, resize=Resize, steps=Steps)
        require(
            type(self.fill) is int and 0 <= self.fill <= 255,
            f"PictureConfig.fill: expected an integer from 0 to 255, got {short_repr(self.fill)}",
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The config whose fields JSON keeps, lists for tuples."""
        items = {**data}.items()  # TypeError for what is no object
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in items}
        return cls(**fields)


CLIP_PICTURES = PictureConfig()


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
        _check_sizes(self)
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
            parts: dict[str, Any] = {"vision": _vision(data["vision"])}
            parts["text"] = _text(data["text"])
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
        _check_sizes(self)
        _check_choices(self, activation=Activation)
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
            parts["tower"] = _vision(tower) if "image_size" in tower else _text(tower)
            return cls(**{**data, **parts})
        except (TypeError, KeyError, RecursionError, json.JSONDecodeError) as error:
            message = f"expected a config that TowerConfig.to_json wrote, got another one ({error})"
            raise ValueError(message) from None


def _resnet(
    embed_dim: int, size: int, layers: tuple[int, int, int, int], width: int, text: int
) -> ClipConfig:
    return ClipConfig(
        ResNetConfig(size, width, layers), TextConfig(text, heads=text // 64), embed_dim
    )


def _vit(embed_dim: int, size: int, patch: int, width: int, layers: int, text: int) -> ClipConfig:
    vision = VisionConfig(size, patch, width, layers, heads=width // 64)
    return ClipConfig(vision, TextConfig(text, heads=text // 64), embed_dim)


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
