"""How well a model knows named pictures: zero-shot, retrieval, and the floors beside them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxclip.data.emoji.pictures import Pictures
from jaxclip.evaluation.metrics import Tally, best, retrieve
from jaxclip.evaluation.zero_shot import classifier, in_blocks, unit
from jaxclip.images.preprocess import Preprocess
from jaxclip.tokenizer import check_vocabulary, tokenize

NEAREST_SIZE = 32  # pixels a side at which pictures are compared for the floor


def pixels(pictures: Pictures, size: int) -> np.ndarray:
    """What a person's picture file would become: `safe` policy -> float32 [n, size, size, 3]."""
    preprocess = Preprocess(size)
    return np.stack([preprocess.safe(Image.fromarray(x)) for x in pictures.images])


class Evaluation:
    """Zero-shot and retrieval on one set of pictures; the towers are compiled once.

    Args:
      pictures: what is asked about; each picture's name is the right answer.
      classes: all names to choose from; every picture's name is among them.
      prompts: templates with one slot {}; a class is the mean over all of them.
    """

    def __init__(
        self, pictures: Pictures, classes: Sequence[str], prompts: Sequence[str] = ("{}",)
    ) -> None:
        self.pictures, self.classes, self.prompts = pictures, sorted(set(classes)), prompts
        place = {name: i for i, name in enumerate(self.classes)}
        self.answers = np.array([place[name] for name in pictures.names])
        self.encode_image = jax.jit(lambda model, images: model.encode_image(images))
        self.encode_text = jax.jit(lambda model, tokens: model.encode_text(tokens))
        self._pixels: dict[int, np.ndarray] = {}

    def embeds(
        self, model: Any, text_embeds: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(image_embeds [n, e], one text embed a class [classes, e]).

        text_embeds: the second, where it is at hand (`compiled`).
        """
        size, length = model.config.vision.image_size, model.config.text.context_length
        if size not in self._pixels:
            self._pixels[size] = pixels(self.pictures, size)
        features = in_blocks(lambda x: self.encode_image(model, x), self._pixels[size], 256)
        if text_embeds is not None:
            return unit(features), text_embeds

        def encode(texts: Sequence[str]) -> np.ndarray:
            tokens = tokenize(texts, length, truncate=True)
            check_vocabulary(tokens, model.config.text.vocab_size)
            return in_blocks(lambda t: self.encode_text(model, t), tokens, 256)

        return unit(features), classifier(encode, self.classes, self.prompts)

    def __call__(self, model: Any, text_embeds: np.ndarray | None = None) -> dict[str, float]:
        """Top-1 and top-5 over the classes, and recall both ways between pictures and names.

        Retrieval is over one picture a name: picture to text among all names that have a picture,
        and text to picture among those pictures.
        """
        I_e, T_e = self.embeds(model, text_embeds)
        tally = Tally(len(self.classes))
        tally.add(self.answers, best(I_e @ T_e.T, 5)[0])
        labels, first = np.unique(self.answers, return_index=True)
        between = retrieve(I_e[first], T_e[labels], np.arange(len(labels)))
        scores = tally.metrics()
        return {name: scores[name] for name in ("top1", "top5")} | between.metrics()


def nearest_pixels(pictures: Pictures, training: Pictures) -> dict[str, float]:
    """The floor without learning: the name of the training picture with the nearest pixels.

    top-5 counts the first five different names. Distance is Euclidean over RGB on white.
    """
    asked = pixels(pictures, NEAREST_SIZE).reshape(len(pictures.names), -1)
    there = pixels(training, NEAREST_SIZE).reshape(len(training.names), -1)
    distance = (there**2).sum(1) - 2 * asked @ there.T  # [n, m], less the constant |asked|^2
    hits = np.zeros(5)
    for row, name in zip(np.argsort(distance, axis=1), pictures.names, strict=True):
        names = list(dict.fromkeys(training.names[i] for i in row[:200]))[:5]
        hits += np.array([name in names[: k + 1] for k in range(5)])
    return {"top1": hits[0] / len(asked), "top5": hits[4] / len(asked)}
