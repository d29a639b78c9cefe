"""What each tab of the page shows, computed without the page: no gradio here.

Every answer is for a person: ValueError says in one line what is wrong with what was given.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxclip import hardware
from jaxclip.evaluation.attention import attention_map
from jaxclip.evaluation.classified import ClassifiedPicture, LabelClassifier, unrelated_words
from jaxclip.evaluation.features import map_batches, require_finite
from jaxclip.evaluation.prompts import require_slots
from jaxclip.evaluation.relevance import attention_rollout, relevance_map
from jaxclip.evaluation.zero_shot import average_prompts, fill_templates
from jaxclip.files import read_bytes
from jaxclip.images.open import decode_image
from jaxclip.models.resnet import ModifiedResNet
from jaxclip.reference import l2_normalize
from jaxclip.search.query import full_path, reading, unit

MOST_LABELS = 200
MOST_PROMPTS = 100  # the released sets have up to 80
MOST_PROMPTED = 4000  # texts: labels times prompts
MOST_CELLS = 12  # pictures, and texts, of a matrix
KEPT = 5000  # encodings of each kind,
KEPT_PROMPTS = 20  # and sets of prompts, with the unrelated words in them
TEXTS_A_CALL = 64


@dataclasses.dataclass(frozen=True)
class Photos:
    """A folder of pictures, its index and the key of the model whose vectors are searched."""

    pictures: Path
    index: Path
    key: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that was opened: what the model sees of it [h, w, c], and its content's digest."""

    pixels: np.ndarray
    digest: bytes


@dataclasses.dataclass(frozen=True)
class Seen:
    """A map over a picture: what it is of, what the model sees [h, w, 3] uint8, weights in 0..1."""

    name: str
    picture: np.ndarray
    weights: np.ndarray


class Kept:
    """The latest values by key, computed once; the oldest go when there are too many."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.values: dict[Hashable, Any] = {}

    def get(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Any]) -> list[Any]:
        """The values of all keys; `compute` gets the positions of those that are missing."""
        missing = [i for i, key in enumerate(keys) if key not in self.values]
        if missing:
            new = dict(zip((keys[i] for i in missing), compute(missing), strict=True))
            self.values |= new
        found = [self.values[key] for key in keys]
        while len(self.values) > self.most:
            del self.values[next(iter(self.values))]
        return found


def lines(text: str | None) -> list[str]:
    """The lines of a text field that hold something."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _require_count(what: str, given: Sequence[str], most: int) -> None:
    if not given:
        raise ValueError(f"expected {what}, one a line, got none; write one")
    if len(given) > most:
        raise ValueError(f"expected at most {most:,} {what}, got {len(given):,}; leave some out")


