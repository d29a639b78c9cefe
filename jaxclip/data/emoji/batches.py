"""Which pictures and captions make up the batch of a step: a pure function of seed and step.

Nothing needs remembering, so a resumed run sees the very batches that it would have seen.
A batch never holds two pictures of one name: with the released loss they would count as each
other's wrong answers.
"""

import dataclasses
import re

import numpy as np

from jaxclip.data.emoji.pictures import Pictures

KEYWORD_SHARE = 0.1  # of captions that go on with keywords after the name
MOST_KEYWORDS = 3
# A mirrored picture of these would no longer be what its name says.
SIDED = re.compile(r"\b(left|right|clock|arrow|letters?|flag|button|o.clock|thirty|keycap)\b")


@dataclasses.dataclass(frozen=True)
class Batch:
    """indices [n] into the pictures, mirrorable bool [n], n captions."""

    indices: np.ndarray
    mirrorable: np.ndarray
    captions: list[str]


class Batches:
    """The batch of every step, from pictures in memory.

    >>> from jaxclip.data.emoji.pictures import emoji
    >>> batches = Batches(emoji("validation"), batch_size=8, seed=0)
    >>> batches.at(5).captions == batches.at(5).captions
    True
    """

    def __init__(self, pictures: Pictures, batch_size: int, seed: int) -> None:
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

    def at(self, step: int) -> Batch:
        """The batch of one step, counted from 0."""
        an_epoch = len(self.groups) // self.batch_size
        epoch, place = divmod(step, an_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.groups))
        rng = np.random.default_rng([self.seed, 1, step])
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        indices = np.array([rng.choice(self.groups[g]) for g in chosen])
        captions = [self.caption(i, rng) for i in indices]
        return Batch(indices, self.mirrorable[indices], captions)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """The name, sometimes with some of the keywords behind it in any order.

        The name is always there: keywords alone ("face") fit hundreds of pictures. No prompt is
        put around it: its words would be most of what a bag of words sees.
        """
        name, keywords = self.pictures.names[index], self.pictures.keywords[index]
        if not keywords or rng.random() >= KEYWORD_SHARE:
            return name
        count = rng.integers(1, MOST_KEYWORDS + 1)
        return " ".join([name, *rng.permutation(keywords)[:count]])
