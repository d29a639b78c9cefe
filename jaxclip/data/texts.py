"""Captions to tokens, and a count of the truncated ones."""

import logging
from collections.abc import Sequence

import numpy as np

from jaxclip.config import TextConfig
from jaxclip.model_tokenizer import tokenize_and_mark

logger = logging.getLogger(__name__)
CLIP = TextConfig(width=64)  # its tokenizer alone is used
MOST_COUNTED = 2**20  # different captions; the memory of a count is bounded


class Cutter:
    """Texts -> tokens [n, length]; longer texts are truncated, warned of once, and counted.

    text: the config of the model's text tower, whose tokenizer it is; CLIP's if not given.

    >>> cutter = Cutter(4, "captions")
    >>> cutter(["a cat"]).shape, cutter.describe()
    ((1, 4), '')
    """

    def __init__(self, length: int, what: str, text: TextConfig = CLIP) -> None:
        self.length, self.what, self.text = length, what, text
        self._cut: set[int] = set()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        tokens, cut = tokenize_and_mark(self.text, texts, self.length)
        for i in np.flatnonzero(cut).tolist():
            if len(self._cut) < MOST_COUNTED:
                if not self._cut:
                    logger.warning(
                        "%s of more than %d tokens are cut, the first: %.60r",
                        self.what,
                        self.length,
                        texts[i],
                    )
                self._cut.add(hash(texts[i]))
        return tokens

    @property
    def count(self) -> int:
        """Different texts that were cut until now, MOST_COUNTED at most."""
        return len(self._cut)

    def describe(self) -> str:
        """How many texts were cut, in words; empty where none was."""
        if not self.count:
            return ""
        least = "at least " if self.count == MOST_COUNTED else ""
        return f"{least}{self.count:,} {self.what} of more than {self.length} tokens were cut"
