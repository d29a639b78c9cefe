"""Every module for a CPU computes what the plain one computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import checkpoint, hardware
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.hardware import cpu, memory
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.models.resnet import AveragePool, BatchNorm
from tests.support import tiny
from tests.support.statistics import params_only, running_statistics, with_statistics
from tests.support.tolerances import departure, within, worst

VIT = ClipConfig(VisionConfig(20, 5, 24, 2, 3), TextConfig(16, 1, 2, 13, 101), 7)
BAG = TextConfig(16, context_length=13, vocab_size=101, kind="cbow")
RESNET = ClipConfig(ResNetConfig(96, 16, (1, 2, 1, 1)), BAG, 7)
QUICKLY = {"xla_backend_optimization_level": 0}  # only the rounding differs
RNG = np.random.default_rng(3)


def flat_of(config: ClipConfig) -> checkpoint.Flat:
    if config is VIT:
        return checkpoint.flatten(tiny.params(vision_layers=2, text_layers=1))
    v = config.vision
    assert isinstance(v, ResNetConfig)
    tower = tiny.resnet(0, width=v.width, layers=v.layers, image_size=v.image_size)
    return checkpoint.flatten({**tiny.params(text="cbow"), "visual": tower})


def plain_model(config: ClipConfig, dtype: Any = jnp.float32) -> clip.Clip:
    like = clip.abstract(config, remat="none", numerics=Numerics(dtype))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), like)
    return parameters.from_flat(flat_of(config), like)


def batch(config: ClipConfig, n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    size = config.vision.image_size
    images = RNG.normal(size=(n, size, size, 3)).astype(np.float32)
    return images, RNG.integers(0, 101, size=(n, 13)).astype(np.int32)


@jax.jit
def stages(model: clip.Clip, images: Any, tokens: Any) -> dict[str, Any]:
    (image, seen), (text, also) = model.visual.stages(images), model.text.stages(tokens)
    named = {f"image {name}": x for name, x in seen.items()}
    return {
        **named,
        **{f"text {name}": x for name, x in also.items()},
        "image": image,
        "text": text,
    }


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_arranged_model_computes_every_stage_as_the_plain_one(config: ClipConfig) -> None:
    model, (images, tokens) = plain_model(config), batch(config)
    want, arranged = stages(model, images, tokens), hardware.for_cpu(model)
    got = stages(arranged, images, tokens)
    assert got.keys() == want.keys()
    assert {k: d for k in got if (d := departure(got[k], want[k])) > within("float32 twice")} == {}
    mixed_up = stages(arranged, images[::-1], tokens)  # the negative twin
    assert all(departure(mixed_up[k], want[k]) > 1e-3 for k in got if k.startswith("image"))


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_names_stay_and_shapes_can_be_arranged(config: ClipConfig) -> None:
    arranged = hardware.for_cpu(clip.abstract(config))
    assert parameters.named_leaves(arranged).keys() == flat_of(config).keys()
    leaves = jax.tree.leaves(arranged)
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    part = hardware.for_cpu(parameters.without_tower(clip.abstract(config), "text"))
    assert not hasattr(part, "text") and parameters.named_leaves(part)


def test_other_platforms_get_the_model_as_it_is() -> None:
    model = clip.abstract(VIT)
    for platform in ("gpu", "tpu"):  # in float32
        assert hardware.arrange(model, platform) is model
        assert hardware.arrange_training(model, platform, "none") is model
    assert type(hardware.arrange(model, "cpu")) is cpu.CpuClip
    assert hardware.plain(model) is model
    with pytest.raises(ValueError, match="expected cpu, gpu or tpu, got 'cuda'"):
        hardware.arrange(model, "cuda")


def loops(model: clip.Clip, images: Any, *, train: bool = False) -> bool:
    """Whether the image tower holds a loop."""
    traced = jax.make_jaxpr(lambda model, images: model.visual(images, train=train))
    return "scan[" in str(traced(model, images))


def test_pictures_share_statistics_in_training_and_go_one_by_one_otherwise() -> None:
    model, images = hardware.for_cpu(clip.abstract(RESNET)), batch(RESNET)[0]
    assert loops(model, images)
    assert not loops(model, images, train=True)
    assert not loops(model, images[:1])
    assert not loops(clip.abstract(RESNET), images)


def test_a_gradient_can_be_taken_of_an_arranged_model() -> None:
    """Inside of a trace the model compiles nothing of its own."""
    model, images = plain_model(VIT), batch(VIT)[0]
    want = jax.grad(lambda m: m.encode_image(images).sum())(model)
    got = jax.grad(lambda m: m.encode_image(images).sum())(hardware.for_cpu(model))
    name = "visual.transformer.resblocks.0.mlp.c_fc.kernel"
    got, want = (parameters.to_flat(each)[name] for each in (got, want))
    assert departure(got, want) < within("jit")
    assert departure(got[::-1], want) > 0.1


# Training -----------------------------------------------------------------------------------------


@partial(jax.jit, compiler_options=QUICKLY)
def compiled_gradient(model: clip.Clip, images: Any, tokens: Any) -> clip.Clip:
    def loss(params: clip.Clip) -> Any:
        whole = with_statistics(params, running_statistics(model))
        I_e, T_e, *_ = whole.embed(images, tokens, train=True)
        return jnp.square(I_e @ T_e.T).sum() + (I_e[0] * T_e[1]).sum()

    return jax.grad(loss)(params_only(model))


def gradient(model: clip.Clip, images: Any, tokens: Any) -> checkpoint.Flat:
    return parameters.to_flat(compiled_gradient(model, images, tokens))


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_arranged_model_has_the_gradient_of_the_plain_one(config: ClipConfig) -> None:
    with jax.enable_x64(True):  # in float32 rounding moves a ResNet's gradient by a hundredth
        model, (images, tokens) = plain_model(config, jnp.float64), batch(config)
        arranged = hardware.arrange_training(model, "cpu", "none")
        want, got = gradient(model, images, tokens), gradient(arranged, images, tokens)
        other = gradient(arranged, images[::-1], tokens)  # the negative twin
    assert got.keys() == want.keys()
    kernels = [name for name in want if name.endswith("kernel")]
    want, got, other = ({k: x[k] for k in kernels} for x in (want, got, other))
    assert worst(got, want) < within("arranged gradients float64")
    assert worst(other, want) > 0.1


def test_products_of_bfloat16_are_summed_in_float32_in_training() -> None:
    narrow = clip.abstract(VIT, numerics=Numerics(jnp.bfloat16))
    arranged = hardware.arrange_training(narrow, "cpu", "none")
    assert type(arranged.visual.numerics) is cpu.CpuNumerics
    assert type(hardware.arrange_training(narrow, "gpu", "none").visual.numerics) is Numerics


def test_what_is_swapped_for_training() -> None:
    for config in (VIT, RESNET):
        model = clip.abstract(config)
        arranged = hardware.arrange_training(model, "cpu", "none")
        assert parameters.named_leaves(arranged) == parameters.named_leaves(model)
    for remat, expected in (("none", True), ("full", False)):
        vit = hardware.arrange_training(clip.abstract(VIT, remat=remat), "cpu", remat)
        assert isinstance(vit.visual.transformer, cpu.InlineTransformer) is expected
        resnet = hardware.arrange_training(clip.abstract(RESNET), "cpu", remat)
        assert isinstance(resnet.visual.layer1[0].bn1, cpu.BarrierBatchNorm)
        assert isinstance(resnet.visual.avgpool, cpu.SlicedAveragePool)


def test_the_centred_batch_is_kept_for_the_backward_pass() -> None:
    def traced(norm: Any) -> str:
        forward: Callable[..., Any] = lambda norm, x: norm(x, train=True)[0]  # noqa: E731
        return str(jax.make_jaxpr(forward)(norm, jnp.zeros((2, 3, 3, 8))))

    model = clip.abstract(RESNET).visual.bn1
    assert type(model) is BatchNorm
    arranged = hardware.arrange_training(clip.abstract(RESNET), "cpu", "full").visual.bn1
    assert ["optimization_barrier" in traced(norm) for norm in (model, arranged)] == [False, True]


@pytest.mark.parametrize(("side", "size"), [(8, 1), (8, 2), (7, 2), (9, 4)])
def test_the_pool_of_slices_is_the_mean_over_squares(side: int, size: int) -> None:
    x = jnp.asarray(RNG.normal(size=(2, side, side, 3)), jnp.float32)
    pooled, sliced = AveragePool(size)(x), cpu.SlicedAveragePool(size)(x)
    assert departure(sliced, pooled) < within("patches")
    assert departure(cpu.SlicedAveragePool(size)(x[:, ::-1]), pooled) > 0.1  # the negative twin


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("finite", [False, True])
def test_float16_weights_become_the_float32_of_numpy_to_the_bit(turned: bool, finite: bool) -> None:
    """All of them: subnormal, negative zero, infinite, none."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)] if finite else halves
    halves = halves.reshape(-1, 64).T if turned else halves.reshape(-1, 64)
    own = np.empty_like(halves, np.float32)
    assert memory._convert(halves, own) is finite
    assert np.array_equal(own.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def test_put_gives_the_array_in_the_format_of_the_leaf() -> None:
    x = RNG.normal(size=(3, 5))
    for leaf in (np.empty((3, 5), np.float32), np.empty((3, 21), np.float32)):
        put = memory.put(x, leaf)
        assert put.dtype == leaf.dtype and put.shape == leaf.shape
        assert np.array_equal(put[:, :5], x.astype(np.float32)) and not put[:, 5:].any()
        assert put.ctypes.data % 4096 == 0
    assert memory.put(np.float16(0.5), np.float32(0)).shape == ()
    with pytest.raises(ValueError, match="expected finite numbers"):
        memory.put(np.array([np.inf]), np.empty(1, np.float32))


def test_a_number_that_is_not_finite_is_named_however_it_is_put() -> None:
    flat = flat_of(VIT)
    name = "visual.transformer.resblocks.1.mlp.c_fc.bias"
    flat[name] = np.full_like(flat[name], 1e300)
    for like, put in (
        (clip.abstract(VIT), parameters.copy_array),
        (hardware.for_cpu(clip.abstract(VIT)), memory.put),
    ):
        with pytest.raises(ValueError, match=r"resblocks\.(1\.)?mlp\.c_fc\.bias: expected finite"):
            parameters.from_flat(flat, like, put)
