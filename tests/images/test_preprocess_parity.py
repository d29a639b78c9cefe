"""Pixels equal those of open_clip's and transformers' Pillow pipelines, to the bit."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.lib.peers.parity_support import torchvision_transforms
from jaxclip.config import CLIP_PICTURES, STD, PictureConfig, Sides, both_sides
from jaxclip.convert.layouts import pictures
from jaxclip.images.preprocess import Preprocess

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406)
MODES = ["1", "P", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", autouse=True)
def _torchvision() -> None:
    """Import it first as it can be imported; both libraries need it."""
    torchvision_transforms()


def random_picture(mode: str, dice: random.Random, seed: int) -> Image.Image:
    """A picture of random pixels, 2 to 200 a side."""
    width, height = dice.randint(2, 200), dice.randint(2, 200)
    rng = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(rng.integers(0, 300, (height, width)).astype(kind))
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, (height, width)).astype(bool))
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, (width, height), rng.bytes(width * height * bands))
    if mode == "P":
        image.putpalette(list(rng.bytes(768)))
        if seed % 2:
            image.info["transparency"] = int(rng.integers(256))
    return image


def open_clip_transform(how: PictureConfig, size: Sides) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(size, **pictures.to_open_clip(how)), is_train=False)


def image_processor(how: PictureConfig, size: Sides, kind: Any, *, fast: bool = False) -> Any:
    import transformers

    height, width = both_sides(size)
    settings = pictures.to_hugging_face(how, height, kind)
    if height != width:
        settings["size"] = {"height": height, "width": width}
    name = settings.pop("image_processor_type")
    return getattr(transformers, name if fast else f"{name}Pil")(**settings)


def their_pixels(processor: Any, image: Image.Image) -> np.ndarray:
    made = processor(image, return_tensors="np")["pixel_values"][0]
    return np.asarray(made).transpose(1, 2, 0)  # [h, w, c]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # theirs, not ours
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "how",
    [
        PictureConfig(interpolation="bilinear"),
        PictureConfig(HALF, HALF, resize="squash"),
        PictureConfig(IMAGENET, STD, "bilinear", "squash"),
        PictureConfig(HALF, HALF, "bicubic", "longest"),
        PictureConfig(HALF, HALF, "bilinear", "longest", fill=127),
    ],
    ids=lambda how: f"{how.interpolation}-{how.resize}-{how.fill}",
)
def test_pixels_equal_open_clips(mode: str, how: PictureConfig) -> None:
    dice = random.Random(mode)
    for seed in range(40):
        size, image = dice.choice([16, 17, 50, 64]), random_picture(mode, dice, seed)
        if how.resize == "longest" and min(image.size) * size < max(image.size):
            continue  # open_clip has no pixel left of the shorter side
        expected = open_clip_transform(how, size)(image).numpy().transpose(1, 2, 0)
        got = Preprocess(size, **vars(how))(image)
        np.testing.assert_array_equal(got, expected, f"{image.size} {size}")
        other = Preprocess(size, **vars(dataclasses.replace(how, mean=STD)))(image)
        assert not np.array_equal(other, expected), "mean of another model"


NOT_SQUARE = [(16, 17), (17, 16), (50, 21), (20, 64), (7, 90), (64, 63), (31, 5)]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # theirs, not ours
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_pixels_that_are_not_square_equal_open_clips(mode: str, filter_: Any, resize: Any) -> None:
    dice = random.Random(mode)
    how = PictureConfig(HALF, HALF, filter_, resize, fill=127)
    for seed in range(40):
        size, image = dice.choice(NOT_SQUARE), random_picture(mode, dice, seed)
        ratio = max(image.height / size[0], image.width / size[1])
        if resize == "longest" and min(image.size) < 0.6 * ratio:
            continue  # open_clip has no pixel left of the shorter side
        expected = open_clip_transform(how, size)(image).numpy().transpose(1, 2, 0)
        got = Preprocess(size, **vars(how))(image)
        assert got.shape == (*size, 3)
        np.testing.assert_array_equal(got, expected, f"{image.size} {size}")
        turned = Preprocess(size[::-1], **vars(how))(image).swapaxes(0, 1)
        if min(image.size) > 9 and mode == "RGB":
            assert not np.array_equal(turned, expected), "height and width exchanged"


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_open_clip_s_filter_is_bicubic_where_the_middle_is_not_square() -> None:
    """It does not pass `interpolation` on (open_clip/transform.py: image_transform)."""
    dice, how = random.Random(0), PictureConfig(interpolation="bilinear")
    image = random_picture("RGB", dice, 0)
    bicubic = Preprocess((30, 18), **vars(dataclasses.replace(how, interpolation="bicubic")))(image)
    np.testing.assert_array_equal(Preprocess((30, 18), **vars(how))(image), bicubic)
    expected = open_clip_transform(how, (30, 18))(image).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(bicubic, expected)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear"])
def test_a_squashed_picture_equals_that_of_transformers(kind: Any, filter_: Any) -> None:
    """No model of theirs takes it, but an image processor makes it."""
    dice = random.Random(0)
    how = PictureConfig(HALF, HALF, filter_, "squash", steps="transformers")
    for seed in range(40):
        size, image = dice.choice(NOT_SQUARE), random_picture(dice.choice(MODES[:8]), dice, seed)
        expected = their_pixels(image_processor(how, size, kind), image)
        np.testing.assert_array_equal(Preprocess(size, **vars(how))(image), expected)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("I;16", "I", "F")])
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("CLIP", dataclasses.replace(CLIP_PICTURES, steps="transformers")),
        ("CLIP", PictureConfig(HALF, STD, "bilinear", steps="transformers")),
        ("CLIP", PictureConfig(HALF, STD, "bicubic", "squash", steps="transformers")),
        ("Siglip", PictureConfig(HALF, HALF, "bicubic", "squash", steps="transformers")),
        ("Siglip", PictureConfig(HALF, HALF, "bilinear", "squash", steps="transformers")),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{x.interpolation}-{x.resize}",
)
def test_pixels_equal_those_of_transformers(mode: str, kind: Any, how: PictureConfig) -> None:
    dice = random.Random(mode)
    for seed in range(40):
        size, image = dice.choice([16, 17, 50, 64]), random_picture(mode, dice, seed)
        expected = their_pixels(image_processor(how, size, kind), image)
        got = Preprocess(size, **vars(how))(image)
        np.testing.assert_array_equal(got, expected, f"{image.size} {size}")
        other = dataclasses.replace(how, mean=IMAGENET, std=HALF)
        assert not np.array_equal(Preprocess(size, **vars(other))(image), expected)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("CLIP", dataclasses.replace(CLIP_PICTURES, steps="transformers")),
        ("Siglip", PictureConfig(HALF, HALF, "bicubic", "squash", steps="transformers")),
        ("Siglip", PictureConfig(HALF, HALF, "bilinear", "squash", steps="transformers")),
    ],
    ids=["CLIP", "SigLIP", "SigLIP 2"],
)
def test_the_fast_pipeline_is_a_few_grey_levels_away(kind: Any, how: PictureConfig) -> None:
    """docs/inputs.md has these numbers; `-s` prints them."""
    dice, levels = random.Random(0), []
    fast = image_processor(how, 64, kind, fast=True)
    for seed in range(40):
        image = random_picture("RGB", dice, seed)
        got = Preprocess(64, **vars(how))(image)
        away = np.abs(their_pixels(fast, image) - got) * np.asarray(how.std) * 255
        levels.append((away.max(), away.mean(), (away > 0.5).mean()))
    worst, mean, share = np.array(levels).T
    print(f"{kind}: at most {worst.max():.2f}, mean {mean.mean():.3f}, share {share.mean():.3f}")
    assert 0 < worst.max() <= 24 and mean.mean() < 0.2  # noise: the largest steps there are
