"""One step, three ways: the same gradient, metrics and statistics on any number of devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import checkpoint
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip
from jaxclip.models.layers import Numerics
from jaxclip.models.parameters import named_leaves, to_flat
from jaxclip.models.resnet import Bottleneck
from jaxclip.models.starts import Initialiser
from jaxclip.training.finetune import with_clipped_norm
from jaxclip.training.global_losses import gathered_contrastive_loss, ring_contrastive_loss
from jaxclip.training.sharding import BATCH, data_mesh, gather, shardings
from jaxclip.training.step import (
    clip_loss_fn,
    loss_over_mesh,
    pmap_step,
    shard_map_step,
    sharded_step,
)
from tests.support.jaxprs import equations
from tests.support.statistics import params_only
from tests.support.steps import BATCH_OF_16, CONFIG, KEEPING, noisy, state_of, tiny_model
from tests.support.tolerances import departure, within, worst

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py"),
    pytest.mark.usefixtures("quick_compiling"),
]
slow = pytest.mark.slow


Result = tuple[checkpoint.Flat, dict[str, Any]]  # gradient, metrics


def ran(make_step: Any, loss: Any = contrastive_loss, put: Any = lambda state: state) -> Result:
    """Gradient and metrics of one step; `make_step` takes the loss function."""
    graphdef, state = state_of(tiny_model())
    step = make_step(clip_loss_fn(graphdef, loss))
    state, metrics = step(put(state), BATCH_OF_16, jax.random.key(0))
    return to_flat(state.opt_state), {name: float(value) for name, value in metrics.items()}


OPTIONS: dict[str, Any] = {"optimizer": KEEPING, "batch_to_pixels": noisy}


@functools.cache
def alone() -> Result:
    with jax.enable_x64(True):
        mesh = data_mesh(jax.devices()[:1])
        return ran(lambda loss_fn: sharded_step(mesh, loss_fn, **OPTIONS))


def sharded(fsdp: int, tensor: int, loss: Any = None, **options: Any) -> Any:
    """On 8 devices (or as many as these two make), parameters sharded by rule."""

    def run(devices: int) -> Result:
        mesh = data_mesh(jax.devices()[:devices], fsdp=fsdp, tensor=tensor)
        where = shardings(state_of(tiny_model())[1], mesh)
        chosen = loss_over_mesh(mesh, loss) if loss else contrastive_loss

        def make(loss_fn: Any) -> Any:
            return sharded_step(mesh, loss_fn, state_shardings=where, **OPTIONS | options)

        return ran(make, chosen, lambda state: jax.device_put(state, where))

    return run


def by_shard_map(loss: Any) -> Any:
    def run(devices: int) -> Result:
        mesh = data_mesh(jax.devices()[:devices])
        return ran(lambda loss_fn: shard_map_step(mesh, loss_fn, **OPTIONS), loss)

    return run


def by_pmap(loss: Any) -> Any:
    def run(devices: int) -> Result:
        chosen = jax.devices()[:devices]
        return ran(lambda loss_fn: pmap_step(loss_fn, devices=chosen, **OPTIONS), loss)

    return run


RING = ring_contrastive_loss
CASES = [
    pytest.param(sharded(2, 2), 8, id="jit-2x2x2"),
    pytest.param(sharded(2, 2, RING), 8, id="jit-2x2x2-ring", marks=slow),
    pytest.param(sharded(4, 1), 4, id="jit-1x4x1", marks=slow),
    pytest.param(sharded(1, 2), 2, id="jit-1x1x2", marks=slow),
    pytest.param(by_shard_map(RING), 8, id="shard_map-8"),
    *(pytest.param(by_shard_map(RING), n, id=f"shard_map-{n}", marks=slow) for n in (1, 2, 4)),
    pytest.param(by_shard_map(gathered_contrastive_loss), 4, id="shard_map-gathered-4", marks=slow),
    pytest.param(by_pmap(RING), 4, id="pmap-4"),
    *(pytest.param(by_pmap(RING), n, id=f"pmap-{n}", marks=slow) for n in (1, 2, 8)),
]


@pytest.mark.parametrize(("way", "devices"), CASES)
def test_every_way_gives_the_gradient_of_one_device(way, devices):
    with jax.enable_x64(True):
        gradient, metrics = way(devices)
    expected, expected_metrics = alone()
    assert {value.dtype for value in gradient.values()} == {np.dtype(np.float64)}
    assert worst(gradient, expected) < within("devices float64")
    assert metrics == pytest.approx(expected_metrics, rel=within("devices float64"))


def test_a_gradient_cut_over_devices_is_clipped_by_the_norm_of_the_whole():
    expected, metrics = alone()
    norm = metrics["grad_norm"] / 3
    clipping = with_clipped_norm(KEEPING, norm)
    with jax.enable_x64(True):
        gradient, seen = sharded(8, 1, optimizer=clipping)(8)
    assert seen["grad_norm"] == pytest.approx(3 * norm)  # what is logged is not clipped
    third = {name: value / 3 for name, value in expected.items()}
    assert worst(gradient, third) < within("devices float64")
    assert worst(gradient, expected) > 0.5


def test_a_loss_of_its_own_on_every_device_is_noticed():
    def own(images: Any, texts: Any, t: Any, *, axis: Any) -> Any:
        return jax.lax.pmean(contrastive_loss(images, texts, t), axis)

    with jax.enable_x64(True):
        wrong, _ = by_pmap(own)(4)
    assert min(departure(wrong[name], right) for name, right in alone()[0].items()) > 0.1


def test_a_loss_summed_over_devices_is_noticed():
    def summed(*values: Any, axis: Any) -> Any:
        return jax.lax.psum(ring_contrastive_loss(*values, axis=axis), axis)

    with jax.enable_x64(True):
        wrong, _ = by_shard_map(summed)(4)
    assert min(departure(wrong[name], right) for name, right in alone()[0].items()) > 2.9


# Where parameters live ----------------------------------------------------------------------------


def test_parameters_are_cut_by_rule():
    mesh = data_mesh(jax.devices(), fsdp=2, tensor=2)
    places = named_leaves(shardings(clip.abstract(CONFIG), mesh))
    cut = {name: place.spec for name, place in places.items() if any(place.spec)}
    block = "visual.transformer.resblocks"
    assert cut[f"{block}.attn.in_proj_kernel"] == P(None, "fsdp", "tensor")
    assert cut[f"{block}.mlp.c_proj.kernel"] == P(None, "tensor", "fsdp")
    assert cut["visual.proj"] == P("fsdp", None)  # 7 columns stay whole
    assert "visual.conv1.kernel" in cut and "logit_scale" not in cut
    assert not any(name.endswith(("ln_1.scale", "ln_post.bias")) for name in cut)
    moments = named_leaves(shardings(jax.eval_shape(KEEPING.init, clip.abstract(CONFIG)), mesh))
    assert {name: place.spec for name, place in moments.items()} == {
        name: place.spec for name, place in places.items()
    }


def test_most_of_a_released_model_is_cut():
    from jaxclip.config import RELEASED

    mesh = data_mesh(jax.devices(), fsdp=4, tensor=2)
    for name in ("ViT-B/32", "RN50"):
        abstract = params_only(clip.abstract(RELEASED[name]))
        leaves = zip(
            jax.tree.leaves(abstract), jax.tree.leaves(shardings(abstract, mesh)), strict=True
        )
        sizes = [(leaf.size, int(np.prod(place.shard_shape(leaf.shape)))) for leaf, place in leaves]
        whole, shard = (sum(column) for column in zip(*sizes, strict=True))
        assert shard < 0.14 * whole, name  # one eighth is 0.125


def constraints(dtype: Any) -> list[tuple[str, P]]:
    """The number format and sharding of every constraint on a projection and its gradient."""
    mesh = data_mesh(jax.devices()[:8], fsdp=4)
    params = {"visual": {"proj": jnp.ones((64, 48))}}

    def loss(params: Any) -> Any:
        return gather(params, mesh, dtype)["visual"]["proj"].astype(jnp.float32).sum()

    return [
        (equation.outvars[0].aval.dtype.name, equation.params["sharding"].spec)
        for equation in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        if equation.primitive.name == "sharding_constraint"
    ]


def test_kernels_and_their_gradients_travel_in_the_dtype_of_products():
    cut, whole = P("fsdp", "tensor"), P(None, "tensor")
    there, back = [cut, whole], [cut, cut]
    assert constraints(jnp.bfloat16) == [("bfloat16", spec) for spec in there + back]
    assert constraints(None) == [("float32", spec) for spec in (whole, cut)]


def test_a_kernel_converted_before_it_travels_gives_the_same_numbers():
    mesh = data_mesh(jax.devices()[:8], fsdp=4)
    params = {"visual": {"proj": jax.random.normal(jax.random.key(0), (64, 48))}}
    x = jax.random.normal(jax.random.key(1), (512, 64))
    places = shardings(params, mesh), NamedSharding(mesh, BATCH)

    def ran(dtype: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            kernel = gather(params, mesh, dtype)["visual"]["proj"].astype(jnp.bfloat16)
            return jnp.square((x.astype(jnp.bfloat16) @ kernel).astype(jnp.float32)).mean()

        step = jax.jit(jax.value_and_grad(loss), in_shardings=places)
        return step(*jax.device_put((params, x), places))

    (value, gradient), (expected, expected_gradient) = ran(jnp.bfloat16), ran(None)
    assert value == expected
    gradient, expected_gradient = gradient["visual"]["proj"], expected_gradient["visual"]["proj"]
    assert departure(gradient, expected_gradient) < within("bfloat16 twice")
    assert departure(gradient[::-1], expected_gradient) > 0.5


def test_a_mesh_that_devices_do_not_fill_is_refused():
    with pytest.raises(
        ValueError, match="fsdp: expected, times tensor, a divisor of 8 devices, got 3 x 1"
    ):
        data_mesh(jax.devices()[:8], fsdp=3)


# BatchNorm over devices ---------------------------------------------------------------------------


def block(axis: Any) -> Any:
    """Value, gradient and new statistics of one ResNet block over 8 pictures."""
    from flax import nnx

    def run(x: Any) -> Any:
        made = Bottleneck(
            6, 4, 2, numerics=Numerics(dtype=jnp.float64), init=Initialiser(nnx.Rngs(0))
        )
        made = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), made)
        made.bn3.scale = nnx.Param(jnp.linspace(0.5, 1.5, 16))  # so that all of it counts

        def loss(x: Any) -> Any:
            y, new = made(x, train=True, axis=axis)
            own = jnp.square(y).mean()
            return own if axis is None else jax.lax.pmean(own, axis), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        return {"value": value, **checkpoint.flatten(new)}, gradient

    return run


@functools.cache
def pictures() -> Any:
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 6))
    return x + np.arange(8)[:, None, None, None]  # the devices' shares differ


def flat(run: Any) -> checkpoint.Flat:
    with jax.enable_x64(True):
        named, gradient = jax.jit(run)(pictures())
    return {**{k: np.asarray(v) for k, v in named.items()}, "gradient": np.asarray(gradient)}


def over_devices(run: Any, devices: int, **options: Any) -> checkpoint.Flat:
    mesh, specs = data_mesh(jax.devices()[:devices]), (P(), P("data"))
    return flat(jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=specs, **options))


@functools.cache
def block_alone() -> checkpoint.Flat:
    return flat(block(None))


@pytest.mark.parametrize("devices", [pytest.param(2, marks=slow), 8])
def test_batch_norm_sees_the_batch_of_all_devices(devices):
    assert worst(over_devices(block("data"), devices), block_alone()) < within("devices float64")


def test_batch_norm_of_one_device_s_share_is_noticed():
    def unsynchronised(x: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jaxclip.models.resnet._over_batch", lambda x, axis: x.mean((0, 1, 2)))
            named, gradient = block("data")(x)
        return jax.tree.map(lambda v: jax.lax.pmean(v, "data"), named), gradient

    wrong, right = over_devices(unsynchronised, 4, check_vma=False), block_alone()
    assert departure(wrong["gradient"], right["gradient"]) > 0.1
    assert departure(wrong["bn1.var"], right["bn1.var"]) > 0.1
