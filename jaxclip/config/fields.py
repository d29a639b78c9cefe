"""What the fields of a config may be: choices, the largest sizes, height and width."""

import dataclasses
from typing import Any, Literal, TypeAlias, get_args

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


def check_choices(config: Any, **choices: Any) -> None:
    """ValueError unless each field is one of the values of its `Literal`."""
    for name, kind in choices.items():
        value, known = getattr(config, name), get_args(kind)
        require(
            type(value) is str and value in known,
            f"{type(config).__name__}.{name}: expected one of {', '.join(known)}, "
            f"got {short_repr(value)}",
        )


def check_blocks(config: Any) -> None:
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
        check_choices(config, own_activation=Activation)
    check_choices(config, projection=Projection)


def check_queries(v: Any) -> None:
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


def check_flags(config: Any, *names: str) -> None:
    """ValueError unless each of the fields is true or false."""
    for name in names:
        value = getattr(config, name)
        require(
            type(value) is bool,
            f"{type(config).__name__}.{name}: expected true or false, got {short_repr(value)}",
        )


def check_sizes(config: Any) -> None:
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


def check_positions(config: Any) -> None:
    """ValueError where the grid of an image tower has more positions than a model can take."""
    require(
        config.tokens <= MOST_POSITIONS,
        f"expected an image tower of at most {MOST_POSITIONS:,} positions, got {config.tokens:,}; "
        "use a smaller image_size",
    )
