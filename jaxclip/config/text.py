"""The text towers' config, and that of a tokenizer beside a model's weights."""

import dataclasses
import re
from typing import Any, get_args

from jaxclip.config.fields import (
    LARGEST,
    Activation,
    Clean,
    Projection,
    TextKind,
    TextPooling,
    check_blocks,
    check_choices,
    check_flags,
    check_sizes,
    require,
    short_repr,
)


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
        check_choices(self, clean=Clean)
        check_flags(self, "pad_left")


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
        check_sizes(self)
        check_blocks(self)
        check_flags(self, "causal")
        of = self.tokenizer
        require(
            of is None or max(of.pad, of.end or 0, of.start or 0) < self.vocab_size,
            f"text tokenizer: expected ids below {self.vocab_size}, got {of}",
        )
        check_choices(self, pooling=TextPooling)
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


def text_from_json(data: dict[str, Any]) -> TextConfig:
    """The text tower's config from JSON."""
    fields = {**data}  # TypeError for what is no object
    own = fields.get("tokenizer")
    fields["tokenizer"] = None if own is None else TokenizerConfig(**own)
    return TextConfig(**fields)
