"""Zero-shot and retrieval on named pictures, with two floors: nearest pixels and chance.

Annotated: chapter 11, "Zero-shot and prompts".
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxclip.config import CLIP_PICTURES, PictureConfig, Sides
from jaxclip.data.emoji.icons import HELD_OUT, caption_names, load_held_out
from jaxclip.data.emoji.pictures import EmojiPictures, load_emoji, load_unseen_artist
from jaxclip.evaluation.features import map_batches
from jaxclip.evaluation.metrics import Tally, retrieve, top_k
from jaxclip.evaluation.zero_shot import build_classifier
from jaxclip.images.preprocess import Preprocess
from jaxclip.reference import l2_normalize
from jaxclip.tokenizer import check_vocabulary

NEAREST_SIZE = 32  # pixels a side at which pictures are compared for the floor


def pixels(pictures: EmojiPictures, size: Sides, how: PictureConfig = CLIP_PICTURES) -> np.ndarray:
    """The pictures by the policy `safe`, as of picture files -> float32 [n, h, w, 3]."""
    preprocess = Preprocess(size, **vars(how))
    return np.stack([preprocess.safe(Image.fromarray(x)) for x in pictures.images])


class Evaluation:
    """Zero-shot and retrieval on one set of pictures; the towers are compiled once.

    Args:
      pictures: to classify; each picture's name is the right answer.
      classes: all names to choose from; every picture's name is among them.
      prompts: templates with one slot {}; a class is the mean over all of them.
    """

    def __init__(
        self, pictures: EmojiPictures, classes: Sequence[str], prompts: Sequence[str] = ("{}",)
    ) -> None:
        self.pictures, self.classes, self.prompts = pictures, sorted(set(classes)), prompts
        index = {name: i for i, name in enumerate(self.classes)}
        self.answers = np.array([index[name] for name in pictures.names])
        self.encode_image = jax.jit(lambda model, images: model.encode_image(images))
        self.encode_text = jax.jit(lambda model, tokens: model.encode_text(tokens))
        self._pixels: dict[tuple[Sides, PictureConfig], np.ndarray] = {}

    def embeds(
        self, model: Any, text_embeds: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(image_embeds [n, e], one text embed a class [classes, e]).

        text_embeds: the second, where it is known already (`cached_classifier`).
        """
        how = model.config.vision.image_size, model.config.pictures
        if how not in self._pixels:
            self._pixels[how] = pixels(self.pictures, *how)
        made = self._pixels[how]
        features = map_batches(lambda x: self.encode_image(model, x), made, 256)
        if text_embeds is not None:
            return l2_normalize(features), text_embeds

        def encode(texts: Sequence[str]) -> np.ndarray:
            tokens = model.tokenize(texts, truncate=True)
            check_vocabulary(tokens, model.config.text.vocab_size)
            return map_batches(lambda t: self.encode_text(model, t), tokens, 256)

        return l2_normalize(features), build_classifier(encode, self.classes, self.prompts)

    def __call__(self, model: Any, text_embeds: np.ndarray | None = None) -> dict[str, float]:
        """Top-1 and top-5 over the classes, and recall both ways between pictures and names.

        Retrieval is over one picture a name: picture to text among all names that have a picture,
        and text to picture among those pictures.
        """
        I_e, T_e = self.embeds(model, text_embeds)
        tally = Tally(len(self.classes))
        tally.add(self.answers, top_k(I_e @ T_e.T, 5)[0])
        labels, first = np.unique(self.answers, return_index=True)
        between = retrieve(I_e[first], T_e[labels], np.arange(len(labels)))
        scores = tally.metrics()
        return {name: scores[name] for name in ("top1", "top5")} | between.metrics()


class UnseenArtists:
    """The scores of `emoji`, and top-1 on each artist whom training on a zip of icons leaves out.

    Classes are the captions of an artist that are also in training.
    """

    def __init__(self, emoji: Evaluation, icons: Path) -> None:
        self.emoji = emoji
        known = caption_names(icons) | set(load_emoji("train").names)
        found = {artist: load_held_out(icons, artist, known) for artist in HELD_OUT}
        self.artists = {name: Evaluation(own, own.names) for name, own in found.items()}

    def __call__(self, model: Any) -> dict[str, float]:
        """Scores by name; those of an artist begin with the artist's name."""
        scores = self.emoji(model)
        for artist, evaluation in self.artists.items():
            scores[f"{artist}_top1"] = evaluation(model)["top1"]
        return scores


def nearest_pixels(pictures: EmojiPictures, training: EmojiPictures) -> dict[str, float]:
    """The floor without learning: the name of the training picture with the nearest pixels.

    top-5 counts the first five different names. Distance is Euclidean over RGB on white.
    """
    queries = pixels(pictures, NEAREST_SIZE).reshape(len(pictures.names), -1)
    known = pixels(training, NEAREST_SIZE).reshape(len(training.names), -1)
    distance = (known**2).sum(1) - 2 * queries @ known.T  # [n, m], less the constant |query|^2
    hits = np.zeros(5)
    for row, name in zip(np.argsort(distance, axis=1), pictures.names, strict=True):
        names = list(dict.fromkeys(training.names[i] for i in row[:200]))[:5]
        hits += np.array([name in names[: k + 1] for k in range(5)])
    return {"top1": hits[0] / len(queries), "top5": hits[4] / len(queries)}


def evaluate_unseen_artist(
    model: Any, text_embeds: Callable[[Sequence[str]], np.ndarray] | None = None
) -> tuple[dict[str, Any], Evaluation]:
    """({"classes", "pictures", "scores" of the model and of two floors}, the evaluation).

    The pictures are by an artist whom the embedded training pictures do not contain.

    text_embeds: class names -> text embeds [classes, e]; the model encodes the names if None.
    """
    test = load_unseen_artist()
    evaluation = Evaluation(test, test.names)
    count = len(evaluation.classes)
    chance = {"top1": 1 / count, "top5": 5 / count}
    chance |= {
        f"{way}_r{k}": k / count for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    T_e = None if text_embeds is None else text_embeds(evaluation.classes)
    scores = {
        "model": evaluation(model, T_e),
        "pixel nearest neighbour": nearest_pixels(test, load_emoji("train")),
        "chance": chance,
    }
    return {"classes": count, "pictures": len(test.names), "scores": scores}, evaluation
