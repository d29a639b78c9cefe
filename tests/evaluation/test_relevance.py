"""Relevance maps: of the right shape, and brighter where the object of the text is."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxclip
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.evaluation.plots import on_white
from jaxclip.evaluation.relevance import attention_rollout, relevance_map, split_tower
from jaxclip.models import clip
from jaxclip.reference import l2_normalize
from tests.support.random_clip import random_clip
from tests.support.tolerances import departure, within

TEXT = TextConfig(8, 1, 2, 5, 20, "cbow")
VIT = VisionConfig(24, 8, 12, 2, 2)  # 3 x 3 patches
TOWERS = {
    "class": VIT,
    "attention": dataclasses.replace(VIT, class_token=False, pooling="attention"),
    "mean": dataclasses.replace(VIT, pooling="mean"),
    "resnet": ResNetConfig(64, 2, (1, 1, 1, 1)),
}


def model(vision: Any) -> clip.Clip:
    return random_clip(ClipConfig(vision, TEXT, 5))


def images(size: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


def directions(n: int, width: int) -> np.ndarray:
    return l2_normalize(np.random.default_rng(1).normal(size=(n, width))).astype(np.float32)


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("name", TOWERS)
def test_a_map_is_of_its_own_picture_and_of_the_tower_s_features(name: str) -> None:
    made = model(TOWERS[name])
    pixels, texts = images(TOWERS[name].image_size, 4), directions(4, 5)

    @jax.jit
    def both(made: clip.Clip, pixels: Any, texts: Any) -> Any:
        x, remaining = split_tower(made, pixels)
        maps, features = relevance_map(made, pixels, texts), made.visual(pixels)
        return maps, features, remaining(x), remaining(x + x[:, ::-1])

    maps, features, cut, other = map(np.asarray, both(made, pixels, texts))
    side = 4 if name == "resnet" else 3  # layer3 of the ResNet; its layer4 has 2 rows
    assert maps.shape == (4, side, side) and (maps >= 0).all()
    assert departure(cut, features) < within("relevance")  # else: the gradient of another function
    assert departure(other, features) > 1e-3  # what was cut off is read
    turned = np.asarray(both(made, pixels[::-1], texts[::-1])[0])
    assert departure(turned[::-1], maps) < within("relevance")
    assert departure(turned, maps) > 1e-2


def planted_vit() -> clip.Clip:
    """One block that takes the mean of all positions; channels 0 and 1 hold red and blue."""
    made = model(VisionConfig(24, 4, 8, 1, 2))
    made = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), made)
    visual, block = made.visual, made.visual.transformer.resblocks
    for norm in (visual.ln_pre, block.ln_1, block.ln_2, visual.ln_post):
        norm.scale = nnx.Param(np.ones_like(norm.scale[...]))
    colours = np.zeros((4, 4, 3, 8), np.float32)
    colours[:, :, 0, 0] = colours[:, :, 2, 1] = 1
    visual.conv1.kernel = nnx.Param(colours)
    values = np.eye(8, 24, 16, dtype=np.float32)  # no query, no key: equal weights
    block.attn.in_proj_kernel = nnx.Param(values[None])
    block.attn.out_proj.kernel = nnx.Param(np.eye(8, dtype=np.float32)[None])
    visual.proj = nnx.Param(np.eye(8, 5, dtype=np.float32))
    return made


@pytest.mark.usefixtures("quick_compiling")
def test_a_planted_vit_sees_each_colour_where_it_is() -> None:
    pixels = np.zeros((2, 24, 24, 3), np.float32)
    pixels[:, :, :12, 0] = 1  # red on the left
    pixels[:, :, 12:, 2] = 1  # blue on the right
    texts = np.eye(5, dtype=np.float32)[:2]
    red, blue = np.asarray(jax.jit(relevance_map)(planted_vit(), pixels, texts))
    assert red[:, :3].min() > red[:, 3:].max()
    assert blue[:, 3:].min() > blue[:, :3].max()


@pytest.mark.usefixtures("quick_compiling")
def test_a_rollout_multiplies_what_the_blocks_mix() -> None:
    vit = model(VIT)
    pixels = images(24)
    weights = np.asarray(jax.jit(lambda m, x: m.visual.stages(x)[1])(vit, pixels)["attention"])
    first, second = (weights.mean(2) + np.eye(10)) / 2  # [n, l, m] each
    row = (second @ first)[:, 0, 1:]
    expected = (row / row.sum(1, keepdims=True)).reshape(2, 3, 3)
    got = np.asarray(jax.jit(attention_rollout)(vit, pixels))
    assert departure(got, expected) < within("relevance")
    wrong = (first @ second)[:, 0, 1:]
    assert departure((wrong / wrong.sum(1, keepdims=True)).reshape(2, 3, 3), expected) > 1e-3


def test_a_resnet_has_no_rollout() -> None:
    with pytest.raises(ValueError, match="got a ResNet"):
        attention_rollout(model(TOWERS["resnet"]), images(64))


def side_by_side() -> tuple[list[Image.Image], list[str], list[str]]:
    """Two drawings of the unseen artist on white, left and right: pictures and both names."""
    drawings = load_emoji("test")
    left = np.random.default_rng(0).permutation(len(drawings.names))[:50]
    right = np.roll(left, 1)
    pictures = []
    for i, j in zip(left, right, strict=True):
        canvas = np.full((128, 128, 3), 255, np.uint8)
        canvas[32:96, :64], canvas[32:96, 64:] = map(on_white, drawings.images[[i, j]])
        pictures.append(Image.fromarray(canvas))
    return pictures, [drawings.names[i] for i in left], [drawings.names[j] for j in right]


@pytest.mark.usefixtures("quick_compiling")
def test_the_embedded_model_lights_up_the_half_that_the_word_names() -> None:
    made, preprocess = jaxclip.load("emoji")
    pictures, left, right = side_by_side()
    pixels = np.stack([preprocess.safe(each) for each in pictures])
    texts = l2_normalize(np.asarray(made.encode_text(made.tokenize([*left, *right]))))
    maps = np.asarray(jax.jit(relevance_map)(made, np.concatenate([pixels] * 2), texts))
    half = maps.shape[2] // 2
    sides = maps[..., :half].sum((1, 2)) - maps[..., half:].sum((1, 2))
    more = sides / np.maximum(maps.sum((1, 2)), 1e-12)  # 1: all on the left, -1: all on the right
    of_left, of_right = np.split(more, 2)
    assert (of_left > 0).mean() > 0.65 < (of_right < 0).mean()  # 0.79 of 600 such pairs
    assert of_left.mean() > 0.3 > -0.3 > of_right.mean()  # the other word: the other half
