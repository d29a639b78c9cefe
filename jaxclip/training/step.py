"""One pure training step under sharded `jit`: written for one device, spread by XLA over all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.data.augment import augment
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip
from jaxclip.models.clip import Clip, Statistics
from jaxclip.preprocess import MEAN, STD
from jaxclip.training.optimizer import hold_logit_scale

Array = jax.Array
Batch = dict[str, Any]  # drawings uint8 [n, h, w, 4], mirrorable bool [n], tokens int32 [n, l]


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices along one axis named `data`."""
    chosen = devices or jax.devices()
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def spread(embeds: Array) -> Array:
    """Mean squared distance of unit vectors [n, e] from their mean: 1 well spread, 0 collapsed."""
    return 1 - jnp.square(embeds.mean(0)).sum()


def loss_and_metrics(
    model: Clip, images: Array, tokens: Array
) -> tuple[Array, tuple[dict[str, Array], Statistics]]:
    """images [n, h, w, c], tokens [n, l] -> (Figure 3's loss, (what to watch, new statistics))."""
    I_e, T_e, statistics = model.embed(images, tokens, train=True)
    loss = contrastive_loss(I_e, T_e, model.logit_scale[...])
    return loss, ({"image_spread": spread(I_e), "text_spread": spread(T_e)}, statistics)


def gradients(
    model: Clip, images: Array, tokens: Array
) -> tuple[Clip, dict[str, Array], Statistics]:
    """(gradient of the loss, metrics with `loss` and `grad_norm`, new running statistics).

    The gradient is a tree like `clip.trained(model)`: running statistics have none.
    """
    old = clip.running_statistics(model)

    def of_parameters(parameters: Clip) -> Any:
        return loss_and_metrics(clip.with_statistics(parameters, old), images, tokens)

    evaluate = jax.value_and_grad(of_parameters, has_aux=True)
    (loss, (metrics, new)), grads = evaluate(clip.trained(model))
    return grads, {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads)}, new


def train_step(
    model: Clip,
    opt_state: Any,
    batch: Batch,
    key: Array,
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[Clip, Any, dict[str, Array]]:
    """Augment, differentiate, update, hold the temperature -> (model, opt_state, metrics).

    `opt_state` belongs to `clip.trained(model)`. Running statistics take the batch's share.
    """
    size = model.config.vision.image_size
    images = augment(key, batch["drawings"], size, batch["mirrorable"])  # [n, h, w, c]
    images = (images - jnp.array(MEAN)) / jnp.array(STD)
    grads, metrics, statistics = gradients(model, images, batch["tokens"])
    parameters = clip.trained(model)
    updates, opt_state = optimizer.update(grads, opt_state, parameters)
    parameters = hold_logit_scale(optax.apply_updates(parameters, updates))
    model = clip.with_statistics(parameters, statistics)
    return model, opt_state, {**metrics, "logit_scale": jnp.exp(model.logit_scale[...])}


def sharded_step(
    mesh: Mesh, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Clip, Any, dict[str, Array]]]:
    """`train_step` compiled for a mesh: the batch split over its devices, the state on each.

    The loss and BatchNorm's statistics are over the global batch; XLA inserts the collectives. The
    state is donated.
    """
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def step(model: Clip, opt_state: Any, batch: Batch, key: Array) -> Any:
        return train_step(model, opt_state, batch, key, optimizer=optimizer)

    return jax.jit(
        step,
        in_shardings=(everywhere, everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=(0, 1),
    )
