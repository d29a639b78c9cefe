"""Where a model looks: the maps are the model's own weights."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.evaluation.attention import attention_map
from jaxclip.models import clip

TEXT = TextConfig(8, 1, 2, 5, 20, "cbow")


def model(vision) -> clip.Clip:
    return clip.create(ClipConfig(vision, TEXT, 5), remat="none")


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("vision", [VisionConfig(24, 8, 12, 2, 2), ResNetConfig(96, 4, (1,) * 4)])
def test_a_map_sums_to_one_and_changes_with_the_picture(vision):
    loud = 1e4 * images(vision.image_size)  # what a new ResNet makes of a picture is faint
    maps = np.asarray(jax.jit(attention_map)(model(vision), loud))
    assert maps.shape == (2, 3, 3)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-6)
    assert np.abs(maps[0] - maps[1]).max() > 1e-5


def test_a_vit_looks_where_its_class_token_does():
    vit = model(VisionConfig(24, 8, 12, 2, 2))
    attention = vit.visual.stages(images(24))[1]["attention"]
    rest = np.asarray(attention)[-1, :, :, 0, 1:].mean(1)
    expected = (rest / rest.sum(-1, keepdims=True)).reshape(-1, 3, 3)
    np.testing.assert_allclose(attention_map(vit, images(24)), expected, atol=1e-6)
    assert np.abs(expected - expected.transpose(0, 2, 1)).max() > 1e-4  # rows are not columns


def test_a_resnet_looks_where_its_pool_does():
    resnet = model(ResNetConfig(96, 4, (1,) * 4))
    attention = np.asarray(resnet.visual.stages(images(96))[1]["attention"])  # [n, a, l]
    rest = attention[:, :, 1:].mean(1)
    expected = (rest / rest.sum(-1, keepdims=True)).reshape(-1, 3, 3)
    np.testing.assert_allclose(attention_map(resnet, images(96)), expected, atol=1e-6)


def test_the_weights_of_the_pool_give_what_the_pool_gives():
    """With one head's worth of channels the output is the weighted mean of the values."""
    resnet = model(ResNetConfig(96, 2, (1,) * 4))
    assert resnet.config.vision.heads == 1
    pool, grid = resnet.visual.attnpool, images(3 * 32)[:, :3, :3, :1].repeat(64, -1)
    taps: dict[str, Any] = {}
    pool(grid, taps)
    weights = np.asarray(taps["attention"])[:, 0]  # [n, l]
    x = grid.reshape(2, 9, 64)
    x = np.concatenate([x.mean(1, keepdims=True), x], 1) + np.asarray(
        pool.positional_embedding[...]
    )
    values = np.asarray(pool.v_proj(x))
    mixed = np.einsum("nl,nld->nd", weights, values)
    np.testing.assert_allclose(taps["pooled"], mixed, atol=1e-5)
    other = np.einsum("nl,nld->nd", weights[:, ::-1], values)  # the negative twin
    assert np.abs(taps["pooled"] - other).max() > 1e-3
