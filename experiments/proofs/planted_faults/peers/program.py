"""A whole program as a user of CLIP has one: preprocessing, tokenizer and model, in PyTorch.

Nothing of jaxclip's own arithmetic, preprocessing or tokenizer is used here; the vocabulary file
and the conversion of names are.
"""

import gzip
import html
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
import torch
from PIL import Image
from torch import Tensor, nn

import jaxclip
from experiments.proofs.planted_faults import models
from experiments.proofs.planted_faults.peers.resnet import ModifiedResNet
from experiments.proofs.planted_faults.peers.towers import (
    ACTIVATIONS,
    TextTransformer,
    VisionTransformer,
)
from jaxclip.checkpoint import Flat
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.convert import Loaded
from jaxclip.convert.conversion import to_layout

MERGES = Path(jaxclip.__file__).with_name("data_files") / "bpe_merges.txt.gz"
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


class Clip(nn.Module):
    """Both towers and the temperature."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]
        self.visual: Any = (
            ModifiedResNet(config.vision, config.embed_dim)
            if isinstance(config.vision, ResNetConfig)
            else VisionTransformer(config.vision, config.embed_dim, activation)
        )
        self.text = TextTransformer(config.text, config.embed_dim, activation)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens)

    def scale(self) -> Any:
        return self.logit_scale.exp()

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """[n, e] and [m, e] -> logits_per_image [n, m]."""
        image = image_features / image_features.norm(dim=-1, keepdim=True)
        text = text_features / text_features.norm(dim=-1, keepdim=True)
        return self.scale() * image @ text.T


def official_names(config: ClipConfig, flat: Flat) -> dict[str, Tensor]:
    """The weights under the official names, [out, in]: a state dict of the official code."""
    arrays = to_layout(Loaded(flat, config, {}), "open_clip")
    return {name: torch.tensor(np.array(a, order="C")) for name, a in arrays.items()}


def load(config: ClipConfig, flat: Flat) -> Clip:
    """The exam's model with weights of our layout."""
    clip = Clip(config).eval()
    ours = ("visual.", "logit_scale")
    state = {
        name if name.startswith(ours) else f"text.{name}": value
        for name, value in official_names(config, flat).items()
    }
    missing, unexpected = clip.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not missing and not unexpected, (missing, unexpected)
    return clip.requires_grad_(False)


class Preprocess:
    """Picture to pixels as the released code does it (clip/clip.py: _transform)."""

    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    filter = Image.Resampling.BICUBIC

    def __init__(self, size: int) -> None:
        self.size = size

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height once the shortest side is `size`."""
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size

    def resize(self, image: Image.Image) -> Image.Image:
        return image.resize(self.target(*image.size), self.filter)

    def crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def square(self, image: Image.Image) -> Image.Image:
        return self.crop(self.resize(image))

    def to_tensor(self, image: Image.Image) -> Tensor:
        """[3, h, w] between 0 and 1."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def normalise(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        return (x - mean) / std

    def __call__(self, picture: np.ndarray) -> Tensor:
        """picture [h, w, 3] uint8 -> [3, size, size]."""
        return self.normalise(self.to_tensor(self.square(Image.fromarray(picture))))


@cache
def byte_letters() -> dict[int, str]:
    """A printable letter for every byte (clip/simple_tokenizer.py: bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip([*printable, *others], letters, strict=True))


@cache
def vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """(id of every piece, rank of every merge)."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines if len(line.split()) == 2]
    merges = [m for m in merges if not m[0].startswith('"bpe')][: 49152 - 256 - 2]
    letters = list(byte_letters().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m) for m in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    return ids, {merge: rank for rank, merge in enumerate(merges)}  # type: ignore[misc]


def pieces_of(word: str) -> list[str]:
    """Byte-pair encoding of one word, merges of the lowest rank first."""
    letters = [byte_letters()[byte] for byte in word.encode()]
    pieces = [*letters[:-1], f"{letters[-1]}</w>"]
    ranks = vocabulary()[1]
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:
                merged[-1] += piece
                # a piece just merged may not merge again in this pass
                merged.append("")
            else:
                merged.append(piece)
        pieces = [piece for piece in merged if piece]
    return pieces


class Tokenizer:
    """Texts to rows of ids as the released code does it (clip/clip.py: tokenize)."""

    context = 77
    padding = 0
    start: tuple[int, ...] = (49406,)
    end: tuple[int, ...] = (49407,)

    def clean(self, text: str) -> str:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return regex.sub(r"\s+", " ", text).strip().lower()

    def ids(self, text: str) -> list[int]:
        ids = vocabulary()[0]
        words = WORDS.findall(self.clean(text))
        return [ids[piece] for word in words for piece in pieces_of(word)]

    def row(self, text: str) -> list[int]:
        """Both marks and padding; cut before the end mark."""
        room = self.context - len(self.start) - len(self.end)
        ids = [*self.start, *self.ids(text)[:room], *self.end]
        return ids + [self.padding] * (self.context - len(ids))

    def __call__(self, texts: list[str]) -> Tensor:
        """[m, context]."""
        return torch.tensor([self.row(text) for text in texts])


class Program:
    """All that a user runs. A fault is a function that changes one of these."""

    def __init__(self, model: str) -> None:
        config = models.MODELS[model]
        self.model = model
        self.config = config
        self.clip: Any = load(config, models.draw_weights(model))
        self.preprocess = Preprocess(config.vision.image_size)
        self.tokenizer = Tokenizer()
