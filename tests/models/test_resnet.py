"""The ResNet image tower: against its NumPy twin, in training, on many devices, as released.

A deliberate mistake is committed in the NumPy twin, which needs no new program: what must equal
the twin must lie far from the mistaken one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.lib.peers.parity_support import official_module
from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.hardware import cpu
from jaxclip.models import clip
from jaxclip.models import resnet as clip_resnet
from jaxclip.models.layers import Numerics
from jaxclip.models.parameters import from_flat, named_leaves, to_flat
from jaxclip.models.starts import Initialiser
from jaxclip.training import optimizer
from jaxclip.training.checkpoints import Checkpoints, Snapshot
from jaxclip.training.pixels import augment_drawings
from jaxclip.training.sharding import data_mesh, shardings
from jaxclip.training.state import TrainState
from jaxclip.training.step import clip_loss_fn, sharded_step
from tests.support import tiny
from tests.support.statistics import params_only, running_statistics, with_statistics
from tests.support.steps import loss_and_grads, state_of
from tests.support.tolerances import departure, within, worst

QUICKLY = {"xla_backend_optimization_level": 0}  # half the time, and only the rounding differs
BAG = TextConfig(16, context_length=13, vocab_size=101, kind="cbow")
Layers = tuple[int, int, int, int]


def config(size: int = 96, width: int = 16, layers: Layers = (1, 2, 1, 1)) -> ClipConfig:
    return ClipConfig(ResNetConfig(size, width, layers), BAG, 7)


def params(config: ClipConfig, seed: int = 0) -> dict[str, Any]:
    v = config.vision
    tower = tiny.resnet(seed, width=v.width, layers=v.layers, image_size=v.image_size)
    return {**tiny.params(text="cbow"), "visual": tower}


def model(config: ClipConfig, dtype: Any = jnp.float32, **options: Any) -> clip.Clip:
    like = clip.abstract(config, numerics=Numerics(dtype=dtype), **options)
    if dtype == jnp.float64:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), like)
    return from_flat(checkpoint.flatten(params(config)), like)


@jax.jit
def stages(model: clip.Clip, images: Any) -> dict[str, Any]:
    features, seen = model.visual.stages(images)
    del seen["attention"]  # which the reference does not name
    return {**seen, "features": features}


def reference_stages(config: ClipConfig, visual: Any, images: Any) -> dict[str, Any]:
    taps: dict[str, Any] = {}
    reference.modified_resnet(images, visual, heads=config.vision.heads, taps=taps)
    return taps


def excess(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """The stages that lie outside their tolerance, and by what factor."""
    assert got.keys() == expected.keys()
    bound = {name: within("resnet stage") for name in expected}
    bound["features"] = within("resnet features")
    factors = {name: departure(got[name], expected[name]) / bound[name] for name in expected}
    return {name: factor for name, factor in factors.items() if factor > 1}


# Each stage ---------------------------------------------------------------------------------------

SMALL = config()
IMAGES = tiny.batch(n=4, image_size=96)[0]


@pytest.fixture(scope="module")
def got() -> dict[str, Any]:
    return stages(model(SMALL), IMAGES.astype(np.float32))


@pytest.mark.parametrize(
    "config",
    [
        config(),
        config(65),  # odd, as the first convolution sees it
        config(94),  # odd, as every average pool sees it: torch drops the last row
        config(96, 8, (3, 4, 6, 3)),
    ],
    ids=["96", "65", "94", "3463"],
)
def test_every_stage_equals_the_reference(config):
    images = tiny.batch(1, 4, image_size=config.vision.image_size)[0]
    got = stages(model(config), images.astype(np.float32))
    assert all(stage.dtype == np.float32 for stage in got.values())
    assert excess(got, reference_stages(config, params(config)["visual"], images)) == {}


def test_stages_have_the_released_shapes(got):
    shapes = {name: stage.shape[1:] for name, stage in got.items()}
    assert shapes == {
        "stem": (24, 24, 16),
        "layer1": (24, 24, 64),
        "layer2": (12, 12, 128),
        "layer3": (6, 6, 256),
        "layer4": (3, 3, 512),
        "pooled": (512,),
        "features": (7,),
    }


def same_padding(x: Any, kernel: Any, stride: int = 1) -> Any:
    """As Flax pads unless told otherwise: at stride 2, no zeros above and left of an even size."""
    if stride == 1:
        return right["convolve"](x, kernel)
    padded = np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))
    return right["convolve"](padded, kernel)[:, 1:-1:2, 1:-1:2]


def strided_convolution(x: Any, block: Any, stride: int, norm: Any) -> Any:
    """As the original ResNet strides: the 3x3 convolution does, the shortcut's 1x1 one too."""
    y = reference.relu(norm(reference.convolve(x, block["conv1"]["kernel"]), **block["bn1"]))
    y = norm(reference.convolve(y, block["conv2"]["kernel"], stride), **block["bn2"])
    y = reference.convolve(reference.relu(y), block["conv3"]["kernel"])
    y = norm(y, **block["bn3"])
    if "downsample" in block:
        shortcut = reference.convolve(x, block["downsample"]["0"]["kernel"], stride)
        x = norm(shortcut, **block["downsample"]["1"])
    return reference.relu(x + y)


