"""A model arranged for a GPU computes what the plain one computes, its gradient too.

cuDNN's kernel runs on a GPU only; "xla" takes its arguments and runs anywhere.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import checkpoint, hardware
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.hardware import attention, flat, gpu
from jaxclip.hardware.attention import Sequences, choose, run_kernel
from jaxclip.hardware.modules import become
from jaxclip.hardware.norm import LeanLayerNorm
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Attention, LayerNorm, Numerics, Transformer
from jaxclip.models.starts import Shapes
from jaxclip.training import from_recipe
from jaxclip.training.recipe import Recipe
from jaxclip.training.sharding import data_mesh
from tests.support import tiny
from tests.support.tolerances import departure, within, worst

VIT = ClipConfig(VisionConfig(20, 5, 24, 2, 3), TextConfig(16, 1, 2, 13, 101), 7)  # 17 and 13
QUICKLY = {"xla_backend_optimization_level": 0}  # only the rounding differs
H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
TOLERANCE = {"xla": "fused attention"} | dict.fromkeys(("einsum", "grouped"), "flat tokens float64")
RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(4, 20, 20, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 101, size=(4, 13)).astype(np.int32)


def plain_model(dtype: Any = jnp.float64, remat: str = "none") -> clip.Clip:
    like = clip.abstract(VIT, remat=remat, numerics=Numerics(dtype))
    wide = jnp.promote_types(dtype, jnp.float32)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, wide), like)
    return parameters.from_flat(
        checkpoint.flatten(tiny.params(vision_layers=2, text_layers=1)), like
    )


@partial(jax.jit, compiler_options=QUICKLY)
def stages(model: clip.Clip) -> dict[str, Any]:
    (image, seen), (text, also) = model.visual.stages(IMAGES), model.text.stages(TOKENS)
    named = {f"image {name}": x for name, x in seen.items()}
    return {**named, **{f"text {name}": x for name, x in also.items()}, "i": image, "t": text}


@partial(jax.jit, compiler_options=QUICKLY)
def loss_and_gradient(model: clip.Clip, images: Any) -> tuple[Any, clip.Clip]:
    def loss(model: clip.Clip) -> Any:
        I_e, T_e = model.embed(images, TOKENS)
        return jnp.square(I_e @ T_e.T).sum() + (I_e[0] * T_e[1]).sum()

    return jax.value_and_grad(loss)(model)


def arranged(model: clip.Clip, kernel: str) -> clip.Clip:
    """For a TPU where no kernel is named."""
    if kernel == "grouped":
        return hardware.arrange_training(model, "tpu", "full")
    return gpu.for_gpu(model, H100, attention=kernel)


@pytest.mark.parametrize("kernel", ["xla", "einsum", "grouped"])
def test_an_arranged_model_has_the_stages_of_the_plain_one(kernel):
    with jax.enable_x64(True):
        plain = plain_model()
        want, got = stages(plain), stages(arranged(plain, kernel))
        assert got.keys() == want.keys()
        off = {name: departure(got[name], want[name]) for name in want}
    assert max(off.values()) < within(TOLERANCE[kernel]), off


@pytest.fixture(scope="module")
def plain_gradient() -> Any:
    with jax.enable_x64(True):
        return loss_and_gradient(plain_model(), IMAGES.astype(np.float64))


@pytest.mark.parametrize(
    ("kernel", "remat"),
    [
        ("einsum", "none"),
        ("xla", "none"),
        ("xla", "products_and_attention"),
        ("xla", "full"),
        ("grouped", "full"),
    ],
)
def test_an_arranged_model_has_the_gradient_of_the_plain_one(kernel, remat, plain_gradient):
    loss, want = plain_gradient
    with jax.enable_x64(True):
        model = arranged(plain_model(remat=remat), kernel)
        same, got = loss_and_gradient(model, IMAGES.astype(np.float64))
        _, other = loss_and_gradient(model, IMAGES[::-1].astype(np.float64))
    want, got, other = (parameters.named_leaves(g) for g in (want, got, other))
    for gradient in (got, want, other):  # the temperature is not in this loss
        assert not np.asarray(gradient.pop("logit_scale", 0))
    assert departure(same, loss) < within(TOLERANCE[kernel])
    assert worst(got, want) < within(TOLERANCE[kernel])
    assert worst(other, want) > 0.1  # the negative twin


def test_bfloat16_stays_within_its_rounding_and_has_no_nan():
    exact = loss_and_gradient(plain_model(jnp.float32), IMAGES)
    narrow = plain_model(jnp.bfloat16)
    plain = loss_and_gradient(narrow, IMAGES)
    fused = loss_and_gradient(arranged(narrow, "xla"), IMAGES)
    for leaf in jax.tree.leaves(fused):
        assert np.isfinite(leaf).all()

    def off(found: Any) -> float:
        named, want = (parameters.named_leaves(x[1]) for x in (found, exact))
        return float(max(departure(named[k], want[k]) for k in named if k.endswith("kernel")))

    assert off(fused) < 1.5 * off(plain) < 1.5 * within("bfloat16 gradient")


# Attention ----------------------------------------------------------------------------------------


def one_attention(rows: Sequences) -> tuple[Attention, attention.FusedAttention, Any]:
    """The definition, the fused one with the same weights, tokens [n, l, d]."""
    config = VisionConfig(20, 5, 24, 2, 3)
    abstract = Attention(24, 3, config.layers, numerics=Numerics(jnp.float64), init=Shapes())
    leaves, structure = jax.tree.flatten(abstract)
    drawn = [0.3 * RNG.normal(size=leaf.shape) for leaf in leaves]
    plain, fused = (jax.tree.unflatten(structure, drawn) for _ in range(2))
    become(fused, attention.FusedAttention)
    return plain, fused, RNG.normal(size=(rows.count, rows.length, 24))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [49, 50, 77])
def test_fused_attention_is_the_einsum_and_sees_no_padding(tokens, causal):
    rows = Sequences(2, tokens + tokens % 2, tokens, causal, "xla")
    with jax.enable_x64(True):
        plain, fused, x = one_attention(rows)
        x[:, tokens:] = 1e3  # would show
        mask = jnp.triu(jnp.full((tokens, tokens), -jnp.inf), k=1) if causal else None
        want = plain(x[:, :tokens], mask)

        def run(rows: Sequences) -> Any:
            y = fused(x.reshape(-1, 24), rows)
            return y.reshape(2, -1, 24)[:, :tokens]

        assert departure(run(rows), want) < within("fused attention")
        replace = partial(dataclasses.replace, rows)
        mistakes = {"mask": replace(causal=not causal)}
        if tokens % 2 and not causal:
            mistakes["padding"] = replace(true_length=rows.length)
        for name, mistake in mistakes.items():
            assert departure(run(mistake), want) > 1e-2, name


@pytest.mark.parametrize("mistake", ["mask shifted by one", "wrong scale"])
def test_a_wrong_kernel_is_noticed(mistake, monkeypatch):
    rows = Sequences(2, 14, 13, causal=True, kernel="xla")
    real = jax.nn.dot_product_attention

    def wrong(query: Any, key: Any, value: Any, **options: Any) -> Any:
        if mistake == "wrong scale":
            return real(query, key, value, scale=1 / query.shape[-1], **options)
        l = query.shape[1]
        shifted = jnp.tril(jnp.ones((l, l), bool), k=1)
        return real(query, key, value, mask=shifted, **{**options, "is_causal": False})

    with jax.enable_x64(True):
        query, key, value = RNG.normal(size=(3, 2, 14, 3, 8))
        want = run_kernel(query, key, value, rows)
        monkeypatch.setattr(jax.nn, "dot_product_attention", wrong)
        assert departure(run_kernel(query, key, value, rows), want) > 1e-2


def chosen(kind: str, tokens: int, **changes: Any) -> str:
    """The kernel of bfloat16 heads of 64 in a training step on one device, but for `changes`."""
    given: dict[str, Any] = {"dtype": jnp.bfloat16, "head": 64, "training_devices": 1}
    return choose(kind, tokens, **given | changes)


def test_the_kernel_follows_from_what_was_measured():
    assert [chosen(H200, l) for l in (50, 77, 197, 257, 577)] == ["pallas"] * 5
    assert [chosen(H100, l) for l in (50, 77, 257)] == ["cudnn"] * 3
    assert [chosen(H100, l) for l in (20, 197, 577)] == ["einsum"] * 3
    assert chosen(H200, 20) == "einsum"
    for chip in (H100, H200):
        assert chosen(chip, 257, dtype=jnp.float32) == "einsum"
    for other in ("NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB", "TPU v5 lite", ""):
        assert chosen(other, 257) == "einsum"


@pytest.mark.parametrize("tokens", [50, 77, 197, 257, 577])
def test_where_pallas_cannot_run_the_next_best_is_taken(tokens):
    for devices in (None, 2, 8):  # inference, where it was not measured; several devices
        assert chosen(H200, tokens, training_devices=devices) == "cudnn"
    assert chosen(H200, tokens, head=80) == "cudnn"  # as ViT-H/14's
    assert chosen(H200, tokens, head=12) == "einsum"  # nor does cuDNN take it
    assert chosen(H200, tokens, head=256) == "einsum"


def test_a_jax_without_pallas_for_triton_gets_the_next_best(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxclip.hardware.pallas_attention", None)
    monkeypatch.delattr(hardware, "pallas_attention", raising=False)
    assert chosen(H200, 257) == "cudnn"


@pytest.mark.parametrize(("devices", "kernel"), [(1, "pallas"), (2, "cudnn"), (None, "cudnn")])
def test_a_model_runs_the_kernel_that_is_chosen_for_it(devices, kernel, monkeypatch):
    config = ClipConfig(VisionConfig(224, 32, 128, 1, 2), TextConfig(128, 1, 2, 77, 101), 7)
    plain = clip.abstract(config, numerics=Numerics(jnp.bfloat16))
    train = partial(hardware.arrange_training, plain, "gpu", "none", device_kind=H200)
    model = train(devices=devices) if devices else hardware.arrange(plain, "gpu", device_kind=H200)
    seen: list[Sequences] = []

    def run(query: Any, key: Any, value: Any, rows: Sequences) -> Any:
        seen.append(rows)
        return value

    def run_packed(qkv: Any, _: Any, rows: Sequences) -> Any:
        return run(*jnp.moveaxis(qkv, 2, 0), rows)

    monkeypatch.setattr(attention, "run_kernel", run)
    monkeypatch.setattr(attention, "run_packed_kernel", run_packed)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((2, 77), jnp.int32)
    jax.eval_shape(lambda m, i, t: m.embed(i, t), model, images, tokens)
    lengths = (50, 77) if kernel == "pallas" else (50, 78)
    assert {(rows.kernel, rows.length) for rows in seen} == {(kernel, l) for l in lengths}


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices: see conftest.py")
@pytest.mark.parametrize("devices", [1, 2])
def test_training_says_how_many_devices_share_a_step(devices, monkeypatch):
    told: dict[str, Any] = {}

    def arrange(model: clip.Clip, *_: Any, **options: Any) -> clip.Clip:
        told.update(options)
        return model

    monkeypatch.setattr(hardware, "arrange_training", arrange)
    recipe = Recipe(batch_size=2, model=VIT, text_length=13)
    from_recipe.abstract_state(recipe, data_mesh(jax.devices()[:devices]))
    assert told["devices"] == devices and told["attention"] == "auto"


def test_a_kernel_that_cannot_be_is_refused_in_one_line():
    model = clip.abstract(VIT)
    with pytest.raises(ValueError, match=r"attention: expected auto, einsum, .* got 'flash'"):
        gpu.for_gpu(model, H100, attention="flash")
    with pytest.raises(ValueError, match="attention: expected bfloat16 for cudnn, got float32"):
        gpu.for_gpu(model, H100, attention="cudnn")
    for platform in ("cpu", "tpu"):
        told = f"attention: expected auto or einsum on a {platform}, got 'cudnn'"
        with pytest.raises(ValueError, match=told):
            hardware.arrange_training(model, platform, "none", attention="cudnn")
        with pytest.raises(ValueError, match=told):
            hardware.arrange(model, platform, attention="cudnn")


# Layer norm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["drawn", "far from zero", "constant"])
def test_the_layer_norms_gradient_is_that_of_the_definition(case):
    x = RNG.normal(size=(2, 5, 24))
    if case == "far from zero":
        x = x + 1e3 * RNG.normal(size=(2, 5, 1))
    if case == "constant":
        x[:] = 300.1
    dy = RNG.normal(size=x.shape)

    def gradient(norm: LayerNorm, x: Any) -> dict[str, Any]:
        found = jax.grad(lambda norm, x: (norm(x) * dy).sum(), argnums=(0, 1))(norm, x)
        return {**parameters.named_leaves(found[0]), "x": found[1]}

    with jax.enable_x64(True):
        norm = LayerNorm(24, 1e-5, init=Shapes())
        drawn = [RNG.normal(size=24), RNG.normal(size=24)]
        norm = jax.tree.unflatten(jax.tree.structure(norm), drawn)
        lean = jax.tree.unflatten(jax.tree.structure(norm), drawn)
        become(lean, LeanLayerNorm)
        want, got = gradient(norm, x), gradient(lean, x)
        for name in want:
            scale = max(1.0, float(np.abs(want[name]).max()))
            off = float(np.abs(got[name] - want[name]).max()) / scale
            assert off < within("lean layer norm"), name
        if case == "drawn":
            assert departure(gradient(lean, x[::-1])["scale"], want["scale"]) > 0.1
    narrow = jax.tree.unflatten(jax.tree.structure(lean), [np.float32(d) for d in drawn])
    become(narrow, LeanLayerNorm)
    found = gradient(narrow, jnp.asarray(x, jnp.bfloat16))
    assert all(np.isfinite(np.asarray(each, np.float32)).all() for each in found.values())


# What is put in place -----------------------------------------------------------------------------


def test_every_leaf_keeps_its_name_and_shape():
    model = clip.abstract(VIT, numerics=Numerics(jnp.bfloat16))
    for platform, remat in (("gpu", "none"), ("tpu", "full")):
        other = hardware.arrange_training(model, platform, remat, device_kind=H100)
        assert parameters.named_leaves(other) == parameters.named_leaves(model)
        assert type(other.visual.transformer) is flat.FlatTransformer
        assert type(model.visual.transformer) is Transformer
        assert nnx.graphdef(hardware.plain(other)) == nnx.graphdef(model)
    assert hardware.arrange_training(model, "tpu", "none") is model


def test_float32_is_left_as_it_is_unless_a_kernel_is_named():
    model = clip.abstract(VIT)
    assert hardware.arrange_training(model, "gpu", "none", device_kind=H100) is model
    assert hardware.arrange(model, "gpu") is model
    chosen = hardware.arrange(model, "gpu", attention="xla")
    assert type(chosen.visual.transformer) is flat.FlatTransformer


@pytest.mark.parametrize("remat", ["none", "products", "products_and_attention", "full"])
def test_blocks_stand_in_a_loop_where_only_their_input_is_kept(remat):
    model = gpu.for_gpu(clip.abstract(VIT, remat=remat), H100, attention="xla")
    assert model.visual.transformer.unrolled is (remat != "full")
