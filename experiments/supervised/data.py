"""The datasets of `compare_supervised`: Fashion-MNIST in full, and the embedded drawings."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from experiments.recipes import fashion_mnist
from experiments.supervised.towers import DrawnArrays, LabelledArrays
from jaxclip.checkpoint import fingerprint
from jaxclip.config import ResNetConfig, VisionConfig
from jaxclip.data.emoji.pictures import load_emoji, load_unseen_artist

Tower = VisionConfig | ResNetConfig


class Data:
    """Pictures to train both sides on, and to test them on.

    towers: image towers by name; embed_dim: of the joint space, and the width of the bag of words.
    templates: of CLIP's captions. shots: labelled pictures a class for the few-shot probes; none
    where classes are too small. epochs: passes over the training pictures by default.
    candidates: the allowed answers, int [c].
    """

    name: str

    towers: ClassVar[Mapping[str, Tower]]
    templates: Sequence[str]
    shots: Sequence[int]
    epochs: float
    embed_dim: int
    classes: tuple[str, ...]
    candidates: np.ndarray

    def __init__(self) -> None:
        self._sized: dict[tuple[str, int], LabelledArrays] = {}

    def labels(self, split: str) -> np.ndarray:
        """The classes of "train" or "test", int [n]."""
        raise NotImplementedError

    def images(self, split: str) -> np.ndarray:
        """The pictures of "train" or "test" as they are stored, uint8 [n, ...]."""
        raise NotImplementedError

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all pictures, labels, classes and candidates."""
        arrays = {"candidates": self.candidates}
        for split in ("train", "test"):
            arrays |= {f"{split} images": self.images(split), f"{split} labels": self.labels(split)}
        return fingerprint(arrays, json.dumps(self.classes))

    def at(self, split: str, size: int) -> LabelledArrays:
        """A split for a tower of `size` pixels a side; resized once."""
        if (split, size) not in self._sized:
            self._sized[split, size] = self.sized(split, size)
        return self._sized[split, size]

    def sized(self, split: str, size: int) -> LabelledArrays:
        """As `at`, resized again."""
        raise NotImplementedError

    def answers(self, scores: np.ndarray) -> np.ndarray:
        """scores [n, classes] -> the best candidate, int16 [n]; of several that tie, the first."""
        return self.candidates[scores[:, self.candidates].argmax(axis=1)].astype(np.int16)


class FashionMnist(Data):
    """60,000 training and 10,000 test pictures of ten kinds of clothes."""

    name = "fashion_mnist"
    towers: ClassVar[Mapping[str, Tower]] = {
        "vit": VisionConfig(image_size=28, patch_size=7, width=64, layers=4, heads=2),
        "resnet": ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1)),
    }
    templates = (
        "a photo of a {}.",
        "a picture of a {}.",
        "a grey photo of a {}.",
        "a small photo of one {}.",
        "a {}, an article of clothing.",
    )
    shots = (1, 2, 4, 8, 16)
    epochs = 1.0
    embed_dim = 64

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.splits = {name: fashion_mnist.read(folder, name) for name in fashion_mnist.SPLITS}
        self.classes = fashion_mnist.CLASSES
        self.candidates = np.arange(len(self.classes))

    def labels(self, split: str) -> np.ndarray:
        return self.splits[split][1]

    def images(self, split: str) -> np.ndarray:
        return self.splits[split][0]

    def sized(self, split: str, size: int) -> LabelledArrays:
        """As the official preprocessing would size it: bicubic, in grey, then RGB."""
        pictures, labels = self.splits[split]
        resized = [Image.fromarray(x).resize((size, size), Image.BICUBIC) for x in pictures]
        images = np.repeat(np.stack([np.asarray(x) for x in resized])[..., None], 3, axis=-1)
        return LabelledArrays(images, labels, self.classes)


class Emoji(Data):
    """5,881 training drawings by four artists; 1,556 names by another artist to test on.

    Only those names are candidates. Three of them have no training drawing: a head has no weights
    for them, a text tower knows their words.
    """

    name = "emoji"
    towers: ClassVar[Mapping[str, Tower]] = {
        "vit": VisionConfig(image_size=32, patch_size=8, width=96, layers=4, heads=3),
        "resnet": ResNetConfig(image_size=32, width=16, layers=(1, 1, 1, 1)),
    }
    templates = ("{}",)
    shots = ()
    epochs = 20.0
    embed_dim = 128

    def __init__(self) -> None:
        super().__init__()
        train = load_emoji("train")
        self.splits = {"train": train, "test": load_unseen_artist()}
        self.classes = tuple(sorted({*train.names, *self.splits["test"].names}))
        self.candidates = np.unique(self.labels("test"))

    def labels(self, split: str) -> np.ndarray:
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[name] for name in self.splits[split].names])

    def images(self, split: str) -> np.ndarray:
        return self.splits[split].images

    def sized(self, split: str, size: int) -> LabelledArrays:
        """On white, sized as the official preprocessing does."""
        drawings = self.splits[split]
        images = np.stack([on_white(image, size) for image in drawings.images])
        return DrawnArrays(images, self.labels(split), self.classes, drawings)


def on_white(drawing: np.ndarray, size: int) -> np.ndarray:
    """A drawing uint8 [h, w, 4] laid on white, bicubic -> uint8 [size, size, 3]."""
    picture = Image.fromarray(drawing)
    ground = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(ground, picture).convert("RGB")
    return np.asarray(flat.resize((size, size), Image.BICUBIC))
