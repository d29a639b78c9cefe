"""Batches of emoji with captions: a pure function of seed and step.

There is no state, so a resumed run trains on the batches that it would have trained on. A batch
never holds two pictures of one name: each would be a wrong answer for the other in the loss.

Annotated: chapter 8, "Why batches are large".
"""

import dataclasses
import re

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

    def __init__(self, pictures: EmojiPictures, batch_size: int, seed: int) -> None:
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
        self.mirrorable = np.array([not SIDED.search(name) for name in pictures.names])

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
