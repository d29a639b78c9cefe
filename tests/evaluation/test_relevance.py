"""Relevance maps: of the right shape, and brighter where the object of the text is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.evaluation.relevance import attention_rollout, relevance_map, split_tower
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip
from jaxclip.reference import l2_normalize
from tests.support.tolerances import departure, within

TEXT = TextConfig(8, 1, 2, 5, 20, "cbow")
VIT = VisionConfig(24, 8, 12, 2, 2)
TOWERS = {
    "class": VIT,
    "mean": VisionConfig(24, 8, 12, 2, 2, class_token=False, pooling="mean"),
    "mean with a class token": VisionConfig(24, 8, 12, 2, 2, pooling="mean"),
    "attention": VisionConfig(24, 8, 12, 2, 2, class_token=False, pooling="attention"),
    "resnet": ResNetConfig(96, 4, (1,) * 4),
}


def model(vision: Any) -> clip.Clip:
    return clip.create(ClipConfig(vision, TEXT, 5), remat="none")


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def directions(n: int, width: int) -> np.ndarray:
    return l2_normalize(np.random.default_rng(1).normal(size=(n, width))).astype(np.float32)


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("name", TOWERS)
def test_a_map_has_the_grid_s_shape_and_is_of_its_own_picture(name: str) -> None:
    made, pixels = model(TOWERS[name]), images(TOWERS[name].image_size)
    texts = directions(2, 5)
    mapped = jax.jit(relevance_map)
    both = np.asarray(mapped(made, pixels, texts))
    side = 6 if name == "resnet" else 3  # layer3 of the ResNet; its layer4 has 3 rows
    assert both.shape == (2, side, side)
    assert (both >= 0).all() and np.isfinite(both).all()
    other = np.asarray(mapped(made, pixels[[0, 0]], texts[[0, 0]]))
    assert departure(other[0], both[0]) < within("relevance")
    assert departure(other[1], both[1]) > 1e-2


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("name", TOWERS)
def test_the_parts_of_a_tower_give_its_features(name: str) -> None:
    """Else the gradient would be that of another function."""
    made, pixels = model(TOWERS[name]), images(TOWERS[name].image_size)

    @jax.jit
    def cut(made: clip.Clip, pixels: np.ndarray) -> Any:
        x, remaining = split_tower(made, pixels)
        return remaining(x), remaining(x[:, ::-1])

    features = np.asarray(made.encode_image(pixels))
    same, turned = (np.asarray(each) for each in cut(made, pixels))
    assert departure(same, features) < within("relevance")
    if name != "mean":  # of positions: their order says nothing
        assert departure(turned, features) > 1e-3


def planted_vit() -> clip.Clip:
    """One block that only takes the mean over all positions; channels 0 and 1 see red and blue."""
    made = model(VisionConfig(24, 4, 8, 1, 2))
    visual = made.visual
    for leaf in jax.tree.leaves(visual.transformer.resblocks.mlp.c_proj):
        assert leaf.ndim  # stacked
    flat = jax.tree.map(jnp.zeros_like, visual)
    visual.conv1.kernel = flat.conv1.kernel
    visual.conv1.kernel[...] = jnp.zeros((4, 4, 3, 8)).at[:, :, 0, 0].set(1).at[:, :, 2, 1].set(1)
    visual.positional_embedding[...] *= 0
    block = visual.transformer.resblocks
    block.attn.in_proj_kernel[...] = jnp.concatenate([jnp.zeros((8, 16)), jnp.eye(8)], 1)[None]
    block.attn.out_proj.kernel[...] = jnp.eye(8)[None]
    block.mlp.c_proj.kernel[...] *= 0
    visual.proj[...] = jnp.eye(8)[:, :5]
    return made


def test_a_planted_vit_sees_each_colour_where_it_is() -> None:
    pixels = np.zeros((2, 24, 24, 3), np.float32)
    pixels[:, :, :12, 0] = 1  # red on the left
    pixels[:, :, 12:, 2] = 1  # blue on the right
    red, blue = np.asarray(relevance_map(planted_vit(), pixels, np.eye(5, dtype=np.float32)[:2]))
    assert red[:, :3].min() > red[:, 3:].max()
    assert blue[:, 3:].min() > blue[:, :3].max()


def side_by_side() -> tuple[np.ndarray, list[str], list[str]]:
    """Two drawings of the unseen artist on white, left and right: pixels [n, h, w, c], names."""
    names = [
        "rocket",
        "bicycle",
        "hot beverage",
        "cat face",
        "umbrella",
        "key",
        "mushroom",
        "cactus",
    ]
    found = load_emoji("test")
    drawings = {}
    for name in names:
        rgba = found.images[found.names.index(name)].astype(np.float32)
        opacity = rgba[..., 3:] / 255
        drawings[name] = rgba[..., :3] * opacity + 255 * (1 - opacity)
    pictures = []
    others = names[1:] + names[:1]
    for left, right in zip(names, others, strict=True):
        canvas = np.full((128, 128, 3), 255, np.uint8)
        canvas[32:96, :64], canvas[32:96, 64:] = drawings[left], drawings[right]
        pictures.append(canvas)
    return np.stack(pictures), names, others


def test_the_embedded_model_lights_up_the_half_that_the_word_names() -> None:
    from PIL import Image

    made, preprocess = jaxclip.load("emoji")
    pictures, left, right = side_by_side()
    pixels = np.stack([preprocess.safe(Image.fromarray(each)) for each in pictures])
    texts = l2_normalize(np.asarray(made.encode_text(made.tokenize([*left, *right]))))
    n = len(left)
    maps = np.asarray(jax.jit(relevance_map)(made, np.concatenate([pixels] * 2), texts))
    half = maps.shape[2] // 2
    print((maps[..., :half].sum((1, 2)) - maps[..., half:].sum((1, 2))) / maps.sum((1, 2)), n)
    assert 0
