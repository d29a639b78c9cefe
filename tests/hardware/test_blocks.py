"""A model whose blocks have Pallas kernels has the gradient of the plain one.

The kernels are interpreted here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import checkpoint, hardware
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.hardware import blocks, gpu, pallas_activation, pallas_norm
from jaxclip.hardware.modules import modules_of
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Linear, Numerics
from tests.support import tiny
from tests.support.tolerances import within, worst

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
QUICKLY = {"xla_backend_optimization_level": 0}  # only the rounding differs


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has several blocks of rows, of which the last are behind the end."""
    monkeypatch.setattr(pallas_norm, "WARPS", 5)
    few = pallas_activation.Blocks(rows=2, columns=128, warps=1, programs=10)
    monkeypatch.setattr(pallas_activation, "FORWARD", few)
    monkeypatch.setattr(pallas_activation, "BACKWARD", few)


MODEL = ClipConfig(VisionConfig(20, 5, 48, 2, 3), TextConfig(32, 2, 2, 13, 101), 7)
FORCED = {"attention": "einsum", "block_kernels": True}


def plain_model(dtype: Any, remat: str = "none") -> clip.Clip:
    like = clip.abstract(MODEL, remat=remat, numerics=Numerics(dtype))
    wide = jnp.promote_types(dtype, jnp.float32)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, wide), like)
    sizes = {"vision_width": 48, "text_width": 32, "vision_layers": 2, "text_layers": 2}
    return parameters.from_flat(checkpoint.flatten(tiny.params(**sizes)), like)


def gradient_of(model: clip.Clip, tapped: bool = False) -> dict[str, Any]:
    """Of every parameter but the temperature, with blocks' outputs in the loss where `tapped`."""
    rng = np.random.default_rng(5)
    dtype = model.visual.numerics.dtype
    images = jnp.asarray(rng.normal(size=(3, 20, 20, 3)), jnp.promote_types(dtype, jnp.float32))
    tokens = rng.integers(0, 101, size=(3, 13)).astype(np.int32)

    @partial(jax.jit, compiler_options=QUICKLY)
    def gradient(model: clip.Clip) -> Any:
        def loss(model: clip.Clip) -> Any:
            if tapped:
                seen = model.visual.stages(images)[1], model.text.stages(tokens)[1]
                return sum(jnp.sin(3 * taps["hidden"]).sum() for taps in seen)
            I_e, T_e = model.embed(images, tokens)
            return jnp.square(I_e @ T_e.T).sum() + (I_e[0] * T_e[1]).sum()

        return jax.grad(loss)(model)

    named = parameters.named_leaves(gradient(model))
    return {name: leaf for name, leaf in named.items() if np.asarray(leaf).any()}


@pytest.fixture(scope="module")
def exact() -> dict[bool, dict[str, Any]]:
    """The plain model's gradient in float64, without taps and with them."""
    with jax.enable_x64(True):
        return {tapped: gradient_of(plain_model(jnp.float64), tapped) for tapped in (False, True)}


@pytest.mark.parametrize(
    ("remat", "tapped"),
    [
        ("none", False),
        ("products_and_attention", False),
        ("full", False),
        ("none", True),
        ("full", True),
    ],
)
def test_a_model_has_the_gradient_of_the_plain_one(remat, tapped, exact):
    model = gpu.for_gpu(plain_model(jnp.float32, remat), H100, **FORCED)
    for tower in (model.visual, model.text):
        assert type(tower.transformer.resblocks) is blocks.FusedNormBlock
        assert type(tower.transformer.resblocks.mlp) is blocks.FusedMlp
    assert worst(gradient_of(model, tapped), exact[tapped]) < within("block kernels")


@pytest.mark.parametrize(
    "mistake", ["bias left out", "bias counted twice", "residual left out", "bias of c_fc left out"]
)
def test_a_wrong_gradient_of_a_model_is_noticed(mistake, exact, monkeypatch):
    real = pallas_norm.differentiate

    def wrong(x: Any, scale: Any, dy: Any, passed: Any, epsilon: float) -> Any:
        if mistake == "residual left out":
            passed = 0 * passed
        dx, dscale, dbias, total = real(x, scale, dy, passed, epsilon)
        return dx, dscale, dbias, 0 * total if mistake == "bias left out" else total

    monkeypatch.setattr(pallas_norm, "differentiate", wrong)
    if mistake == "bias of c_fc left out":
        activate = pallas_activation.activate
        without = lambda product, bias: activate(product, 0 * bias)  # noqa: E731
        monkeypatch.setattr(pallas_activation, "activate", without)
    if mistake == "bias counted twice":
        monkeypatch.setattr(blocks.LinearBeforeNorm, "__call__", Linear.__call__)
    got = gradient_of(gpu.for_gpu(plain_model(jnp.float32), H100, **FORCED))
    got = {name: got.get(name, np.zeros(leaf.shape)) for name, leaf in exact[False].items()}
    assert worst(got, exact[False]) > 0.1


