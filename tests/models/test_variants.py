"""Every field of a tower's config: the Flax modules against the reference in float64, and twins.

Each variant is a tiny random model with that field, or with all fields of a family.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import checkpoint, hardware, parity
from jaxclip.config import ClipConfig, read_config
from jaxclip.models import clip, parameters
from tests.support import variants
from tests.support.tolerances import departure, within, worst
from tests.support.variants import (
    VARIANTS,
    gradient,
    inputs,
    model,
    model64,
    plain_gradient,
    with_epsilon,
)


@functools.cache
def expected(name: str) -> parity.Rungs:
    return parity.reference_rungs(variants.flat(VARIANTS[name]), VARIANTS[name], *inputs(name))


def departures(name: str, got: clip.Clip) -> dict[str, float]:
    """How far each stage is from the reference's, over what rounding may do there."""
    rungs, right = parity.model_rungs(got, *inputs(name)), expected(name)
    return {
        stage: departure(rungs[stage], right[stage]) / within(tolerance(stage))
        for stage in rungs
        if stage in right and stage not in ("tokens", "pixels")
    }


def tolerance(stage: str) -> str:
    kind = stage.removeprefix("image.").removeprefix("text.").split(".")[0]
    return {"last": "pooled", "image_embeds": "embeds", "text_embeds": "embeds"}.get(kind, kind)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage_equals_the_reference(name: str) -> None:
    found = departures(name, model(name))
    shapes = parity.rung_shapes(VARIANTS[name], *inputs(name))
    assert set(shapes) == set(found)  # no stage that nobody judges
    assert {stage: x for stage, x in found.items() if x > 1} == {}


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_names_what_the_modules_have(name: str) -> None:
    abstract = parameters.named_leaves(clip.abstract(VARIANTS[name]))
    stacked = checkpoint.stack(variants.flat(VARIANTS[name]))
    assert {n: x.shape for n, x in stacked.items()} == {n: x.shape for n, x in abstract.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_travels_as_json(name: str) -> None:
    config = VARIANTS[name]
    assert read_config(config.to_json()) == config


# Twins: the same weights, one field wrong ---------------------------------------------------------


def changed(name: str, tower: str, **fields: Any) -> ClipConfig:
    config = VARIANTS[name]
    return dataclasses.replace(
        config, **{tower: dataclasses.replace(getattr(config, tower), **fields)}
    )


TWINS: dict[str, tuple[str, ClipConfig, str]] = {
    # what is wrong: (variant, the wrong config, a stage that must notice)
    "heads of 8 for 20": ("wide heads", changed("wide heads", "vision", heads=5), "image.block.0"),
    "heads of text": ("wide heads", changed("wide heads", "text", heads=3), "text.block.0"),
    "1e-5 for 1e-6": ("epsilon", with_epsilon(VARIANTS["epsilon"], 1e-5), "image.stem"),
    "1e-6 for 1e-5": ("mean", with_epsilon(VARIANTS["mean"], 1e-6), "image.stem"),
    "causal": ("SigLIP", changed("SigLIP", "text", causal=True), "text.block.0"),
    "not causal": ("mean", changed("mean", "text", causal=False), "text.block.0"),
    "last for end": (
        "end token",
        changed("end token", "text", pooling="last", end_token=None),
        "text.pooled",
    ),
    "largest for end": (
        "end token",
        changed("end token", "text", pooling="largest", end_token=None),
        "text.pooled",
    ),
    "first for last": ("last", changed("last", "text", pooling="first"), "text.pooled"),
    "class for mean": ("mean", changed("mean", "vision", pooling="class"), "image.pooled"),
    "norm after": ("mean", changed("mean", "vision", norm_after_pooling=True), "image.pooled"),
    "gelu for quick_gelu": (
        "mean",
        dataclasses.replace(VARIANTS["mean"], activation="gelu"),
        "image.block.0",
    ),
    "quick_gelu for gelu": (
        "wide heads",
        dataclasses.replace(VARIANTS["wide heads"], activation="quick_gelu"),
        "image.block.0",
    ),
    "tanh for exact": (
        "SigLIP",
        dataclasses.replace(VARIANTS["SigLIP"], activation="gelu_tanh"),
        "image.block.0",
    ),
    "exact for tanh": (
        "SigLIP 2",
        changed("SigLIP 2", "text", own_activation=None),
        "text.block.0",
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_wrong_field_is_noticed(twin: str) -> None:
    name, config, stage = TWINS[twin]
    found = departures(name, model(name, config))
    assert found[stage] > 3, found


def test_an_mlp_of_another_width_does_not_load() -> None:
    wrong = changed("narrow MLP", "vision", mlp_width=None)  # ratio 4 for g/14's 4.3637
    with pytest.raises(ValueError, match=r"c_fc.kernel: expected shape \(24, 96\), got \(24, 61\)"):
        model("narrow MLP", wrong)


def test_left_over_pixels_change_nothing() -> None:
    name = "left over pixels"
    images, _ = inputs(name)
    edge = images.copy()
    edge[:, 20:], edge[:, :, 20:] = 7.0, -7.0
    encode = model(name).encode_image
    assert (np.asarray(encode(images)) == np.asarray(encode(edge))).all()
    edge[:, 19] = 7.0
    assert (np.asarray(encode(images)) != np.asarray(encode(edge))).any()


# What chips change --------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize(
    "chip, name",
    [
        ("gpu", "SigLIP 2"),  # another epsilon, another MLP, not causal, a pool of its own
        ("tpu", "SigLIP 2"),
        ("gpu", "class token of text"),  # whose mask no fused kernel has
    ],
)
def test_arranged_for_a_chip_a_variant_trains_the_same(chip: str, name: str) -> None:
    options: Any = {"device_kind": "H100", "attention": "einsum"} if chip == "gpu" else {}
    with jax.enable_x64(True):
        arranged = hardware.arrange_training(model64(name), chip, "full", **options)
        got = parameters.to_flat(gradient(arranged, *inputs(name)))
    assert worst(got, plain_gradient(name)) < within("arranged gradients float64")


@pytest.mark.parametrize("name", ["narrow MLP", "SigLIP 2", "queries", "class token of text"])
def test_inference_on_a_cpu_equals_the_plain_model(name: str) -> None:
    found = departures(name, hardware.for_cpu(model(name)))
    assert {stage: x for stage, x in found.items() if x > 1} == {}