class Answers:
    """A model and what it has encoded so far; safe to call from several threads.

    Args:
      model: a `Clip` with both towers.
      preprocess: the model's.
      photos: the indexed folder to search, if any.
    """

    def __init__(self, model: Any, preprocess: Any, photos: Photos | None = None) -> None:
        self.model, self.preprocess, self.photos = hardware.plain(model), preprocess, photos
        self._lock = threading.Lock()
        self._images, self._labels = Kept(KEPT), Kept(KEPT)
        self._words = Kept(KEPT_PROMPTS)

    def open(self, path: str | Path | None) -> Picture:
        """A picture file, by the policy `safe`."""
        if not path:
            raise ValueError("expected a picture, got none; upload one or choose an example")
        try:
            content = read_bytes(Path(path))
            pixels = self.preprocess.safe(decode_image(content))
        except ValueError as error:
            name = repr(Path(path).name)  # the folder of uploads says nothing to a reader
            reason = str(error).removeprefix(f"{str(path)!r}: ")
            raise ValueError(f"{name}: {reason}") from None
        return Picture(pixels, hashlib.sha256(content).digest())

    def image_embeds(self, pictures: Sequence[Picture]) -> np.ndarray:
        """[n, e], rows of length one."""

        def encode(missing: list[int]) -> np.ndarray:
            pixels = np.stack([pictures[i].pixels for i in missing])
            features = map_batches(self.model.encode_image, pixels, 1)
            return l2_normalize(require_finite(features, "the picture"))

        with self._lock:
            return np.stack(self._images.get([each.digest for each in pictures], encode))

    def text_embeds(self, labels: Sequence[str], prompts: Sequence[str] = ("{}",)) -> np.ndarray:
        """[n, e], rows of length one, each the mean of a label in all prompts."""
        templates = require_slots(prompts)

        def encode(missing: list[int]) -> np.ndarray:
            texts = fill_templates([labels[i] for i in missing], templates)
            size = min(TEXTS_A_CALL, 1 << (len(texts) - 1).bit_length())  # few shapes to compile
            features = map_batches(self.model.encode_text, self.model.tokenize(texts), size)
            features = require_finite(np.asarray(features, np.float32), "the texts")
            return average_prompts(features, len(missing))

        with self._lock:
            return np.stack(self._labels.get([(label, templates) for label in labels], encode))

    def _unrelated_words(self, templates: Sequence[str]) -> np.ndarray:
        """Unit vectors of words that tell whether any label fits."""
        with self._lock:
            compute = lambda _: [unrelated_words(self.model, templates, None)]  # noqa: E731
            return np.asarray(self._words.get([tuple(templates)], compute)[0])

    def classify(self, path: str | Path | None, labels: str, prompts: str) -> ClassifiedPicture:
        """A picture with the labels, given one a line; the prompts have a slot {} each."""
        names, templates = lines(labels), lines(prompts) or ["{}"]
        _require_count("labels", names, MOST_LABELS)
        _require_count("prompts", templates, MOST_PROMPTS)
        if len(names) * len(templates) > MOST_PROMPTED:
            raise ValueError(
                f"expected at most {MOST_PROMPTED:,} texts, got {len(names):,} labels times "
                f"{len(templates):,} prompts; leave some out"
            )
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"expected each label once, got {twice[0]!r} twice; leave one out")
        image = self.image_embeds([self.open(path)])
        texts, words = self.text_embeds(names, templates), self._unrelated_words(templates)
        return LabelClassifier(tuple(names), texts, words).rank(self.model, [str(path)], image)[0]

    def search(
        self, words: str, path: str | Path | None, weight: float, minus: str, count: int
    ) -> list[tuple[str, float]]:
        """(path, cosine) of the pictures nearest to words plus a weighted picture less words."""
        if self.photos is None:
            raise ValueError("expected a folder of pictures, got none; start with --folder PHOTOS")
        plus, less = lines(words), lines(minus)
        if not plus and not path:
            raise ValueError("expected words or a picture to search for, got neither; give one")
        query = np.zeros(self.model.config.embed_dim, np.float32)
        if plus or less:
            _require_count("texts", [*plus, *less], MOST_LABELS)
            signs = np.array([1.0] * len(plus) + [-1.0] * len(less), np.float32)
            query += signs @ self.text_embeds([*plus, *less])
        if path:
            query += np.float32(weight) * self.image_embeds([self.open(path)])[0]
        with reading(self.photos.index, self.photos.key) as snapshot:
            hits = snapshot.search(unit(query, "what to search for"), int(count))
        return [(full_path(self.photos.pictures, hit.path), hit.score) for hit in hits]

    def look(self, path: str | Path | None, words: str) -> list[Seen]:
        """Where the words are seen, and where attention goes: maps over what the model sees."""
        picture = self.open(path)
        maps: list[tuple[str, np.ndarray]] = []
        if texts := lines(words):
            embeds = self.text_embeds([" ".join(texts)])
            maps.append(
                (f"relevance of {' '.join(texts)!r}", self._map(relevance_map, picture, embeds))
            )
        tower, vision = self.model.visual, self.model.config.vision
        if isinstance(tower, ModifiedResNet):
            maps.append(("attention of the pool", self._map(attention_map, picture)))
        else:
            if vision.pooling == "class":
                name = "attention of the class token, last block"
                maps.append((name, self._map(attention_map, picture)))
            maps.append(
                ("attention of all blocks (rollout)", self._map(attention_rollout, picture))
            )
        shown = self.preprocess.denormalise(picture.pixels)
        return [Seen(name, shown, weights) for name, weights in maps]

    def _map(self, function: Callable[..., Any], picture: Picture, *more: np.ndarray) -> np.ndarray:
        """A map of one picture, the largest weight 1; all zero where nothing speaks for it."""
        with self._lock:
            weights = np.asarray(_jitted(function)(self.model, picture.pixels[None], *more))[0]
        return weights / (weights.max() or 1)

    def matrix(self, paths: Sequence[str | Path], texts: str) -> np.ndarray:
        """The cosine of every picture and every text [n, m]."""
        captions = lines(texts)
        if not paths:
            raise ValueError("expected pictures, got none; upload some")
        if len(paths) > MOST_CELLS:
            raise ValueError(
                f"expected at most {MOST_CELLS} pictures, got {len(paths)}; leave some out"
            )
        _require_count("captions", captions, MOST_CELLS)
        pictures = [self.open(path) for path in paths]
        return self.image_embeds(pictures) @ self.text_embeds(captions).T


_jitted = functools.cache(jax.jit)


def overlay(seen: Seen, side: int = 300) -> Image.Image:
    """A map over its picture: what weighs nothing stays as it is, the heaviest is brightest.

    side: of the longer side, in pixels.
    """
    from matplotlib import colormaps  # imported late: it costs half a second

    high, wide = seen.picture.shape[:2]
    size = round(side * wide / max(high, wide)), round(side * high / max(high, wide))
    picture = Image.fromarray(seen.picture).resize(size, Image.Resampling.BICUBIC)
    weights = Image.fromarray(seen.weights.astype(np.float32)).resize(
        size, Image.Resampling.BILINEAR
    )
    heat = np.clip(np.asarray(weights), 0, 1)[..., None]  # [h, w, 1]
    colours = 255 * np.asarray(colormaps["inferno"](heat[..., 0]))[..., :3]
    mixed = np.asarray(picture) * (1 - 0.65 * heat) + colours * 0.65 * heat
    return Image.fromarray(np.round(mixed).astype(np.uint8))