def test_bfloat16_stays_within_its_rounding(exact):
    plain = plain_model(jnp.bfloat16)
    fused = gpu.for_gpu(plain, H100, **FORCED)
    off = {}
    for name, model in (("plain", plain), ("fused", fused)):
        got = gradient_of(model)
        big = {key: leaf for key, leaf in exact[False].items() if key.endswith("kernel")}
        off[name] = worst({key: got[key] for key in big}, big)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in got.values())
    assert off["fused"] < 1.5 * off["plain"] < 1.5 * within("bfloat16 gradient")


# What is put in place -----------------------------------------------------------------------------


def classes(model: clip.Clip) -> Counter[str]:
    return Counter(type(module).__name__ for module in modules_of(model))


def is_fused(chip: str, devices: int | None, dtype: Any = jnp.bfloat16) -> bool:
    plain = clip.abstract(MODEL, numerics=Numerics(dtype))
    if devices is None:
        return bool(classes(hardware.arrange(plain, "gpu", device_kind=chip))["FusedNormBlock"])
    options = {"device_kind": chip, "devices": devices}
    model = hardware.arrange_training(plain, "gpu", "none", **options)
    return bool(classes(model)["FusedNormBlock"])


def test_blocks_are_fused_where_it_was_measured_alone():
    assert is_fused(H200, 1) and is_fused(H200, 1, jnp.float16)
    assert not is_fused(H200, 1, jnp.float32)
    assert not is_fused(H200, 2)
    assert not is_fused(H200, None)  # inference
    for other in (H100, "NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB", ""):
        assert not is_fused(other, 1)


def test_a_jax_without_pallas_for_triton_fuses_nothing(monkeypatch):
    for name in ("pallas_norm", "pallas_activation"):
        monkeypatch.setitem(sys.modules, f"jaxclip.hardware.{name}", None)
        monkeypatch.delattr(hardware, name)
    assert not is_fused(H200, 1)
    with pytest.raises(ValueError, match=r"Pallas for Triton, got jax .*; leave the blocks to XLA"):
        gpu.for_gpu(clip.abstract(MODEL), H200, block_kernels=True)


def test_a_dtype_that_the_kernels_do_not_take_is_one_line():
    double = clip.abstract(MODEL, numerics=Numerics(jnp.float64))
    with pytest.raises(
        ValueError, match=r"block_kernels: expected bfloat16, .* got float64"
    ) as told:
        gpu.for_gpu(double, H200, block_kernels=True)
    assert "\n" not in str(told.value)


def test_it_can_be_forced_on_and_off():
    plain = clip.abstract(MODEL, numerics=Numerics(jnp.bfloat16))
    single = clip.abstract(MODEL)
    for model, chip, on in ((plain, H200, False), (plain, H100, True), (single, "", True)):
        arranged = hardware.for_gpu(model, chip, block_kernels=on, training_devices=1)
        assert bool(classes(arranged)["FusedNormBlock"]) is on


def test_einsum_is_without_any_kernel():
    plain = clip.abstract(MODEL, numerics=Numerics(jnp.bfloat16))
    for attention, on in (("auto", True), ("cudnn", True), ("einsum", False)):
        arranged = gpu.for_gpu(plain, H200, attention=attention, training_devices=1)
        assert bool(classes(arranged)["FusedNormBlock"]) is on


def test_an_activation_without_kernels_is_left_to_xla():
    with_gelu = clip.abstract(dataclasses.replace(MODEL, activation="gelu"))
    found = classes(gpu.for_gpu(with_gelu, H200, block_kernels=True))
    assert found["FusedNormBlock"] == found["Mlp"] == 2 and not found["FusedMlp"]


def test_every_leaf_keeps_its_name_and_the_plain_model_comes_back():
    plain = clip.abstract(MODEL, numerics=Numerics(jnp.bfloat16))
    model = gpu.for_gpu(plain, H200, training_devices=1)
    found = classes(model)
    assert found["FusedNormBlock"] == found["FusedMlp"] == 2 and found["LinearBeforeNorm"] == 4
    assert parameters.named_leaves(model) == parameters.named_leaves(plain)
    assert nnx.graphdef(hardware.plain(model)) == nnx.graphdef(plain)
    assert not classes(plain)["FusedNormBlock"]
