"""The backward kernel of blocks' layer norms gives the gradients of `layers.LayerNorm` in float64.

The kernel is interpreted here; that Triton compiles it for an H200 is tested where jax's CUDA
plugin is installed.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import checkpoint, hardware
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.hardware import gpu, norm, pallas_norm
from jaxclip.hardware.modules import modules_of
from jaxclip.models import clip, parameters
from jaxclip.models.layers import LayerNorm, Numerics
from jaxclip.models.starts import Shapes
from jaxclip.training import roofline, targets
from tests.support import tiny
from tests.support.tolerances import departure, within, worst

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
NO_PLUGIN = find_spec("jax_cuda13_plugin") is None
QUICKLY = {"xla_backend_optimization_level": 0}  # only the rounding differs
EPSILON = 1e-5
ROWS, WIDTHS = (1, 8, 71), (32, 48)  # 71 is no multiple of a block's rows; 48 no power of two
RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def five_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has several blocks of rows, of which the last are behind the end."""
    monkeypatch.setattr(pallas_norm, "WARPS", 5)


def arrays(m: int, d: int) -> dict[str, np.ndarray]:
    """x, in which epsilon shows, far from zero; scale; the gradients of x's two readers."""
    x = 0.05 * RNG.normal(size=(m, d)) + 0.3 * RNG.normal(size=(m, 1))
    named = {"x": x, "dy": RNG.normal(size=(m, d)), "passed": RNG.normal(size=(m, d))}
    return {**named, "scale": RNG.normal(size=d)}


def by_definition(given: dict[str, np.ndarray], epsilon: float = EPSILON) -> dict[str, np.ndarray]:
    """The gradients by `LayerNorm` and jax in float64, and the sum of x's over the rows."""

    def loss(module: LayerNorm, x: Any) -> Any:
        return (module(x) * given["dy"]).sum() + (x * given["passed"]).sum()

    with jax.enable_x64(True):
        abstract = LayerNorm(given["x"].shape[1], epsilon, init=Shapes())
        scale = given["scale"]
        module = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract)
        module.scale[...] = scale
        of_module, dx = jax.grad(loss, argnums=(0, 1))(module, given["x"])
        found = {"x": dx, **parameters.named_leaves(of_module), "added": dx.sum(0)}
        assert all(each.dtype == np.float64 for each in found.values())
        return {name: np.asarray(each) for name, each in found.items()}


def by_kernel(
    given: dict[str, np.ndarray], dtype: Any = jnp.float32, epsilon: float = EPSILON
) -> dict[str, np.ndarray]:
    """The same by `norm_and_pass`."""
    x, dy, passed = (jnp.asarray(given[name], dtype) for name in ("x", "dy", "passed"))
    scale = jnp.asarray(given["scale"], jnp.float32)
    zeros = jnp.zeros_like(scale)
    _, backward = jax.vjp(partial(norm.norm_and_pass, epsilon=epsilon), x, scale, zeros, zeros)
    found = dict(zip(("x", "scale", "bias", "added"), backward((passed, dy)), strict=True))
    assert found["x"].dtype == dtype
    return {name: np.asarray(each, np.float64) for name, each in found.items()}


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("m", ROWS)
def test_the_kernel_has_the_gradients_of_the_definition(m, d):
    given = arrays(m, d)
    assert worst(by_kernel(given), by_definition(given)) < within("norm kernel")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("d", WIDTHS)
def test_narrow_gradients_are_rounded_once(d, dtype):
    given = arrays(71, d)
    given = {k: np.asarray(jnp.asarray(a, dtype), np.float64) for k, a in given.items()}
    got, want = by_kernel(given, dtype), by_definition(given)
    rounded = np.asarray(jnp.asarray(want["x"], dtype), np.float64)
    ulp = float(jnp.finfo(dtype).eps) * np.maximum(np.abs(want["x"]), 1e-2)
    assert (np.abs(got.pop("x") - rounded) <= ulp).all()
    want["added"] = np.asarray(by_kernel(given, dtype)["x"]).sum(0)  # of what was rounded
    del want["x"]
    assert worst(got, want) < within("norm kernel")


