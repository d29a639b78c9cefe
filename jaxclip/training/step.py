"""One training step, three ways: sharded `jit` (the main one), `shard_map` and `pmap`.

All take (model, opt_state, batch, key) and return (model, opt_state, metrics), the same numbers up
to rounding on any number of devices:
  sharded_step    written for one device and the global batch; XLA inserts the collectives
  shard_map_step  the gradient is written for one device of many, with every collective in the code
  pmap_step       the same code under `jax.pmap`, for those who have it in their programs

Where collectives are written by hand, one rule is right under `pmap` and under every setting of
`shard_map`: `pmean` the loss inside the function that is differentiated, then `pmean` the gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.data.emoji.augment import augment
from jaxclip.images.preprocess import MEAN, STD
from jaxclip.losses import contrastive_loss
from jaxclip.models.clip import Clip
from jaxclip.models.parameters import Statistics, params_only, running_statistics, with_statistics
from jaxclip.training.global_losses import ring_contrastive_loss
from jaxclip.training.optimizer import hold_logit_scale
from jaxclip.training.sharding import BATCH

Array = jax.Array
Batch = dict[str, Any]  # tokens int32 [n, l] and what `Prepare` makes images from
Prepare = Callable[..., Array]  # (batch, key, size) -> [n, size, size, 3]
Loss = Callable[..., Array]  # (image_embeds, text_embeds, *numbers of `temperature`) -> scalar
Metrics = dict[str, Array]
Gradients = Callable[..., tuple[Clip, Metrics, Statistics]]  # as `gradients` below
Step = Callable[[Clip, Any, Batch, Array], tuple[Clip, Any, Metrics]]


def normalised(batch: Batch, key: Array, size: int) -> Array:
    """`image` uint8 [n, size, size, 3], cropped on the host -> pixels as the towers take them."""
    return (batch["image"].astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def augmented(batch: Batch, key: Array, size: int) -> Array:
    """`drawings` uint8 [n, h, w, 4] and `mirrorable` bool [n], augmented -> pixels."""
    images = augment(key, batch["drawings"], size, batch["mirrorable"])  # [n, h, w, c]
    return (images - jnp.array(MEAN)) / jnp.array(STD)


# The gradient -------------------------------------------------------------------------------------


def spread(embeds: Array, axis: str | None = None) -> Array:
    """Mean squared distance of unit vectors [n, e] from their mean: 1 well spread, 0 collapsed."""
    mean = embeds.mean(0)
    mean = mean if axis is None else jax.lax.pmean(mean, axis)
    return 1 - jnp.square(mean).sum()


def loss_and_metrics(
    model: Clip,
    images: Array,
    tokens: Array,
    *,
    loss: Loss = contrastive_loss,
    axis: str | None = None,
) -> tuple[Array, tuple[Metrics, Statistics]]:
    """images [n, h, w, c], tokens [n, l] -> (the loss, (what to watch, new statistics))."""
    I_e, T_e, statistics = model.embed(images, tokens, train=True, axis=axis)
    metrics = {"image_spread": spread(I_e, axis), "text_spread": spread(T_e, axis)}
    value = loss(I_e, T_e, *(number[...] for number in model.temperature()))
    return value, (metrics, statistics)


def gradients(
    model: Clip,
    images: Array,
    tokens: Array,
    *,
    loss: Loss = contrastive_loss,
    axis: str | None = None,
) -> tuple[Clip, Metrics, Statistics]:
    """(gradient of the loss, metrics with `loss` and `grad_norm`, new running statistics).

    The gradient is a tree like `params_only(model)`: running statistics have none. `axis` names
    the devices inside `shard_map` and `pmap`; `loss` must then have taken the `pmean` over it.
    """
    old = running_statistics(model)

    def of_parameters(parameters: Clip) -> Any:
        whole = with_statistics(parameters, old)
        return loss_and_metrics(whole, images, tokens, loss=loss, axis=axis)

    evaluate = jax.value_and_grad(of_parameters, has_aux=True)
    (value, (metrics, new)), grads = evaluate(params_only(model))
    grads = grads if axis is None else jax.lax.pmean(grads, axis)
    return grads, {"loss": value, **metrics, "grad_norm": optax.tree.norm(grads)}, new


def train_step(
    model: Clip,
    opt_state: Any,
    batch: Batch,
    key: Array,
    *,
    optimizer: optax.GradientTransformation,
    prepare: Prepare = augmented,
    gradients: Gradients = gradients,
) -> tuple[Clip, Any, Metrics]:
    """Prepare, differentiate, update, hold the temperature -> (model, opt_state, metrics).

    `opt_state` belongs to `params_only(model)`. Running statistics take the batch's share.
    """
    images = prepare(batch, key, model.config.vision.image_size)
    grads, metrics, statistics = gradients(model, images, batch["tokens"])
    parameters = params_only(model)
    updates, opt_state = optimizer.update(grads, opt_state, parameters)
    parameters = hold_logit_scale(optax.apply_updates(parameters, updates))
    model = with_statistics(parameters, statistics)
    return model, opt_state, {**metrics, "logit_scale": jnp.exp(model.logit_scale[...])}


# Three ways -------------------------------------------------------------------------------------


def over_mesh(mesh: Mesh, loss: Loss) -> Loss:
    """A loss with collectives as one over the global batch: for `sharded_step` and for tests.

    `loss` takes one device's embeddings and `axis`, as those of `training.losses` do.
    """
    local = functools.partial(loss, axis=BATCH[0])

    def of_batch(I_e: Array, T_e: Array, *temperature: Array) -> Array:
        specs = (BATCH, BATCH, *(P() for _ in temperature))
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
        return mapped(I_e, T_e, *temperature)

    return of_batch


def sharded_step(
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = augmented,
    gradients: Gradients = gradients,
    placement: tuple[Any, Any] | None = None,
) -> Any:
    """`train_step` compiled for a mesh: the batch split over its devices.

    The loss and BatchNorm's statistics are over the global batch; XLA inserts the collectives. The
    state is donated.

    Args:
      mesh: of `data_mesh`.
      optimizer: such as `optimizer.adamw`.
      prepare: what makes pixels of a batch.
      gradients: `gradients` or `cached.gradients`, with another loss bound or not.
      placement: where model and optimiser state live (`sharding.placement`); without it, whole on
        every device.
    """
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)
    model, opt_state = placement or (everywhere, everywhere)
    step = functools.partial(train_step, optimizer=optimizer, prepare=prepare, gradients=gradients)
    return jax.jit(
        step,
        in_shardings=(model, opt_state, split, everywhere),
        out_shardings=(model, opt_state, everywhere),
        donate_argnums=(0, 1),
    )


def shard_map_step(
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare = augmented,
    gradients: Gradients = gradients,
    loss: Loss = ring_contrastive_loss,
) -> Any:
    """`train_step` with the gradient under `shard_map`; the state whole on every device.

    `check_vma=False`: with True, jax adds collectives of its own where a parameter meets the batch.
    `loss` is one with `axis`.
    """
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)
    axis = BATCH[0]
    local = functools.partial(gradients, loss=functools.partial(loss, axis=axis), axis=axis)
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), BATCH, BATCH), out_specs=P(), check_vma=False
    )
    step = functools.partial(train_step, optimizer=optimizer, prepare=prepare, gradients=mapped)
    return jax.jit(
        step,
        in_shardings=(everywhere, everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=(0, 1),
    )


def pmap_step(
    optimizer: optax.GradientTransformation,
    *,
    devices: list[jax.Device] | None = None,
    prepare: Prepare = augmented,
    gradients: Gradients = gradients,
    loss: Loss = ring_contrastive_loss,
) -> Step:
    """`train_step` under `jax.pmap`: batch and state as for the other ways, without device axes.

    One process only: the batch is cut here, [n, ...] to [devices, n / devices, ...].
    """
    chosen = devices or jax.local_devices()
    axis = "data"
    local = functools.partial(gradients, loss=functools.partial(loss, axis=axis), axis=axis)
    prepared = functools.partial(
        train_step, optimizer=optimizer, prepare=lambda batch, *_: batch["image"], gradients=local
    )
    mapped = jax.pmap(prepared, axis, in_axes=(None, None, 0, None), out_axes=None, devices=chosen)
    pixels = jax.jit(prepare, static_argnums=2)

    def step(model: Clip, opt_state: Any, batch: Batch, key: Array) -> tuple[Clip, Any, Metrics]:
        images = pixels(batch, key, model.config.vision.image_size)
        whole = {"image": images, "tokens": batch["tokens"]}
        cut = jax.tree.map(lambda x: x.reshape(len(chosen), -1, *x.shape[1:]), whole)
        return mapped(model, opt_state, cut, key)

    return step
