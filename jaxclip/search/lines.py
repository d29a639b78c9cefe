"""The lines of a text as items to encode: each by its number, its content its digest."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxclip.search.catalogue import FileFacts
from jaxclip.search.read import AHEAD, Read


@dataclasses.dataclass(frozen=True)
class Lines:
    """Texts by the numbers of their lines; `to_tokens`: texts -> tokens [n, l]."""

    texts: dict[bytes, str]
    to_tokens: Callable[[Sequence[str]], np.ndarray]

    @property
    def names(self) -> Sequence[bytes]:
        """The numbers of the lines."""
        return list(self.texts)

    def changed(self, kept: dict[bytes, FileFacts], known: set[bytes]) -> list[bytes]:
        """Those whose text is not the kept one, or has no vector."""
        return [
            name
            for name, text in self.texts.items()
            if digest_of(text) not in known
            or name not in kept
            or kept[name].digest != digest_of(text)
        ]

    def read(self, todo: Sequence[bytes], known: set[bytes]) -> Iterator[Read]:
        """Every line with its tokens."""
        for start in range(0, len(todo), AHEAD):
            part = todo[start : start + AHEAD]
            texts = [self.texts[name] for name in part]
            for name, text, tokens in zip(part, texts, self.to_tokens(texts), strict=True):
                facts = FileFacts(name, 0, 0, 0, digest_of(text), None, None)
                yield Read(facts, None if facts.digest in known else tokens)


def digest_of(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()
