"""One training step, compiled three ways: sharded `jit` (the main one), `shard_map` and `pmap`.

`train_step` is the step itself. All three ways take (state, batch, key) and return (state,
metrics), the same numbers up to rounding on any number of devices:
  sharded_step    written for one device and the global batch; XLA inserts the collectives
  shard_map_step  written for one device of many, with every collective in the code
  pmap_step       the same code under `jax.pmap`, for programs that already use it

Where collectives are written by hand, one rule is right under `pmap` and under every setting of
`shard_map`: `pmean` the loss inside the function that is differentiated, then `pmean` the gradient.

Annotated: chapter 10, "Training, and the similarity matrix".
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.losses import contrastive_loss
from jaxclip.models.parameters import named_leaves
from jaxclip.training.cached import embed_in_microbatches
from jaxclip.training.optimizer import hold_logit_scale
from jaxclip.training.pixels import BatchToPixels, as_given
from jaxclip.training.sharding import BATCH, gather
from jaxclip.training.state import TrainState

Array = jax.Array
Batch = dict[str, Any]
Metrics = dict[str, Array]
Loss = Callable[..., Array]  # (image_embeds, text_embeds, *model.temperature()) -> scalar
LossFn = Callable[..., Any]  # (params, stats, batch, key) -> (loss, (metrics, new stats))
Step = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def scale_of(params: Any) -> Metrics:
    """{"logit_scale": the factor on the cosines}; empty for parameters without a temperature."""
    named = {path.rpartition(".")[2]: leaf for path, leaf in named_leaves(params).items()}
    return {"logit_scale": jnp.exp(named["logit_scale"])} if "logit_scale" in named else {}


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    axis: Any = None,
) -> tuple[TrainState, Metrics]:
    """(the state after one update, metrics).

    Args:
      state: from `TrainState.create` with the same optimizer.
      batch: what `loss_fn` takes.
      key: what `loss_fn` takes, for what it draws at random.
      loss_fn: (params, stats, batch, key) -> (loss, (metrics, new stats)), such as `clip_loss_fn`.
      optimizer: of the state's `opt_state`.
      axis: the devices inside `shard_map` and `pmap`; `loss_fn` must take its `pmean` over it.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (metrics, stats)), grads = grad_fn(state.params, state.stats, batch, key)
    if axis is not None:
        grads = jax.lax.pmean(grads, axis)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = hold_logit_scale(optax.apply_updates(state.params, updates))
    metrics = {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads), **scale_of(params)}
    return TrainState(params, stats, opt_state, state.step + 1, state.key), metrics


# The loss -----------------------------------------------------------------------------------------


def spread(embeds: Array, axis: Any = None) -> Array:
    """Mean squared distance of unit vectors [n, e] from their mean: 1 well spread, 0 collapsed."""
    mean = embeds.mean(0)
    mean = mean if axis is None else jax.lax.pmean(mean, axis)
    return 1 - jnp.square(mean).sum()


def clip_loss_fn(
    graphdef: nnx.GraphDef, loss: Loss = contrastive_loss, *, microbatches: int = 1
) -> LossFn:
    """The loss of a model over a batch with `image` [n, h, w, c] and `tokens` [n, l].

    Args:
      graphdef: of the model, from `TrainState.create`.
      loss: over the embeddings; with `axis`, where the step names one.
      microbatches: more than 1 for gradient caching (`cached.py`).

    Returns:
      (params, stats, batch, key, axis=None) -> (loss, (metrics, new stats)).
    """

    def loss_fn(params: Any, stats: Any, batch: Batch, key: Array, *, axis: Any = None) -> Any:
        model = nnx.merge(graphdef, params, stats)
        embed = functools.partial(model.embed, train=True, axis=axis)
        if microbatches > 1:
            embed = functools.partial(embed_in_microbatches, embed, microbatches)
        I_e, T_e, new_stats = embed(batch["image"], batch["tokens"])
        temperature = [number[...] for number in model.temperature()]
        over_devices = {} if axis is None else {"axis": axis}
        value = loss(I_e, T_e, *temperature, **over_devices)
        metrics = {"image_spread": spread(I_e, axis), "text_spread": spread(T_e, axis)}
        return value, (metrics, new_stats)

    return loss_fn


