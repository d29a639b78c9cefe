"""Batches of emoji with captions: a pure function of seed and step.

There is no state, so a resumed run trains on the batches that it would have trained on. A batch
never holds two pictures of one name: each would be a wrong answer for the other in the loss.

Annotated: chapter 8, "Why batches are large".
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jaxclip.data.emoji.pictures import EmojiPictures

KEYWORD_SHARE = 0.1  # of captions: keywords follow the name
MOST_KEYWORDS = 3
# The name of such a picture is wrong once the picture is mirrored.
SIDED = re.compile(r"\b(left|right|clock|arrow|letters?|flag|button|o.clock|thirty|keycap)\b")


@dataclasses.dataclass(frozen=True)
class EmojiBatch:
    """indices [n] into the pictures, mirrorable bool [n], n captions."""

    indices: np.ndarray
    mirrorable: np.ndarray
    captions: list[str]


class EmojiBatches:
    """The batch of every step, from pictures in memory.

    >>> from jaxclip.data.emoji.pictures import load_emoji
    >>> batches = EmojiBatches(load_emoji("validation"), batch_size=8, seed=0)
    >>> batches.at(5).captions == batches.at(5).captions
    True
    """

    def __init__(
        self,
        pictures: EmojiPictures,
        batch_size: int,
        seed: int,
        sided: re.Pattern[str] = SIDED,
    ) -> None:
        by_name: dict[str, list[int]] = {}
        for i, name in enumerate(pictures.names):
            by_name.setdefault(name, []).append(i)
        self.groups = [np.array(group) for group in by_name.values()]
        if not 2 <= batch_size <= len(self.groups):
            raise ValueError(
                f"batch_size: expected 2 to {len(self.groups)}, as many different names as the "
                f"pictures have, got {batch_size}"
            )
        self.pictures, self.batch_size, self.seed = pictures, batch_size, seed
        self.mirrorable = np.array([not sided.search(name) for name in pictures.names])

    def at(self, step: int) -> EmojiBatch:
        """The batch of one step, counted from 0."""
        steps_an_epoch = len(self.groups) // self.batch_size
        epoch, within = divmod(step, steps_an_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.groups))
        rng = np.random.default_rng([self.seed, 1, step])
        chosen = order[within * self.batch_size : (within + 1) * self.batch_size]
        indices = np.array([rng.choice(self.groups[g]) for g in chosen])
        captions = [self.caption(i, rng) for i in indices]
        return EmojiBatch(indices, self.mirrorable[indices], captions)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """The name, in KEYWORD_SHARE of cases followed by some keywords in random order.

        Never keywords alone: "face" fits hundreds of pictures. No prompt template: its words would
        be most of the text for a bag of words.
        """
        name, keywords = self.pictures.names[index], self.pictures.keywords[index]
        if not keywords or rng.random() >= KEYWORD_SHARE:
            return name
        count = rng.integers(1, MOST_KEYWORDS + 1)
        return " ".join([name, *rng.permutation(keywords)[:count]])


TEMPLATE_SHARE = 0.15  # of captions of a mixture
TEMPLATES = (
    *("a photo of a {}", "a photo of the {}", "a picture of a {}", "an image of a {}"),
    *("a drawing of a {}", "an icon of a {}", "an emoji of a {}", "{} icon", "{} emoji"),
    *("a painting of a {}", "this is a {}", "a {}", "the {}"),
)


class MixedBatches:
    """The batch of every step, a fixed share of it from each of several sets of drawings.

    No name is in a batch twice, whatever sets it comes from. Some captions stand in a template, so
    that a model learns to read through the words of one.

    Args:
      parts: the sets of drawings, each of at least as many names as its share of a batch.
      shares: positive, one a set.
    """

    def __init__(
        self,
        parts: Sequence[EmojiPictures],
        shares: Sequence[float],
        batch_size: int,
        seed: int,
        sided: re.Pattern[str] = SIDED,
    ) -> None:
        ends = np.rint(np.cumsum(shares) / np.sum(shares) * batch_size).astype(int)
        counts = np.diff(ends, prepend=0)
        if counts.min() < 2:
            raise ValueError(
                f"batch_size: expected at least two pictures of each of {len(parts)} sets, "
                f"got {batch_size}"
            )
        self.seed = seed
        self.parts = [
            EmojiBatches(part, int(count), seed + 1000 * i, sided)
            for i, (part, count) in enumerate(zip(parts, counts, strict=True))
        ]

    def at(self, step: int) -> list[EmojiBatch]:
        """What the batch of one step, counted from 0, takes from each set."""
        rng = np.random.default_rng([self.seed, 2, step])
        taken: set[str] = set()
        return [self._without(part, part.at(step), taken, rng) for part in self.parts]

    def _without(
        self, part: EmojiBatches, batch: EmojiBatch, taken: set[str], rng: np.random.Generator
    ) -> EmojiBatch:
        """The batch with other pictures in place of those whose name is taken, in templates."""
        names, indices, captions = part.pictures.names, batch.indices.copy(), list(batch.captions)
        own = {names[i] for i in indices} - taken
        for row, i in enumerate(indices):
            if names[i] in taken:
                i = self._another(part, taken | own, rng)
                indices[row], captions[row] = i, part.caption(i, rng)
                own.add(names[i])
            if rng.random() < TEMPLATE_SHARE:
                captions[row] = str(rng.choice(TEMPLATES)).format(captions[row])
        taken |= own
        return EmojiBatch(indices, part.mirrorable[indices], captions)

    @staticmethod
    def _another(part: EmojiBatches, taken: set[str], rng: np.random.Generator) -> int:
        """A picture whose name is free: of a random name, or of the first free one after it."""
        count = len(part.groups)
        first = int(rng.integers(count))
        for i in range(count):
            group = part.groups[(first + i) % count]
            if part.pictures.names[group[0]] not in taken:
                return int(rng.choice(group))
        raise ValueError(
            f"batch_size: expected fewer pictures, got more than a set of {count} names can give, "
            "no name twice"
        )
