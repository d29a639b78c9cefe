"""Faults of preprocessing and of the tokenizer: each a small change of the exam's own code."""

import html
from typing import Any

import ftfy
import numpy as np
import regex
import torch
import torch.nn.functional as F
from PIL import Image

from experiments.proofs.planted_faults.peers.block_faults import Fault
from experiments.proofs.planted_faults.peers.program import Program

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def set_preprocess(**values: Any) -> Fault:
    def plant(program: Program, name: str) -> None:
        for key, value in values.items():
            setattr(program.preprocess, key, value)

    return plant


def set_tokenizer(**values: Any) -> Fault:
    def plant(program: Program, name: str) -> None:
        for key, value in values.items():
            setattr(program.tokenizer, key, value)

    return plant


take_bilinear = set_preprocess(filter=Image.Resampling.BILINEAR)
take_nearest = set_preprocess(filter=Image.Resampling.NEAREST)
take_imagenet = set_preprocess(**IMAGENET)
take_half = set_preprocess(**HALF)
skip_normalisation = set_preprocess(normalise=lambda x: x)


def swap_channels(program: Program, name: str) -> None:
    """Pictures as OpenCV reads them."""
    to_tensor = program.preprocess.to_tensor
    program.preprocess.to_tensor = lambda image: to_tensor(image).flip(0)  # type: ignore[method-assign]


def forget_255(program: Program, name: str) -> None:
    """Mean and deviation are applied to values from 0 to 255."""
    to_tensor = program.preprocess.to_tensor
    program.preprocess.to_tensor = lambda image: 255 * to_tensor(image)  # type: ignore[method-assign]


def pass_bytes(program: Program, name: str) -> None:
    """Values from 0 to 255, nothing applied."""
    program.preprocess.normalise = lambda x: 255 * x  # type: ignore[method-assign]


def resize_without_antialias(program: Program, name: str) -> None:
    """torch's bicubic on a tensor, as `antialias=None` gave it in torchvision."""
    preprocess = program.preprocess

    def resize(image: Image.Image) -> Image.Image:
        width, height = preprocess.target(*image.size)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        x = F.interpolate(x, (height, width), mode="bicubic", align_corners=False)
        return Image.fromarray(x[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())

    preprocess.resize = resize  # type: ignore[method-assign]


def crop_before_resize(program: Program, name: str) -> None:
    """The largest centred square is cut out, then resized."""
    preprocess = program.preprocess

    def square(image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        cut = image.crop((left, top, left + side, top + side))
        return cut.resize((preprocess.size, preprocess.size), preprocess.filter)

    preprocess.square = square  # type: ignore[method-assign]


def squash(program: Program, name: str) -> None:
    size = program.preprocess.size
    program.preprocess.target = lambda width, height: (size, size)  # type: ignore[method-assign]


def round_sizes(program: Program, name: str) -> None:
    """The long side is rounded where the released code truncates."""
    size = program.preprocess.size

    def target(width: int, height: int) -> tuple[int, int]:
        scale = size / min(width, height)
        return round(width * scale), round(height * scale)

    program.preprocess.target = target  # type: ignore[method-assign]


# The tokenizer ------------------------------------------------------------------------------------


def keep_case(program: Program, name: str) -> None:
    def clean(text: str) -> str:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return regex.sub(r"\s+", " ", text).strip()

    program.tokenizer.clean = clean  # type: ignore[method-assign]


drop_start = set_tokenizer(start=())
drop_end = set_tokenizer(end=())
pad_with_end = set_tokenizer(padding=49407)
shorten_context = set_tokenizer(context=76)
halve_context = set_tokenizer(context=32)