MISTAKES = ["epsilon", "last rows missed", "rows behind the end", "residual left out"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_kernel_is_noticed(mistake, monkeypatch):
    given = arrays(71, 48)
    want = by_definition(given)
    wrong, epsilon = dict(given), EPSILON
    if mistake == "epsilon":
        epsilon = 1e-6
    if mistake == "last rows missed":
        blocks = property(lambda shape: shape.m // pallas_norm.ROWS)
        monkeypatch.setattr(pallas_norm._Shape, "blocks", blocks)
    if mistake == "rows behind the end":
        everything = lambda first, shape: jnp.ones((pallas_norm.ROWS, shape.columns), bool)  # noqa: E731
        monkeypatch.setattr(pallas_norm, "_inside", everything)
    if mistake == "residual left out":
        wrong["passed"] = 0 * given["passed"]
    got = by_kernel(wrong, epsilon=epsilon)
    off = {name: departure(got[name], want[name]) for name in ("scale", "bias", "added")}
    assert max(off.values()) > 1e-3, off


def test_more_numbers_than_the_kernel_can_count_are_left_to_xla(monkeypatch):
    given = arrays(8, 32)
    monkeypatch.setattr(pallas_norm, "MOST", 255)
    monkeypatch.setattr(pallas_norm, "differentiate", None)
    assert worst(by_kernel(given), by_definition(given)) < within("norm kernel")


# In a model ---------------------------------------------------------------------------------------

MODEL = ClipConfig(VisionConfig(20, 5, 48, 2, 3), TextConfig(32, 2, 2, 13, 101), 7)
FORCED = {"attention": "einsum", "norms": True}


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
    assert type(model.visual.transformer.resblocks) is norm.FusedNormBlock
    assert worst(gradient_of(model, tapped), exact[tapped]) < within("fused norms")


@pytest.mark.parametrize("mistake", ["bias left out", "bias counted twice", "residual left out"])
def test_a_wrong_gradient_of_a_model_is_noticed(mistake, exact, monkeypatch):
    real = pallas_norm.differentiate

    def wrong(x: Any, scale: Any, dy: Any, passed: Any, epsilon: float) -> Any:
        if mistake == "residual left out":
            passed = 0 * passed
        dx, dscale, dbias, total = real(x, scale, dy, passed, epsilon)
        return dx, dscale, dbias, 0 * total if mistake == "bias left out" else total

    monkeypatch.setattr(pallas_norm, "differentiate", wrong)
    if mistake == "bias counted twice":
        monkeypatch.setattr(norm.LinearBeforeNorm, "__call__", norm.Linear.__call__)
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
    monkeypatch.setitem(sys.modules, "jaxclip.hardware.pallas_norm", None)
    monkeypatch.delattr(hardware, "pallas_norm")
    assert not is_fused(H200, 1)
    with pytest.raises(ValueError, match=r"Pallas for Triton, got jax .*; leave the norms to XLA"):
        gpu.for_gpu(clip.abstract(MODEL), H200, norms=True)


def test_a_dtype_that_the_kernel_does_not_take_is_one_line():
    double = clip.abstract(MODEL, numerics=Numerics(jnp.float64))
    with pytest.raises(ValueError, match=r"norms: expected bfloat16, .* got float64") as told:
        gpu.for_gpu(double, H200, norms=True)
    assert "\n" not in str(told.value)


def test_it_can_be_forced_on_and_off():
    plain = clip.abstract(MODEL, numerics=Numerics(jnp.bfloat16))
    single = clip.abstract(MODEL)
    for model, chip, norms in ((plain, H200, False), (plain, H100, True), (single, "", True)):
        arranged = hardware.for_gpu(model, chip, norms=norms, training_devices=1)
        assert bool(classes(arranged)["FusedNormBlock"]) is norms


def test_every_leaf_keeps_its_name_and_the_plain_model_comes_back():
    plain = clip.abstract(MODEL, numerics=Numerics(jnp.bfloat16))
    model = gpu.for_gpu(plain, H200, training_devices=1)
    found = classes(model)
    assert found["FusedNormBlock"] == 2 and found["LinearBeforeNorm"] == 4
    assert parameters.named_leaves(model) == parameters.named_leaves(plain)
    assert nnx.graphdef(hardware.plain(model)) == nnx.graphdef(plain)
    assert not classes(plain)["FusedNormBlock"]


# A compiler ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
@pytest.mark.parametrize(("m", "d"), [(32896, 1024), (9856, 768)])
def test_triton_compiles_the_kernel_for_an_h200(m, d, monkeypatch):
    monkeypatch.undo()  # as many programs as on the card
    target = targets.find("h200")
    one = jax.sharding.SingleDeviceSharding(target.devices[0])
    x = jax.ShapeDtypeStruct((m, d), jnp.bfloat16, sharding=one)
    scale = jax.ShapeDtypeStruct((d,), jnp.float32, sharding=one)
    program = jax.jit(partial(pallas_norm.differentiate, epsilon=EPSILON))
    with targets.compiling_for(target) as options:
        compiled = program.lower(x, scale, x, x).compile(compiler_options=options)
    found = roofline.kernels(targets.program_text(compiled, target))
    assert not roofline.attention_calls(found)
    kernel = next(kernel for kernel in found if "triton" in kernel.by)
    assert kernel.kind == "other" and 8 * m * d < kernel.bytes < 1.1 * 8 * m * d
    assert sum(kernel.bytes for kernel in found) < 1.2 * 8 * m * d
