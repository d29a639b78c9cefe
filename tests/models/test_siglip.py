"""Training with SigLIP's loss (not in the paper): the bias trains, every way gives one gradient."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import checkpoint
from jaxclip.config import ClipConfig
from jaxclip.models import clip, parameters
from jaxclip.training import from_recipe
from jaxclip.training.optimizer import decay_mask
from jaxclip.training.pixels import normalize_image
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from jaxclip.training.sigmoid import ring_sigmoid_loss, sigmoid_loss
from jaxclip.training.step import loss_over_mesh
from tests.support.steps import CONFIG, IMAGES, PARAMS, TOKENS, loss_and_grads, tiny_model
from tests.support.tolerances import departure, within, worst

SIGLIP = dataclasses.replace(CONFIG, logit_bias=True)

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py"),
    pytest.mark.usefixtures("quick_compiling"),
]


def gradient(way: Any) -> checkpoint.Flat:
    """By official name, in float64, of a model whose bias is -1.5."""
    with jax.enable_x64(True):
        model = tiny_model(SIGLIP, {**PARAMS, "logit_bias": np.float64(-1.5)})
        return parameters.to_flat(jax.jit(way)(model, IMAGES, TOKENS)[0])


@functools.cache
def dense() -> checkpoint.Flat:
    return gradient(functools.partial(loss_and_grads, loss=sigmoid_loss))


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("devices", [1, 8])
def test_ring_and_microbatches_give_the_gradient_of_dense(devices: int, microbatches: int) -> None:
    loss = loss_over_mesh(data_mesh(jax.devices()[:devices]), ring_sigmoid_loss)
    way = functools.partial(loss_and_grads, loss=loss, microbatches=microbatches)
    assert worst(gradient(way), dense()) < within("devices float64")


def test_the_gradient_of_the_bias_is_what_a_difference_says() -> None:
    def value(bias: float) -> float:
        model = parameters.from_flat(
            {**PARAMS, "logit_bias": np.float32(bias)}, clip.abstract(SIGLIP)
        )
        I_e, T_e = model.embed(IMAGES.astype(np.float32), TOKENS)
        return float(sigmoid_loss(I_e, T_e, model.logit_scale[...], model.logit_bias[...]))

    slope = (value(-1.4) - value(-1.6)) / 0.2
    assert dense()["logit_bias"] == pytest.approx(slope, rel=0.01) and slope > 0.1


def test_a_gradient_without_that_of_the_bias_is_noticed() -> None:
    constant = gradient(
        functools.partial(
            loss_and_grads, loss=lambda I_e, T_e, t, b: sigmoid_loss(I_e, T_e, t, -1.5)
        )
    )
    assert departure(constant["logit_bias"], dense()["logit_bias"]) > 0.9


@pytest.mark.parametrize("loss", [pytest.param("dense", marks=pytest.mark.slow), "ring"])
def test_a_recipe_whose_model_has_a_bias_trains_it(loss: Any) -> None:
    config = Recipe(batch_size=16, steps=9, warmup=1, text_length=13, model=SIGLIP)
    mesh = data_mesh(jax.devices()[:2])
    state = from_recipe.first_state(config, mesh)
    assert float(state.params.logit_bias[...]) == -10
    assert float(state.params.logit_scale[...]) == pytest.approx(math.log(10))
    step = from_recipe.compiled_step(config, Execution(loss), mesh, normalize_image)
    batch = {"image": np.zeros((16, 20, 20, 3), np.uint8), "tokens": TOKENS}
    for _ in range(2):  # the rate is zero in the first
        state, metrics = step(state, batch, jax.random.key(0))
    assert float(state.params.logit_bias[...]) != -10
    assert math.isfinite(float(metrics["loss"]))
    assert parameters.named_leaves(decay_mask(state.params))["logit_bias"] is False


def test_losses_that_are_not_there_are_refused() -> None:
    config = Recipe(batch_size=16, text_length=13, model=SIGLIP)
    with pytest.raises(ValueError, match="loss: expected dense or ring, as SigLIP's has"):
        from_recipe.compiled_step(config, Execution("chunked"), data_mesh(), normalize_image)


def test_the_bias_is_in_the_logits_and_in_the_file(tmp_path: Any) -> None:
    flat = {**PARAMS, "logit_bias": np.float32(-1.5)}
    model = parameters.from_flat(flat, clip.abstract(SIGLIP))
    plain = parameters.from_flat(PARAMS, clip.abstract(CONFIG))
    images = IMAGES.astype(np.float32)
    gap = np.asarray(model(images, TOKENS)[0]) - np.asarray(plain(images, TOKENS)[0])
    assert np.abs(gap + 1.5).max() < 1e-4
    checkpoint.save(tmp_path / "m.safetensors", parameters.to_flat(model), SIGLIP, {})
    loaded, config, _ = checkpoint.load(tmp_path / "m.safetensors")
    assert config == SIGLIP and loaded["logit_bias"] == np.float32(-1.5)
    assert ClipConfig.from_json(CONFIG.to_json().replace(', "logit_bias": false', "")) == CONFIG
