"""Suite `tokenizer`: distinct captions to rows of tokens, beside the official tokenizer."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.bench.pairs import SuiteFlags, compared, in_turn, say
from experiments.lib.peers.parity_support import official_module
from jaxclip import tokenizer
from jaxclip.cli.usage import Positive

WORDS = (6, 16)  # in a caption, at least and at most


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    captions: Positive = 5000


def captions(count: int, seed: int = 0) -> list[str]:
    """Distinct captions of words of the vocabulary, a tenth of them misspelt."""
    words = [word for word in tokenizer._whole_words() if word.isalpha() and word.isascii()]
    rng = random.Random(seed)

    def word() -> str:
        chosen = rng.choice(words)
        return chosen[::-1] if rng.random() < 0.1 else chosen

    made = [" ".join(word() for _ in range(rng.randint(*WORDS))) for _ in range(count)]
    return [f"{text.capitalize()}." for text in made]


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """Each turn takes captions that neither side has seen: both remember words."""
    import torch

    simple = official_module("simple_tokenizer").SimpleTokenizer()
    per_turn = flags.captions
    every = captions(per_turn * flags.pairs)
    taken = {"jaxclip": 0, "official": 0}

    def next_ones(side: str) -> list[str]:
        start = taken[side]
        taken[side] = start + per_turn
        return every[start : start + per_turn]

    def official() -> Any:
        """As clip/clip.py: tokenize, truncating."""
        texts = next_ones("official")
        result = torch.zeros(len(texts), 77, dtype=torch.int)
        for i, text in enumerate(texts):
            ids = [simple.encoder["<|startoftext|>"], *simple.encode(text)]
            ids = [*ids[:76], simple.encoder["<|endoftext|>"]]
            result[i, : len(ids)] = torch.tensor(ids)
        return result

    ours = lambda: tokenizer.tokenize(next_ones("jaxclip"), truncate=True)  # noqa: E731
    say(f"{per_turn} captions a turn")
    if not np.array_equal(ours()[:100], official().numpy()[:100]):
        raise ValueError("the two tokenizers disagree")
    taken.update(dict.fromkeys(taken, 0))
    tokenizer._chunk_ids.cache_clear()
    simple.cache = {k: simple.cache[k] for k in ("<|startoftext|>", "<|endoftext|>")}
    seconds = in_turn({"jaxclip": ours, "official": official}, flags.pairs)
    row = compared({"what": "distinct captions", "captions": per_turn}, seconds)
    row["measured"] = {
        f"captions a second, {side}": round(per_turn / value)
        for side, value in row["cpu s"].items()
    }
    yield row
