"""Attention as Pallas kernels equals the einsum, its gradients too, at odd lengths and in bfloat16.

The kernels are interpreted here; that Triton compiles them for an H100 is tested where jax's CUDA
plugin is installed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from jaxclip import checkpoint, hardware
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.hardware import gpu, pallas_attention
from jaxclip.hardware.attention import Sequences, choose, padded_length, run_packed_kernel
from jaxclip.hardware.pallas_attention_blocks import Blocks
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics, weigh
from jaxclip.training import from_recipe, roofline, targets
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from tests.support import tiny
from tests.support.tolerances import departure, within, worst

H100 = "NVIDIA H100 80GB HBM3"
NO_PLUGIN = find_spec("jax_cuda13_plugin") is None
MODEL = ClipConfig(VisionConfig(20, 5, 32, 1, 2), TextConfig(32, 1, 2, 13, 101), 7)  # heads of 16
GRADIENTS = ("dq", "dk", "dv")
LAYERS = {"vision_layers": 1, "text_layers": 1}
QUICKLY = {"xla_backend_optimization_level": 0}  # only the rounding differs
Mix = Callable[[Any, Any], Any]
RNG = np.random.default_rng(7)


def mix_by_definition(causal: bool, qkv: Any, bias: Any) -> Any:
    """`layers.weigh` of a product [n, l, 3, a, k] and its bias [3 a k] -> [n, l, a, k]."""
    qkv, l = qkv + bias.reshape(qkv.shape[2:]), qkv.shape[1]
    mask = jnp.triu(jnp.full((l, l), -jnp.inf), k=1) if causal else None
    query, key, value = jnp.transpose(qkv, (2, 0, 3, 1, 4))  # [n, a, l, k]
    mixed, _ = weigh(query, key, value, mask, Numerics(jnp.float32, "highest"))
    return jnp.swapaxes(mixed, 1, 2)


def mix_by_kernel(causal: bool, qkv: Any, bias: Any) -> Any:
    """The same by the kernels, of a product [n, l, 3, a, k] and its bias [3 a k]."""
    n, l, *heads = qkv.shape
    fixed = jax.lax.stop_gradient(bias).astype(qkv.dtype).reshape(heads)
    return run_packed_kernel(qkv + fixed, bias, Sequences(n, l, l, causal, "pallas"))


@partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def with_gradient(mix: Mix, cotangent: Any, qkv: Any, bias: Any) -> dict[str, Any]:
    result, backward = jax.vjp(mix, qkv, bias)
    gradient, dbias = backward(cotangent.astype(result.dtype))
    parts = {name: gradient[:, :, i] for i, name in enumerate(GRADIENTS)}
    return {"mixed": result, **parts, "dbias": dbias}


def departures(tokens: int, causal: bool, dtype: Any = jnp.float32) -> dict[str, float]:
    """Of the kernels from the definition: result and gradients."""
    qkv = RNG.normal(size=(1, tokens, 3, 2, 32)).astype(np.float32)
    cotangent = RNG.normal(size=(1, tokens, 2, 32)).astype(np.float32)
    bias = np.zeros(3 * 2 * 32, np.float32)  # not drawn: bfloat16 would round the sum again
    want = with_gradient(partial(mix_by_definition, causal), cotangent, qkv, bias)
    qkv = jnp.asarray(qkv, dtype)
    got = with_gradient(partial(mix_by_kernel, causal), cotangent, qkv, bias)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in got.values())
    assert all(x.dtype == (bias if name == "dbias" else qkv).dtype for name, x in got.items())
    return {name: departure(got[name], want[name]) for name in want}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [17, 50, 64, 65, 77, 129, 257])
def test_the_kernels_are_the_einsum_and_its_gradient(tokens, causal, dtype):
    off = departures(tokens, causal, dtype)
    name = "pallas attention" + (" bfloat16" if dtype == jnp.bfloat16 else "")
    assert max(off.values()) < within(name), off


@pytest.fixture
def fresh() -> Iterator[None]:
    """No program of another test: what is patched here is no argument of a jit."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("tail", [16, 32])
