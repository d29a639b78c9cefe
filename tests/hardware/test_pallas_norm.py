"""The backward kernel of blocks' layer norms gives the gradients of `layers.LayerNorm` in float64.

The kernel is interpreted here; that Triton compiles it for an H200 is tested where jax's CUDA
plugin is installed.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.hardware import norm, pallas_norm
from jaxclip.models import parameters
from jaxclip.models.layers import LayerNorm
from jaxclip.models.starts import Shapes
from jaxclip.training import roofline, targets
from tests.support.tolerances import departure, within, worst

NO_PLUGIN = find_spec("jax_cuda13_plugin") is None
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
    assert kernel.kind == "other" and 8 * m * d < kernel.bytes < 1.2 * 8 * m * d
    assert sum(kernel.bytes for kernel in found) < 1.4 * 8 * m * d
