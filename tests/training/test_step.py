"""One training step: the optimiser's rules, the augmentation, and the same step on many devices.

Devices are compared by their gradients and in float64. A loss hides a wrong gradient altogether,
and Adam divides a factor of the device count out again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.data.emoji.augment import augment, warp
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.training import optimizer
from jaxclip.training.pixels import augment_drawings
from jaxclip.training.sharding import data_mesh
from jaxclip.training.step import clip_loss_fn, sharded_step
from tests.support import tiny
from tests.support.steps import loss_and_grads, state_of
from tests.support.tolerances import departure, within, worst

CONFIG = ClipConfig(VisionConfig(20, 5, 24, 2, 3), TextConfig(16, 2, 2, 13, 101), 7)
PARAMS = tiny.params(vision_layers=2, text_layers=2)
IMAGES, TOKENS = tiny.batch(n=16)
RNG = np.random.default_rng(0)
DRAWINGS = RNG.integers(256, size=(16, 24, 24, 4), dtype=np.uint8)
MIRRORABLE = RNG.random(16) < 0.5

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")


def model(dtype: Any, config: ClipConfig = CONFIG, params: Any = PARAMS) -> clip.Clip:
    like = clip.abstract(config, numerics=Numerics(dtype=dtype))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), like)
    return parameters.from_flat(checkpoint.flatten(params), like)


# Compiled without optimisation: half the time, and only the rounding differs.
QUICKLY = {"xla_backend_optimization_level": 0}


# Gradients on many devices ------------------------------------------------------------------------


@functools.cache
def gradient_on(devices: int, dtype: Any) -> checkpoint.Flat:
    """What `sharded_step` differentiates to, before the optimiser."""
    mesh = data_mesh(jax.devices()[:devices])
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    compiled = jax.jit(
        loss_and_grads,
        in_shardings=(everywhere, split, split),
        out_shardings=everywhere,
        compiler_options=QUICKLY,
    )
    with jax.enable_x64(dtype == jnp.float64):
        return parameters.to_flat(compiled(model(dtype), IMAGES.astype(dtype), TOKENS)[0])


Loss = Callable[[clip.Clip, Any, Any], Any]


def by_hand(devices: int, loss: Loss, reduce: Callable[[Any, str], Any]) -> checkpoint.Flat:
    """Gradients as written for each device by itself and then reduced, in float64."""
    mesh = data_mesh(jax.devices()[:devices])

    def local(model: clip.Clip, images: Any, tokens: Any) -> Any:
        grads = jax.grad(lambda m: jax.lax.pmean(loss(m, images, tokens), "data"))(model)
        return jax.tree.map(lambda g: reduce(g, "data"), grads)

    with jax.enable_x64(True):
        split = (P(), P("data"), P("data"))
        spread = jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=P())
        compiled = jax.jit(spread, compiler_options=QUICKLY)
        return parameters.to_flat(compiled(model(jnp.float64), IMAGES, TOKENS))


def global_loss(model: clip.Clip, images: Any, tokens: Any) -> Any:
    """Every device sees the pairs of all."""
    embeds = (jax.lax.all_gather(x, "data", tiled=True) for x in model.embed(images, tokens))
    return contrastive_loss(*embeds, model.logit_scale[...])


def local_loss(model: clip.Clip, images: Any, tokens: Any) -> Any:
    """The mistake: every device has only its own pairs for wrong answers."""
    return contrastive_loss(*model.embed(images, tokens), model.logit_scale[...])


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_gradients_do_not_depend_on_the_number_of_devices(devices):
    one, many = gradient_on(1, jnp.float64), gradient_on(devices, jnp.float64)
    assert {value.dtype for value in many.values()} == {np.dtype(np.float64)}
    assert worst(many, one) < within("devices float64")


def test_gradients_do_not_depend_on_the_number_of_devices_in_float32():
    one, many = gradient_on(1, jnp.float64), gradient_on(8, jnp.float32)
    assert {value.dtype for value in many.values()} == {np.dtype(np.float32)}
    assert within("devices float64") < worst(many, one) < within("devices float32")


def test_negatives_of_one_device_only_are_noticed():
    wrong, right = by_hand(4, local_loss, jax.lax.pmean), gradient_on(1, jnp.float64)
    assert min(departure(wrong[name], right[name]) for name in right) > 0.1


def test_a_gradient_n_times_too_large_is_noticed():
    """The mistake of psum for pmean, in a gradient that is right but for the factor."""
    right, wrong = gradient_on(1, jnp.float64), by_hand(4, global_loss, jax.lax.psum)
    assert worst({name: g / 4 for name, g in wrong.items()}, right) < within("devices float64")
    assert min(departure(wrong[name], right[name]) for name in right) > 2.9


def test_adam_would_hide_a_gradient_n_times_too_large():
    """Why gradients are compared and not parameters."""
    right = gradient_on(1, jnp.float64)
    adamw = optimizer.adamw(1e-2, 0, 10)
    with jax.enable_x64(True):
        params = model(jnp.float64)
        state = jax.jit(adamw.init)(params)

        def update(factor: float) -> np.ndarray:
            grads = parameters.from_flat({name: factor * g for name, g in right.items()}, params)
            updates, _ = jax.jit(adamw.update)(grads, state, params)
            return np.concatenate([x.ravel() for x in parameters.to_flat(updates).values()])

        once, eightfold = update(1.0), update(8.0)
    assert np.linalg.norm(eightfold - once) < 0.05 * np.linalg.norm(once)


# Steps on many devices ----------------------------------------------------------------------------


ADAMW = optimizer.adamw(1e-2, 1, 10)
BAG = ClipConfig(CONFIG.vision, TextConfig(16, context_length=13, vocab_size=101, kind="cbow"), 7)
BAG_PARAMS = tiny.params(vision_layers=2, text="cbow")


PIXELS = functools.partial(augment_drawings, size=20)


@functools.cache
def compiled_step(devices: int, graphdef: Any) -> Any:
    mesh = data_mesh(jax.devices()[:devices])
    return sharded_step(mesh, clip_loss_fn(graphdef), ADAMW, batch_to_pixels=PIXELS)


def stepped(
    devices: int, dtype: Any, steps: int = 3, scale: float = 2.1
) -> tuple[checkpoint.Flat, dict[str, Any]]:
    """Parameters and metrics after some steps, augmentation and all."""
    mesh = data_mesh(jax.devices()[:devices])
    batch = {"drawings": DRAWINGS, "mirrorable": MIRRORABLE, "tokens": TOKENS}
    with jax.enable_x64(dtype == jnp.float64):
        start = model(dtype, BAG, {**BAG_PARAMS, "logit_scale": np.array(scale)})
        graphdef, state = state_of(start, ADAMW)
        state = jax.device_put(state, NamedSharding(mesh, P()))
        for i in range(steps):
            step = compiled_step(devices, graphdef)
            state, metrics = step(state, batch, jax.random.key(i))
        assert state.step == steps
        return parameters.to_flat(state.params), jax.tree.map(np.asarray, metrics)


@pytest.fixture(scope="module")
def one_device() -> checkpoint.Flat:
    return stepped(1, jnp.float64)[0]


def test_parameters_after_three_steps_do_not_depend_on_the_number_of_devices(one_device):
    many = stepped(8, jnp.float64)[0]
    assert {value.dtype for value in many.values()} == {np.dtype(np.float64)}
    assert worst(many, one_device) < within("three steps float64")


def test_a_step_left_out_is_noticed(one_device):
    two = stepped(1, jnp.float64, steps=2)[0]
    assert worst(two, one_device) > 10 * within("three steps float32")


@pytest.mark.slow
def test_parameters_after_three_steps_do_not_depend_on_the_number_of_devices_in_float32():
    (one, seen), (many, also_seen) = stepped(1, jnp.float32), stepped(8, jnp.float32)
    assert worst(many, one) < within("three steps float32")
    names = {"loss", "grad_norm", "image_spread", "text_spread", "logit_scale"}
    assert seen.keys() == also_seen.keys() == names
    assert all(np.isfinite(value) for value in seen.values())
    assert abs(seen["loss"] - also_seen["loss"]) < 1e-2


def test_the_temperature_is_held_after_the_step():
    after, metrics = stepped(8, jnp.float64, steps=1, scale=5.0)
    assert after["logit_scale"] == math.log(100)
    assert metrics["logit_scale"] == pytest.approx(100, rel=1e-12)


# The optimiser ------------------------------------------------------------------------------------

MATRICES = ("attn.in_proj_kernel", "attn.out_proj.kernel", "mlp.c_fc.kernel", "mlp.c_proj.kernel")
DECAYED = {
    "visual.conv1.kernel",
    "visual.positional_embedding",
    "visual.proj",
    "text.token_embedding.embedding",
    "text.positional_embedding",
    "text.text_projection",
    *(f"{tower}.transformer.resblocks.{m}" for tower in ("visual", "text") for m in MATRICES),
}


def test_decay_acts_on_matrices_and_embeddings_only():
    mask = parameters.named_leaves(optimizer.decay_mask(clip.abstract(CONFIG)))
    assert {name for name, acts in mask.items() if acts} == DECAYED
    spared = mask.keys() - DECAYED
    assert {"logit_scale", "visual.class_embedding", "visual.ln_pre.scale"} <= spared
    stacked = {name for name in spared if "resblocks" in name}
    endings = {name.rpartition(".")[2] for name in stacked}
    assert len(stacked) == 2 * 8 and endings == {"bias", "in_proj_bias", "scale"}


def test_a_step_without_gradient_shrinks_what_decays_and_leaves_the_rest():
    params = model(jnp.float32)
    adamw = optimizer.adamw(0.1, 0, 10, weight_decay=0.2)

    @jax.jit
    def still(params: clip.Clip) -> clip.Clip:
        nothing = jax.tree.map(jnp.zeros_like, params)
        updates, _ = adamw.update(nothing, adamw.init(params), params)
        return optax.apply_updates(params, updates)

    before, after = (parameters.named_leaves(m) for m in (params, still(params)))
    for name in before:
        factor = 1 - 0.1 * 0.2 if name in DECAYED else 1
        assert departure(after[name], factor * before[name]) < 1e-6, name
        assert name in DECAYED or (after[name] == before[name]).all()


def test_a_narrow_first_moment_takes_half_and_moves_the_update_by_its_rounding():
    wide, narrow = (optimizer.adamw(0.1, 0, 10, first_moment=f) for f in (None, jnp.bfloat16))
    params = {"kernel": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}
    grads = jax.tree.map(lambda x: jnp.sin(9 * x), params)
    updates = {}
    for name, adamw in (("wide", wide), ("narrow", narrow)):
        state = adamw.init(params)
        for _ in range(3):
            updates[name], state = adamw.update(grads, state, params)
        kept = jnp.float32 if name == "wide" else jnp.bfloat16
        assert state[0].mu["kernel"].dtype == kept
        assert state[0].nu["kernel"].dtype == jnp.float32
    off = departure(updates["narrow"]["kernel"], updates["wide"]["kernel"])
    assert 0 < off < 2**-8


def test_the_first_update_is_adam_s():
    """One parameter, by hand: decoupled decay, bias correction, epsilon outside the root."""
    params, grads = {"kernel": jnp.array([3.0])}, {"kernel": jnp.array([1e-5])}
    adamw = optimizer.adamw(0.1, 0, 10, weight_decay=0.2)
    state = adamw.init(params)
    first, state = adamw.update(grads, state, params)
    assert first["kernel"][0] == pytest.approx(-0.1 * (1e-5 / (1e-5 + 1e-6) + 0.2 * 3), rel=1e-5)
    second, _ = adamw.update({"kernel": jnp.array([-2e-5])}, state, params)
    m = (0.9 * 0.1 * 1e-5 - 0.1 * 2e-5) / (1 - 0.9**2)
    v = (0.98 * 0.02 * 1e-10 + 0.02 * 4e-10) / (1 - 0.98**2)
    rate = 0.1 * (1 + math.cos(math.pi / 10)) / 2
    expected = -rate * (m / (math.sqrt(v) + 1e-6) + 0.2 * 3)
    assert second["kernel"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0), (5, 5e-4), (10, 1e-3), (35, 8.535534e-4), (60, 5e-4), (110, 0), (500, 0)],
)
def test_the_schedule_is_a_line_and_then_a_cosine(step, rate):
    assert float(optimizer.schedule(1e-3, 10, 110)(step)) == pytest.approx(rate, abs=1e-9)


def test_the_schedule_allows_fewer_steps_than_its_warmup():
    rates = [float(optimizer.schedule(1e-3, 10, 3)(step)) for step in range(3)]
    assert rates == pytest.approx([0, 1e-4, 2e-4])


@pytest.mark.parametrize(("before", "after"), [(4.7, math.log(100)), (4.6, 4.6), (-1.0, -1.0)])
def test_the_temperature_is_held_from_above(before, after):
    params = {**PARAMS, "logit_scale": np.array(before)}
    held = optimizer.hold_logit_scale(model(jnp.float32, CONFIG, params))
    assert held.logit_scale[...] == np.float32(after)


# Augmentation -------------------------------------------------------------------------------------

augmented = jax.jit(augment, static_argnums=2)
KEY = jax.random.key(0)


def test_augmentation_is_a_function_of_its_key():
    first, again = (augmented(KEY, DRAWINGS, 20, MIRRORABLE) for _ in range(2))
    other = augmented(jax.random.key(1), DRAWINGS, 20, MIRRORABLE)
    assert first.shape == (16, 20, 20, 3) and first.dtype == jnp.float32
    assert (first == again).all()
    assert (np.abs(first - other).max(axis=(1, 2, 3)) > 0.01).all()  # every picture changes


def test_augmented_pictures_stay_in_range():
    extremes = np.stack([np.zeros((24, 24, 4)), np.full((24, 24, 4), 255)] * 8).astype(np.uint8)
    for drawings in (DRAWINGS, extremes):
        images = np.asarray(augmented(KEY, drawings, 20, MIRRORABLE))
        assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    empty = np.asarray(images[::2])  # nothing drawn: one colour, that of the background
    assert np.ptp(empty, axis=(1, 2)).max() < 1e-6


def test_one_drawing_twice_in_a_batch_becomes_two_pictures():
    images = augmented(KEY, np.repeat(DRAWINGS[:1], 16, axis=0), 20, np.zeros(16, bool))
    assert len(np.unique(np.asarray(images).reshape(16, -1).round(4), axis=0)) == 16


def test_only_what_may_be_mirrored_is():
    never = augmented(KEY, DRAWINGS, 20, np.zeros(16, bool))
    always = augmented(KEY, DRAWINGS, 20, np.ones(16, bool))
    some = augmented(KEY, DRAWINGS, 20, MIRRORABLE)
    flipped = np.abs(always - never).max(axis=(1, 2, 3)) > 1e-3
    assert 3 <= flipped.sum() <= 13  # one half, by chance
    got = np.abs(some - never).max(axis=(1, 2, 3)) > 1e-3
    assert (got == (flipped & MIRRORABLE)).all()


def test_mirrored_means_left_for_right():
    image = jnp.asarray(DRAWINGS[0] / 255, jnp.float32)
    mirrored = warp(KEY, image, 20, jnp.array(True))
    by_hand = warp(KEY, image[:, ::-1], 20, jnp.array(False))
    assert departure(mirrored, by_hand) < 1e-5
    assert departure(mirrored, warp(KEY, image, 20, jnp.array(False))) > 0.1


def test_augmentation_does_not_depend_on_the_number_of_devices():
    split = NamedSharding(data_mesh(jax.devices()[:8]), P("data"))
    spread = [jax.device_put(x, split) for x in (DRAWINGS, MIRRORABLE)]
    one, many = augmented(KEY, DRAWINGS, 20, MIRRORABLE), augmented(KEY, spread[0], 20, spread[1])
    assert len(many.sharding.device_set) == 8
    assert departure(many, one) < within("pictures")
    shifted = augmented(KEY, np.roll(DRAWINGS, 1, axis=0), 20, np.roll(MIRRORABLE, 1))
    assert departure(np.roll(shifted, -1, axis=0), one) > 0.1  # keys belong to places