@pytest.mark.parametrize(
    ("own", "other", "causal"), [(32, 64, False), (64, 32, False), (32, 16, True)]
)
def test_blocks_of_any_size_are_the_einsum(own, other, causal, tail, monkeypatch, fresh):
    blocks = Blocks(own, other, 4, 2, tail)
    for name in ("forward", "queries", "keys"):
        monkeypatch.setitem(pallas_attention.BLOCKS, (name, causal), blocks)
    off = departures(77, causal)
    assert max(off.values()) < within("pallas attention"), off


@pytest.mark.parametrize("mistake", ["mask shifted by one", "wrong scale", "empty place seen"])
def test_a_wrong_kernel_is_noticed(mistake, monkeypatch, fresh):
    causal = mistake == "mask shifted by one"
    shape = pallas_attention._Shape
    real = shape.seen

    def shifted(self: Any, queries: Any, keys: Any) -> Any:
        return real(self, queries + 1, keys)

    def everything(self: Any, queries: Any, keys: Any) -> Any:
        return keys >= 0

    if mistake == "wrong scale":
        wrong = lambda *given: shape(*given[:2], given[2] ** 2, given[3])  # noqa: E731
        monkeypatch.setattr(pallas_attention, "_Shape", wrong)
    else:
        monkeypatch.setattr(shape, "seen", shifted if causal else everything)
    off = departures(77, causal)
    assert min(off.values()) > 1e-2, off


def test_an_empty_place_in_the_sum_for_the_bias_is_noticed(monkeypatch, fresh):
    monkeypatch.setattr(pallas_attention, "_without_empty", lambda gradient, own: gradient)
    off = departures(77, causal=False)
    assert off.pop("dbias") > 1e-2
    assert max(off.values()) < within("pallas attention"), off


# In a model ---------------------------------------------------------------------------------------


def plain_model(remat: str) -> clip.Clip:
    flat = checkpoint.flatten(tiny.params(vision_width=32, text_width=32, **LAYERS))
    return parameters.from_flat(flat, clip.abstract(MODEL, remat=remat))


@partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
def loss_and_gradient(model: clip.Clip, reverse: bool = False) -> Any:
    rng = np.random.default_rng(5)
    images = rng.normal(size=(3, 20, 20, 3)).astype(np.float32)[:: -1 if reverse else 1]
    tokens = rng.integers(0, 101, size=(3, 13)).astype(np.int32)

    def loss(model: clip.Clip) -> Any:
        I_e, T_e = model.embed(images, tokens)
        return jnp.square(I_e @ T_e.T).sum() + (I_e[0] * T_e[1]).sum()

    value, gradient = jax.value_and_grad(loss)(model)
    named = parameters.named_leaves(gradient)
    del named["logit_scale"]  # it is not in this loss
    return value, named


@pytest.fixture(scope="module")
def plain_gradient() -> Any:
    plain = plain_model("none")
    loss, want = loss_and_gradient(plain)
    assert worst(loss_and_gradient(plain, reverse=True)[1], want) > 0.1  # the negative twin
    return loss, want


@pytest.mark.parametrize("remat", ["none", "products_and_attention", "full"])
def test_a_model_has_the_gradient_of_the_plain_one(remat, plain_gradient):
    loss, want = plain_gradient
    same, got = loss_and_gradient(gpu.for_gpu(plain_model(remat), H100, attention="pallas"))
    assert departure(same, loss) < within("gradient")
    assert worst(got, want) < within("gradient")


def test_nothing_is_padded_and_nothing_is_chosen_unmeasured():
    assert padded_length(77, "pallas") == 77
    assert padded_length(77, "cudnn") == padded_length(78, "xla") == 78
    measured = {("NVIDIA H200", l) for l in (50, 77, 197, 257, 577)}
    for chip in (H100, "NVIDIA H200", "NVIDIA A100-SXM4-80GB"):
        for l in (50, 77, 197, 257, 577):
            kernel = choose(chip, l, jnp.bfloat16, head=64, training_devices=1)
            assert (kernel == "pallas") is ((chip, l) in measured)