def thinned(x: Any, size: int) -> Any:
    """One pixel of each square for its mean: the stride in the 1x1 convolutions."""
    return x[:, : x.shape[1] // size * size : size, : x.shape[2] // size * size : size]


def query_from_the_first_place(x: Any, pool: Any, heads: int, taps: dict) -> Any:
    n, h, w, d = x.shape
    places = x.reshape(n, h * w, d)
    x = np.concatenate([places.mean(1, keepdims=True), places], 1) + pool["positional_embedding"]

    def project(x: Any, name: str) -> Any:
        y = x @ pool[name]["kernel"] + pool[name]["bias"]
        return y.reshape(n, -1, heads, d // heads)

    q, k, v = project(x[:, 1:2], "q_proj"), project(x, "k_proj"), project(x, "v_proj")
    weights = reference.softmax(np.einsum("nqak,nlak->nal", q, k) * (d // heads) ** -0.5)
    taps["pooled"] = np.einsum("nal,nlak->nak", weights, v).reshape(n, d)
    return taps["pooled"] @ pool["c_proj"]["kernel"] + pool["c_proj"]["bias"]


right = {name: getattr(reference, name) for name in ("convolve", "batch_norm")}
MISTAKES: dict[str, tuple[str, Callable[..., Any], str]] = {
    "SAME padding": ("convolve", same_padding, "stem"),
    "epsilon 1e-3": (
        "batch_norm",
        lambda x, **values: right["batch_norm"](x, **values, eps=1e-3),
        "stem",
    ),
    "stride in the 3x3 convolution": ("bottleneck", strided_convolution, "layer2"),
    "stride in the 1x1 convolution": ("average_pool", thinned, "stem"),
    "query from the first place": ("attention_pool", query_from_the_first_place, "pooled"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_noticed_where_it_is_made(monkeypatch, got, name):
    function, wrong, first = MISTAKES[name]
    monkeypatch.setattr(reference, function, wrong)
    outside = excess(got, reference_stages(SMALL, params(SMALL)["visual"], IMAGES))
    order = ["stem", "layer1", "layer2", "layer3", "layer4", "pooled", "features"]
    assert set(outside) == set(order[order.index(first) :])
    assert min(outside.values()) > 30


@pytest.mark.parametrize(("one", "other"), [("q", "k"), ("k", "v")])
def test_swapped_projections_are_noticed(got, one, other):
    visual = params(SMALL)["visual"]
    pool = dict(visual["attnpool"])
    pool[f"{one}_proj"], pool[f"{other}_proj"] = pool[f"{other}_proj"], pool[f"{one}_proj"]
    outside = excess(got, reference_stages(SMALL, {**visual, "attnpool": pool}, IMAGES))
    assert outside.keys() == {"pooled", "features"} and min(outside.values()) > 1e4


def test_the_whole_model_equals_the_reference():
    images, tokens = IMAGES, tiny.batch(n=4)[1]
    per_image, _ = jax.jit(model(SMALL))(images.astype(np.float32), tokens)
    expected, _ = reference.clip(images, tokens, params(SMALL), vision_heads=8, text_heads=1)
    assert departure(per_image, expected) < within("resnet features")


def test_bfloat16_stays_near(got):
    # without XLA's newer CPU kernels: those of jaxlib 0.12 answer bfloat16 products with NaN
    options = cpu.compiler_options(jnp.float32)
    seen = jax.jit(stages, compiler_options=options)(
        model(SMALL, jnp.bfloat16), IMAGES.astype(np.float32)
    )
    assert all(stage.dtype == jnp.bfloat16 for stage in seen.values())
    assert departure(seen["features"], got["features"]) < within("bfloat16")


def test_the_precision_asked_for_reaches_every_product():
    tower = clip.abstract(SMALL, numerics=Numerics(precision="highest")).visual
    text = jax.jit(lambda tower, x: tower(x)).lower(tower, IMAGES.astype(np.float32)).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert len(products) == 3 + 5 * 3 + 4 + 4 + 2
    assert all(line.count("HIGHEST") == 2 for line in products)


# Parameters ---------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_reference():
    expected = checkpoint.flatten(params(SMALL))
    leaves = named_leaves(clip.abstract(SMALL))
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}


def test_stacking_leaves_a_resnet_s_names_alone():
    flat = checkpoint.flatten(tiny.resnet(layers=(1, 1, 12, 1), width=2, image_size=32))
    assert {name for name in flat if ".10." in name} > {"layer3.10.conv1.kernel"}
    for changed in (checkpoint.stack(flat), checkpoint.unstack(flat)):
        assert changed.keys() == flat.keys()
        assert all(changed[name] is flat[name] for name in flat)


def test_twelve_blocks_stand_in_the_order_of_their_numbers():
    long = config(32, 2, (1, 1, 12, 1))
    flat = {name: np.asarray(x) for name, x in checkpoint.flatten(params(long)).items()}
    filled = model(long)
    for i, block in enumerate(filled.visual.layer3):
        name = f"visual.layer3.{i}.bn2.mean"
        assert (block.bn2.mean[...] == flat[name].astype(np.float32)).all()
    back = to_flat(filled)
    assert all((back[name] == flat[name].astype(np.float32)).all() for name in flat)


def test_a_missing_statistic_is_named():
    flat = checkpoint.flatten(params(SMALL))
    del flat["visual.layer2.1.bn2.var"]
    with pytest.raises(ValueError, match=r"config: - visual\.layer2\.1\.bn2\.var \(32,\)"):
        from_flat(flat, clip.abstract(SMALL))


def test_a_new_tower_starts_as_released():
    """clip/model.py: initialize_parameters; torch's defaults where it says nothing."""
    new = config(64, 16, (1, 2, 1, 1))
    make = jax.jit(
        lambda key: clip.Clip(new, init=Initialiser(nnx.Rngs(key))), compiler_options=QUICKLY
    )
    fresh = to_flat(make(jax.random.key(0)))
    visual = {name: x for name, x in fresh.items() if name.startswith("visual.")}
    for name, value in visual.items():
        leaf, n = name.rpartition(".")[2], value.size
        if "attnpool" in name:
            uniform, std = leaf == "bias", 512**-0.5 / (math.sqrt(3) if leaf == "bias" else 1)
        elif leaf == "kernel":
            uniform, std = True, (3 * value[..., 0].size) ** -0.5
        else:
            zero = leaf in ("bias", "mean") or ("layer" in name and name.endswith("bn3.scale"))
            assert (value == (0 if zero else 1)).all(), name
            continue
        assert abs(value.std() / std - 1) < 4.5 * (2 * n) ** -0.5 + (n < 20), name
        assert abs(value.mean()) < 4.5 * std * n**-0.5, name
        assert (np.abs(value).max() <= std * 3**0.5 * 1.0001) == uniform or n < 20, name


# Training -----------------------------------------------------------------------------------------

TINY = config(64, 4, (1, 1, 1, 1))
BATCH = 16
PICTURES, WORDS = tiny.batch(2, BATCH, image_size=64)


def training_norm(statistics: dict[str, Any], visual: Any, **options: Any) -> Callable[..., Any]:
    """A norm for the reference that fills `statistics` by name."""
    means = {id(x): name[:-5] for name, x in checkpoint.flatten(visual).items() if "mean" in name}

    def norm(x: Any, **values: Any) -> Any:
        y, mean, var = reference.batch_norm_training(x, **values, **options)
        name = f"visual.{means[id(values['mean'])]}"
        statistics.update({f"{name}.mean": mean, f"{name}.var": var})
        return y

    return norm


def reference_training(**options: Any) -> tuple[Any, dict[str, Any]]:
    visual = params(TINY)["visual"]
    statistics: dict[str, Any] = {}
    norm = training_norm(statistics, visual, **options)
    features = reference.modified_resnet(PICTURES, visual, heads=2, norm=norm)
    return reference.l2_normalize(features), statistics


@jax.jit
def embed(model: clip.Clip, images: Any, tokens: Any) -> Any:
    I_e, T_e, stats = model.embed(images, tokens, train=True)
    return I_e, T_e, named_leaves(stats)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, dict[str, Any]]:
    embeds, _, statistics = embed(model(TINY), PICTURES.astype(np.float32), WORDS)
    return embeds, statistics


def test_a_training_pass_equals_the_reference(trained):
    expected, statistics = reference_training()
    assert departure(trained[0], expected) < within("resnet training")
    assert worst(trained[1], statistics) < within("running statistics")
    assert trained[1].keys() == running_statistics(clip.abstract(TINY)).keys()


@pytest.mark.parametrize("mistake", [{"momentum": 0.9}, {"eps": 1e-3}])
def test_a_wrong_constant_in_training_is_noticed(trained, mistake):
    _, statistics = reference_training(**mistake)
    assert worst(trained[1], statistics) > 30 * within("running statistics")


def test_a_biased_running_variance_is_noticed(trained):
    """It differs most where a channel has few values: 16 pictures of 2 x 2 cells, one in 64."""
    _, statistics = reference_training()
    name, old = "visual.layer4.0.bn3.var", params(TINY)["visual"]["layer4"]["0"]["bn3"]["var"]
    biased = 0.9 * old + (statistics[name] - 0.9 * old) * 63 / 64
    assert departure(trained[1][name], statistics[name]) < within("running statistics")
    assert departure(trained[1][name], biased) > 30 * within("running statistics")


def test_training_does_not_use_the_running_statistics_and_evaluation_does(trained):
    m = model(TINY)
    other = with_statistics(m, {name: x + 0.1 for name, x in running_statistics(m).items()})
    assert departure(embed(other, PICTURES.astype(np.float32), WORDS)[0], trained[0]) < 1e-6
    encode = jax.jit(lambda m, x: m.encode_image(x))
    images = PICTURES[:4].astype(np.float32)
    assert departure(encode(other, images), encode(m, images)) > 0.01


def test_one_value_a_channel_has_no_variance():
    m = clip.abstract(config(32, 4, (1, 1, 1, 1)))
    images, tokens = tiny.batch(0, 1, image_size=32)
    with pytest.raises(
        ValueError, match="expected two or more values a channel, got 1; use a larger"
    ):
        jax.eval_shape(lambda m: m.embed(images.astype(np.float32), tokens, train=True), m)


def test_reference_runs_unchanged_under_jax_numpy(monkeypatch):
    visual = params(TINY)["visual"]
    expected = reference.modified_resnet(PICTURES[:2], visual, heads=2)
    features, statistics = reference_training()
    monkeypatch.setattr(reference, "np", jnp)

    def everything(x: Any) -> Any:
        again: dict[str, Any] = {}
        norm = training_norm(again, visual)
        y = reference.modified_resnet(x, visual, heads=2, norm=norm)
        return reference.modified_resnet(x[:2], visual, heads=2), reference.l2_normalize(y), again

    with jax.enable_x64(True):
        compiled = jax.jit(everything).lower(PICTURES).compile(compiler_options=QUICKLY)
        evaluated, got_features, got_statistics = compiled(PICTURES)
    assert evaluated.dtype == np.float64
    assert departure(evaluated, expected) < 1e-12
    assert departure(got_features, features) < 1e-12
    assert worst(got_statistics, statistics) < 1e-12


# What is trained and what is not ------------------------------------------------------------------


def test_new_statistics_are_the_third_part_of_the_split_model():
    graphdef, trained_part, stats = nnx.split(model(TINY), nnx.Param, nnx.BatchStat)
    new = model(TINY).embed(PICTURES.astype(np.float32), WORDS, train=True)[2]
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    again = nnx.merge(graphdef, trained_part, new)
    assert worst(running_statistics(again), named_leaves(new)) == 0


def test_running_statistics_are_not_trained():
    m = clip.abstract(TINY)
    parameters, statistics = named_leaves(params_only(m)), running_statistics(m)
    assert {name.rpartition(".")[2] for name in statistics} == {"mean", "var"}
    assert parameters.keys() | statistics.keys() == named_leaves(m).keys()
    assert not parameters.keys() & statistics.keys()
    opt_state = jax.eval_shape(optimizer.adamw(0.1, 0, 10).init, params_only(m))
    for moments in (opt_state[0].mu, opt_state[0].nu):
        assert named_leaves(moments).keys() == parameters.keys()
    mask = named_leaves(optimizer.decay_mask(params_only(m)))
    assert mask.keys() == parameters.keys()
    assert {name for name in mask if mask[name]} == {
        name for name in parameters if name.endswith(("kernel", "embedding", "projection"))
    }


def test_a_vision_transformer_has_nothing_set_apart():
    config = ClipConfig(VisionConfig(20, 5, 24, 2, 3), BAG, 7)
    m = clip.abstract(config)
    assert running_statistics(m) == {}
    for same in (params_only(m), with_statistics(m, {})):
        assert jax.tree.structure(same) == jax.tree.structure(m)
        assert jax.tree.leaves(same) == jax.tree.leaves(m)


def test_setting_statistics_changes_those_named_only():
    m = model(TINY)
    name = "visual.layer2.0.downsample.1.mean"
    changed = to_flat(with_statistics(m, {name: jnp.full(32, 7.0)}))
    before = to_flat(m)
    assert (changed.pop(name) == 7).all() and not (before.pop(name) == 7).any()
    assert all((changed[other] == before[other]).all() for other in before)


def test_a_run_s_state_survives_the_file(tmp_path):
    adamw = optimizer.adamw(0.1, 0, 10, tower=ResNetConfig)
    m = model(TINY)
    graphdef, state = TrainState.create(m, adamw, jax.random.key(0))
    stored = Checkpoints(tmp_path / "state")
    stored.save(3, Snapshot(state, [0], {}))
    stored.finish()
    found = stored.restore(state, shardings(state, data_mesh(jax.devices()[:1])))
    assert found is not None and found.state.step == 3
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    flat, expected = to_flat(found.state.model(graphdef)), to_flat(m)
    assert all((flat[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize(
    ("tower", "second"), [(ResNetConfig, (0.999, 1e-8)), (VisionConfig, (0.98, 1e-6))]
)
def test_adam_has_the_paper_s_constants_for_the_tower(tower, second):
    """After one gradient g and then none, the update is m / (sqrt(v) + epsilon)."""
    beta2, epsilon = second
    adamw = optimizer.adamw(0.1, 0, 10**6, weight_decay=0.0, tower=tower)
    weights = {"kernel": jnp.array([3.0])}
    state = adamw.init(weights)
    _, state = adamw.update({"kernel": jnp.array([1e-5])}, state, weights)
    update, _ = adamw.update({"kernel": jnp.array([0.0])}, state, weights)
    m, v = 0.9 * 0.1e-5 / (1 - 0.9**2), beta2 * (1 - beta2) * 1e-10 / (1 - beta2**2)
    assert update["kernel"][0] == pytest.approx(-0.1 * m / (math.sqrt(v) + epsilon), rel=1e-4)


# Many devices -------------------------------------------------------------------------------------

needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
ADAMW = optimizer.adamw(1e-2, 1, 10, tower=ResNetConfig)
RNG = np.random.default_rng(0)
DRAWN = {
    "drawings": RNG.integers(256, size=(BATCH, 64, 64, 4), dtype=np.uint8),
    "mirrorable": RNG.random(BATCH) < 0.5,
    "tokens": WORDS,
}


@functools.cache
def gradient_on(devices: int) -> tuple[checkpoint.Flat, dict[str, Any]]:
    """The gradient in float64, with the new statistics."""
    mesh = data_mesh(jax.devices()[:devices])
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    compiled = jax.jit(
        loss_and_grads,
        in_shardings=(everywhere, split, split),
        out_shardings=everywhere,
        compiler_options=QUICKLY,
    )
    with jax.enable_x64(True):
        grads, _, statistics = compiled(model(TINY, jnp.float64), PICTURES, WORDS)
        return to_flat(grads), to_flat(statistics)


@functools.cache
def compiled_step(devices: int) -> Any:
    """(mesh, `sharded_step` compiled for it); call it with float64 enabled."""
    mesh = data_mesh(jax.devices()[:devices])
    graphdef, state = state_of(model(TINY, jnp.float64), ADAMW)
    pixels = functools.partial(augment_drawings, size=64)
    step = sharded_step(mesh, clip_loss_fn(graphdef), ADAMW, batch_to_pixels=pixels)
    lowered = step.lower(state, DRAWN, jax.random.key(0))
    return mesh, lowered.compile(compiler_options=QUICKLY)


@functools.cache
def stepped(devices: int, steps: int = 3) -> checkpoint.Flat:
    """Parameters and running statistics after some steps in float64, augmentation and all."""
    with jax.enable_x64(True):
        mesh, step = compiled_step(devices)
        everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        graphdef, state = state_of(model(TINY, jnp.float64), ADAMW)
        state = jax.device_put(state, everywhere)
        for i in range(steps):
            batch = jax.device_put(DRAWN, split)
            state, _ = step(state, batch, jax.device_put(jax.random.key(i), everywhere))
        return to_flat(state.model(graphdef))


DEVICES = [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))]
KEY_BIAS = "visual.attnpool.k_proj.bias"  # cancels in the softmax: its gradient is rounding alone


@needs_eight
@pytest.mark.parametrize("devices", DEVICES)
def test_gradients_and_statistics_are_those_of_the_global_batch(devices):
    (one, before), (many, after) = gradient_on(1), gradient_on(devices)
    assert {value.dtype for value in many.values()} == {np.dtype(np.float64)}
    for grads in (one, many):
        bias, kernel = grads[KEY_BIAS], grads[KEY_BIAS.replace("bias", "kernel")]
        assert np.abs(bias).max() < 1e-13 * np.abs(kernel).max()
    names = one.keys() - {KEY_BIAS}
    assert worst(*({k: x[k] for k in names} for x in (many, one))) < within(
        "resnet devices float64"
    )
    assert worst(after, before) < within("resnet devices float64")


@needs_eight
@pytest.mark.slow  # forty seconds a number; the gradients and statistics of one step are above
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_three_steps_do_not_depend_on_the_number_of_devices(devices):
    one, many = stepped(1), stepped(devices)
    assert worst(many, one) < within("resnet three steps float64")


@needs_eight
def test_a_step_left_out_is_noticed_in_parameters_and_statistics():
    two, three = stepped(1, 2), stepped(1)
    for ending in ("mean", "var", "kernel", "scale"):
        names = [name for name in three if name.endswith(ending) and name != "logit_scale"]
        assert min(departure(two[name], three[name]) for name in names) > 1e-4, ending


@needs_eight
def test_statistics_of_one_device_only_are_noticed():
    """What `shard_map` would do: each device has the statistics of its share."""
    mesh = data_mesh(jax.devices()[:4])

    def local(model: clip.Clip, images: Any, tokens: Any) -> Any:
        return jax.lax.pmean(named_leaves(model.embed(images, tokens, train=True)[2]), "data")

    split = (P(), P("data"), P("data"))
    with jax.enable_x64(True):
        spread = jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=P())
        wrong = jax.jit(spread, compiler_options=QUICKLY)(model(TINY, jnp.float64), PICTURES, WORDS)
    assert worst(wrong, gradient_on(1)[1]) > 1e-3


# The official code --------------------------------------------------------------------------------


def torch_state(visual: Any) -> dict[str, Any]:
    """Our parameters under the official keys and in torch's layout."""
    torch = pytest.importorskip("torch")
    endings = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state = {}
    for name, value in checkpoint.flatten(visual).items():
        path, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[f"{path}.{endings.get(leaf, leaf)}"] = torch.tensor(value.copy())
    return state


def official(config: ClipConfig) -> Any:
    """The official tower with our parameters, in float64."""
    v = config.vision
    tower = official_module("model").ModifiedResNet(
        v.layers, config.embed_dim, v.heads, v.image_size, v.width
    )
    tower.double().load_state_dict(torch_state(params(config)["visual"]))
    return tower


def called(tower: Any, images: Any) -> Any:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return tower(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


@pytest.mark.parity
@pytest.mark.parametrize("config", [config(), config(94), config(96, 8, (3, 4, 6, 3))])
def test_the_official_tower_gives_the_same_features(config):
    images = tiny.batch(1, 4, image_size=config.vision.image_size)[0]
    tower = official(config).eval()
    expected = called(tower, images)
    twin = reference_stages(config, params(config)["visual"], images)["features"]
    assert departure(twin, expected) < within("official float64")
    got = stages(model(config), images.astype(np.float32))["features"]
    assert departure(got, expected) < within("resnet features")
    tower.layer4[0].bn2.eps = 1e-3
    assert departure(got, called(tower, images)) > 10 * within("resnet features")


@pytest.mark.parity
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_the_official_tower_has_the_same_statistics_after_two_steps(momentum):
    tower = official(TINY).train()
    for module in tower.modules():
        if hasattr(module, "momentum"):
            module.momentum = momentum
    ours = model(TINY)
    for images in (PICTURES[:8], PICTURES[8:]):
        expected = called(tower, images)
        features, _, statistics = embed(ours, images.astype(np.float32), WORDS[:8])
        ours = with_statistics(ours, statistics)
        assert departure(features, reference.l2_normalize(expected)) < within("resnet training")
    state = tower.state_dict()
    endings = {"mean": "running_mean", "var": "running_var"}
    official_statistics = {}
    for name in statistics:
        path, _, leaf = name.removeprefix("visual.").rpartition(".")
        official_statistics[name] = state[f"{path}.{endings[leaf]}"].numpy()
    off = worst(running_statistics(ours), official_statistics)
    assert (off < within("running statistics")) == (momentum == 0.1)
    assert momentum == 0.1 or off > 0.01


@pytest.mark.parametrize(("side", "size"), [(8, 1), (8, 2), (7, 2), (9, 4)])
def test_the_pool_is_the_mean_over_squares(side: int, size: int):
    x = np.random.default_rng(side).normal(size=(2, side, side, 3)).astype(np.float32)
    rows = side // size
    cut = x[:, : rows * size, : rows * size].reshape(2, rows, size, rows, size, 3)
    pooled = clip_resnet.AveragePool(size)(jnp.asarray(x))
    assert departure(pooled, cut.mean((2, 4))) < within("patches")
