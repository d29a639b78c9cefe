"""What the caller states about a model, held against what is known of it."""

from typing import NamedTuple, get_args

from jaxclip.config import Activation, ClipConfig

from .archive.inert import short_repr
from .layouts.infer import Heads
from .layouts.table import Config


class Given(NamedTuple):
    """What the caller states about the model, where the file does not."""

    activation: Activation | None = None
    heads: Heads | None = None


def check_given(given: Given) -> None:
    """ValueError where the caller states what no model has."""
    names = get_args(Activation)
    if given.activation is not None and given.activation not in names:
        raise ValueError(
            f"expected an activation of {', '.join(names)}, got {short_repr(given.activation)}"
        )
    if given.heads is not None and not (
        isinstance(given.heads, tuple | list)
        and len(given.heads) == 2
        and all(type(count) is int and count > 0 for count in given.heads)
    ):
        raise ValueError(
            "expected heads as two positive integers, of the image tower and of the text tower, "
            f"got {given.heads!r:.80}"
        )


def require_agreement(given: Given, config: Config, what: str) -> None:
    """ValueError where the caller contradicts a config that is known."""
    check_given(given)
    if given.activation is not None and config.activation != given.activation:
        raise ValueError(
            f"{what}: expected a model with activation {given.activation!r}, got one with "
            f"{config.activation!r}"
        )
    heads = None  # of one tower alone: nothing to compare with two numbers
    if isinstance(config, ClipConfig):
        heads = config.vision.heads, config.text.heads
    if given.heads is not None and heads not in (None, tuple(given.heads)):
        raise ValueError(
            f"{what}: expected a model with heads {tuple(given.heads)}, got one with {heads}"
        )
