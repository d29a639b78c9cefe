"""The kernels of the MLP's activation give quick_gelu and its gradients in float64.

The kernels are interpreted here; that Triton compiles them for an H200 is tested where jax's CUDA
plugin is installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.hardware import pallas_activation
from jaxclip.models.layers import quick_gelu
from jaxclip.training import roofline, targets
from tests.support.tolerances import departure, within, worst

NO_PLUGIN = find_spec("jax_cuda13_plugin") is None
ROWS, WIDTHS = (1, 8, 71), (64, 80)  # neither 71 nor 80 is a multiple of a block's
RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has several blocks of rows, of which the last are behind the end."""
    few = pallas_activation.Blocks(rows=8, columns=32, warps=1, programs=12)
    monkeypatch.setattr(pallas_activation, "FORWARD", few)
    monkeypatch.setattr(pallas_activation, "BACKWARD", few)


def arrays(m: int, f: int) -> dict[str, np.ndarray]:
    """product, bias, and the gradient of the result; the bias's must not cancel."""
    product, dy = 2 * RNG.normal(size=(m, f)), 1 + RNG.normal(size=(m, f))
    return {"product": product, "bias": RNG.normal(size=f), "dy": dy}


def by_definition(given: dict[str, np.ndarray], h: np.ndarray | None = None) -> dict[str, Any]:
    """The result and its gradients by `quick_gelu` and jax in float64; h if not product + bias."""
    with jax.enable_x64(True):
        h = given["product"] + given["bias"] if h is None else h
        y, backward = jax.vjp(quick_gelu, jnp.asarray(h, jnp.float64))
        [dproduct] = backward(jnp.asarray(given["dy"]))
        found = {"y": y, "product": dproduct, "bias": dproduct.sum(0)}
        assert all(each.dtype == np.float64 for each in found.values())
        return {name: np.asarray(each) for name, each in found.items()}


def by_kernel(given: dict[str, np.ndarray], dtype: Any = jnp.float32) -> dict[str, np.ndarray]:
    """The same by `activate`."""
    product, dy = (jnp.asarray(given[name], dtype) for name in ("product", "dy"))
    bias = jnp.asarray(given["bias"], jnp.float32)
    y, backward = jax.vjp(pallas_activation.activate, product, bias)
    found = {"y": y, **dict(zip(("product", "bias"), backward(dy), strict=True))}
    assert [each.dtype for each in found.values()] == [dtype, dtype, jnp.float32]
    return {name: np.asarray(each, np.float64) for name, each in found.items()}


@pytest.mark.parametrize("f", WIDTHS)
@pytest.mark.parametrize("m", ROWS)
def test_the_kernels_have_the_value_and_gradients_of_the_definition(m, f):
    given = arrays(m, f)
    assert worst(by_kernel(given), by_definition(given)) < within("activation kernel")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("f", WIDTHS)
def test_narrow_sums_and_results_are_rounded_as_in_the_plain_model(f, dtype):
    given = {k: _rounded(each, dtype) for k, each in arrays(71, f).items()}
    got, h = by_kernel(given, dtype), given["product"] + given["bias"]
    # XLA for a CPU leaves out bfloat16's rounding between two operations
    wanted = [by_definition(given, each) for each in (h, _rounded(h, dtype))]
    assert any(_is_within_a_rounding(got, want, dtype) for want in wanted)
    assert departure(got["bias"], got["product"].sum(0)) < within("activation kernel")


def _is_within_a_rounding(got: dict[str, Any], want: dict[str, Any], dtype: Any) -> bool:
    """Whether the result and the product's gradient are next to those that were rounded once."""
    off = [np.abs(got[name] - _rounded(want[name], dtype)) for name in ("y", "product")]
    size = [np.maximum(np.abs(want[name]), 1e-2) for name in ("y", "product")]
    return bool((np.array(off) <= float(jnp.finfo(dtype).eps) * np.array(size)).all())


def _rounded(x: np.ndarray, dtype: Any) -> np.ndarray:
    return np.asarray(jnp.asarray(x, dtype), np.float64)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_numbers_far_from_zero_pass_or_vanish(dtype):
    h = _rounded(np.asarray([[1e4, -1e4, 88.0, -88.0, 6e4, -6e4, 0.0, -0.0]]), dtype)
    got = by_kernel({"product": h, "bias": np.zeros(8), "dy": np.ones((1, 8))}, dtype)
    np.testing.assert_array_equal(got["y"], np.maximum(h, 0))
    np.testing.assert_array_equal(got["product"], np.where(h == 0, 0.5, h > 0))


MISTAKES = ["slope", "last rows missed", "last columns missed", "bias left out"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_kernel_is_noticed(mistake, monkeypatch):
    given = arrays(71, 80)
    want, wrong = by_definition(given), dict(given)
    if mistake == "slope":
        monkeypatch.setattr(pallas_activation, "SLOPE", 1.7)
    if mistake == "last rows missed":
        row_blocks = property(lambda shape: shape.m // shape.rows)
        monkeypatch.setattr(pallas_activation._Shape, "row_blocks", row_blocks)
    if mistake == "last columns missed":
        grid = property(lambda shape: (shape.f // shape.columns, shape.programs))
        monkeypatch.setattr(pallas_activation._Shape, "grid", grid)
    if mistake == "bias left out":
        wrong["bias"] = 0 * given["bias"]
    got = by_kernel(wrong)
    off = {name: departure(got[name], want[name]) for name in want}
    assert off["bias"] > 10 * within("activation kernel"), off


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
@pytest.mark.parametrize(("m", "f"), [(32896, 4096), (9856, 3072)])
def test_triton_compiles_the_kernels_for_an_h200(m, f, monkeypatch):
    monkeypatch.undo()  # as many programs as on the card
    target = targets.find("h200")
    one = jax.sharding.SingleDeviceSharding(target.devices[0])
    product = jax.ShapeDtypeStruct((m, f), jnp.bfloat16, sharding=one)
    bias = jax.ShapeDtypeStruct((f,), jnp.float32, sharding=one)

    def both(product: Any, bias: Any, dy: Any) -> Any:
        y, backward = jax.vjp(pallas_activation.activate, product, bias)
        return y, backward(dy)

    with targets.compiling_for(target) as options:
        compiled = jax.jit(both).lower(product, bias, product).compile(compiler_options=options)
    found = roofline.kernels(targets.program_text(compiled, target))
    assert not roofline.attention_calls(found)
    moved = sorted(kernel.bytes / (m * f) for kernel in found if "triton" in kernel.by)
    assert all(kernel.kind == "other" for kernel in found)
    assert 4 < moved[0] < 1.01 * 4 and 6 < moved[1] < 1.05 * 6 and len(moved) == 2, moved
    assert sum(kernel.bytes for kernel in found) < 1.06 * 10 * m * f