def loss_over_mesh(mesh: Mesh, loss: Loss) -> Loss:
    """A loss with collectives as one over the global batch: for `sharded_step` and for tests.

    `loss` takes one device's embeddings and `axis`, as those of `training.global_losses` do.
    """
    local = functools.partial(loss, axis=BATCH[0])

    def of_batch(I_e: Array, T_e: Array, *temperature: Array) -> Array:
        specs = (BATCH, BATCH, *(P() for _ in temperature))
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
        return mapped(I_e, T_e, *temperature)

    return of_batch


# Three ways ---------------------------------------------------------------------------------------


def _with_pixels(batch: Batch, key: Array, batch_to_pixels: BatchToPixels) -> Batch:
    return {"image": batch_to_pixels(batch, key), "tokens": batch["tokens"]}


def sharded_step(
    mesh: Mesh,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    batch_to_pixels: BatchToPixels = as_given,
    state_shardings: Any = None,
    dtype: Any = None,
) -> Any:
    """`train_step` compiled for a mesh: the batch split over its devices.

    The loss and BatchNorm's statistics are over the global batch; XLA inserts the collectives. The
    state is donated.

    Args:
      mesh: of `data_mesh`.
      loss_fn: such as `clip_loss_fn`.
      optimizer: such as `optimizer.adamw`.
      batch_to_pixels: makes `image` of a batch.
      state_shardings: a TrainState of shardings (`sharding.shardings`); without it, the state is
        whole on every device.
      dtype: of the model's products, in which `fsdp` puts kernels together (`sharding.gather`).
    """
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)
    state_shardings = state_shardings or replicated

    def whole_loss_fn(params: Any, *rest: Any) -> Any:
        return loss_fn(gather(params, mesh, dtype), *rest)

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        batch = _with_pixels(batch, key, batch_to_pixels)
        return train_step(state, batch, key, loss_fn=whole_loss_fn, optimizer=optimizer)

    return jax.jit(
        step,
        in_shardings=(state_shardings, split, replicated),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )


def statistics_step(
    mesh: Mesh,
    loss_fn: LossFn,
    *,
    batch_to_pixels: BatchToPixels = as_given,
    state_shardings: Any = None,
    dtype: Any = None,
) -> Any:
    """(state, batch, key) -> BatchNorm's running statistics after the batch; the weights stay.

    Compiled for a mesh; arguments as of `sharded_step`.
    """
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)
    state_shardings = state_shardings or replicated

    def step(state: TrainState, batch: Batch, key: Array) -> Any:
        batch = _with_pixels(batch, key, batch_to_pixels)
        return loss_fn(gather(state.params, mesh, dtype), state.stats, batch, key)[1][1]

    return jax.jit(step, in_shardings=(state_shardings, split, replicated))


def shard_map_step(
    mesh: Mesh,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    batch_to_pixels: BatchToPixels = as_given,
) -> Any:
    """`train_step` under `shard_map`; the state whole on every device, and donated.

    `check_vma=False`: with True, jax adds collectives of its own where a parameter meets the batch.
    `loss_fn` takes `axis`, as that of `clip_loss_fn` does.
    """
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)
    local = jax.shard_map(
        _local_step(loss_fn, optimizer, BATCH[0]),
        mesh=mesh,
        in_specs=(P(), BATCH, P()),
        out_specs=P(),
        check_vma=False,
    )

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        return local(state, _with_pixels(batch, key, batch_to_pixels), key)

    return jax.jit(
        step,
        in_shardings=(replicated, split, replicated),
        out_shardings=replicated,
        donate_argnums=0,
    )


def pmap_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    devices: list[jax.Device] | None = None,
    batch_to_pixels: BatchToPixels = as_given,
) -> Step:
    """`train_step` under `jax.pmap`: batch and state as for the other ways, without device axes.

    One process only: the batch is cut here, [n, ...] to [devices, n / devices, ...].
    """
    chosen = devices or jax.local_devices()
    local = _local_step(loss_fn, optimizer, "data")
    mapped = jax.pmap(local, "data", in_axes=(None, 0, None), out_axes=None, devices=chosen)
    with_pixels = jax.jit(functools.partial(_with_pixels, batch_to_pixels=batch_to_pixels))

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        whole = with_pixels(batch, key)
        cut = jax.tree.map(lambda x: x.reshape(len(chosen), -1, *x.shape[1:]), whole)
        return mapped(state, cut, key)

    return step


def _local_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, axis: Any) -> Step:
    """`train_step` as one device of many runs it."""
    loss_fn = functools.partial(loss_fn, axis=axis)
    return functools.partial(train_step, loss_fn=loss_fn, optimizer=optimizer, axis=axis)