# What it does not take ----------------------------------------------------------------------------


def test_a_dtype_or_a_head_that_it_does_not_take_is_one_line():
    wide = dataclasses.replace(MODEL, vision=VisionConfig(20, 5, 160, 1, 2))
    with pytest.raises(
        ValueError, match=r"heads of 16, .* 128 channels for pallas, got 80"
    ) as told:
        gpu.for_gpu(clip.abstract(wide), H100, attention="pallas")
    assert "\n" not in str(told.value)
    double = clip.abstract(MODEL, numerics=Numerics(jnp.float64))
    with pytest.raises(ValueError, match=r"bfloat16, .* for pallas, got float64"):
        gpu.for_gpu(double, H100, attention="pallas")
    assert Execution("dense", attention="pallas").attention == "pallas"
    with pytest.raises(ValueError, match="auto or einsum on a cpu, got 'pallas'"):
        hardware.arrange_training(clip.abstract(MODEL), "cpu", "none", attention="pallas")


def test_padding_is_one_line():
    rows = Sequences(1, 18, 17, False, "pallas")
    with pytest.raises(ValueError, match="no padding for pallas, got 17 tokens of 18") as told:
        run_packed_kernel(jnp.zeros((1, 18, 3, 2, 32)), jnp.zeros(192), rows)
    assert "\n" not in str(told.value)


def test_a_jax_without_it_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxclip.hardware.pallas_attention", None)
    monkeypatch.delattr(hardware, "pallas_attention")
    with pytest.raises(ValueError, match=r"Pallas for Triton, got jax .*; choose another kernel"):
        gpu.for_gpu(clip.abstract(MODEL), H100, attention="pallas")


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices: see conftest.py")
def test_many_devices_are_refused():
    recipe = Recipe(batch_size=2, model=MODEL, text_length=13)
    with pytest.raises(ValueError, match="expected one device for pallas, got 2"):
        from_recipe.abstract_state(recipe, data_mesh(jax.devices()[:2]), "pallas")


# A compiler ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
@pytest.mark.parametrize("sequences", [128, 4096])
def test_offsets_into_more_than_2_31_numbers_have_64_bits(sequences, monkeypatch, capsys):
    monkeypatch.setattr(pallas_attention.pl, "pallas_call", partial(pl.pallas_call, debug=True))
    target = targets.find("h200")
    one = jax.sharding.SingleDeviceSharding(target.devices[0])
    qkv = jax.ShapeDtypeStruct((sequences, 257, 3, 16, 64), jnp.bfloat16, sharding=one)
    bias = jax.ShapeDtypeStruct((3 * 16 * 64,), jnp.float32, sharding=one)
    program = jax.jit(partial(pallas_attention.attend, causal=False, name="mixed"))
    with targets.compiling_for(target) as options:
        program.lower(qkv, bias).compile(compiler_options=options)
    printed = capsys.readouterr().out
    assert "tt.load" in printed
    assert ("xi64>" in printed) is (qkv.size > 2**31)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
@pytest.mark.parametrize(("tokens", "causal"), [(257, False), (77, True)])
def test_triton_compiles_the_kernels_for_an_h100(tokens, causal):
    target = targets.find("h100")
    one = jax.sharding.SingleDeviceSharding(target.devices[0])

    def given(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=one)

    arrays = given(128, tokens, 16, 64), given(128, tokens, 3, 16, 64)
    bias = given(3 * 16 * 64, dtype=jnp.float32)
    program = jax.jit(partial(with_gradient.__wrapped__, partial(mix_by_kernel, causal)))
    with targets.compiling_for(target) as options:
        compiled = program.lower(*arrays, bias).compile(compiler_options=options)
    found = roofline.kernels(targets.program_text(compiled, target))
    assert roofline.attention_calls(found) == {"triton": {"forward": 1, "backward": 2}}
    forward = 4 * 128 * 16 * 64 * tokens**2
    assert sum(kernel.flops for kernel in found) == 4.5 * forward
