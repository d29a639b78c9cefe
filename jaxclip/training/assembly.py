"""From a recipe and a layout to what runs: optimiser, placement, first state, compiled step."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxclip import hardware
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.training import cached, step
from jaxclip.training.finetune import at_rates, with_average
from jaxclip.training.global_losses import (
    chunked_contrastive_loss,
    gathered_contrastive_loss,
    ring_contrastive_loss,
)
from jaxclip.training.optimizer import adamw
from jaxclip.training.recipe import Layout, TrainConfig, parse_rates
from jaxclip.training.sharding import placement
from jaxclip.training.sigmoid import ring_sigmoid_loss, sigmoid_loss

CHUNK = 1024  # texts a block of the chunked loss, or the largest divisor that it has with the batch


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The paper's AdamW with the recipe's rates and, if it asks for one, average of the weights."""
    found = adamw(
        config.learning_rate,
        config.warmup,
        config.steps,
        config.weight_decay,
        tower=type(config.model.vision),
    )
    if config.rates:
        found = at_rates(found, parse_rates(config.rates))
    return with_average(found, config.average) if config.average else found


def _options(config: TrainConfig) -> dict[str, Any]:
    return {"remat": config.remat, "numerics": Numerics(jnp.dtype(config.dtype))}


def _arrange(model: clip.Clip, config: TrainConfig, mesh: Mesh) -> clip.Clip:
    return hardware.arrange_training(model, mesh.devices.flat[0].platform, config.remat)


def shapes(config: TrainConfig, mesh: Mesh) -> tuple[Any, Any]:
    """(model, optimiser state) without arrays, for the devices of a mesh."""
    model = _arrange(clip.abstract(config.model, **_options(config)), config, mesh)
    return model, jax.eval_shape(optimizer(config).init, model)


def places(config: TrainConfig, mesh: Mesh) -> tuple[Any, Any]:
    """Where (model, optimiser state) live on a mesh, leaf by leaf."""
    model, opt_state = shapes(config, mesh)
    return placement(model, mesh), placement(opt_state, mesh)


def first_state(
    config: TrainConfig, mesh: Mesh, flat: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """(model, optimiser state) to begin with, made where they will live.

    The weights are drawn from the recipe's seed, or taken from `flat` (by official name).
    """
    plain = clip.abstract(config.model, **_options(config))
    model_places, state_places = placement(plain, mesh), places(config, mesh)[1]
    if flat is None:
        model = clip.create(config.model, config.seed, placement=model_places, **_options(config))
    else:
        model = jax.device_put(parameters.from_flat(flat, plain), model_places)
    model = _arrange(model, config, mesh)
    return model, jax.jit(optimizer(config).init, out_shardings=state_places)(model)


def compiled_step(config: TrainConfig, layout: Layout, mesh: Mesh, prepare: step.Prepare) -> Any:
    """`step.sharded_step` for a recipe: (model, opt_state, batch, key) -> the same and metrics."""
    loss = loss_on(config, layout, mesh)
    gradients: Any = functools.partial(step.gradients, loss=loss)
    if config.parts > 1:
        gradients = functools.partial(cached.gradients, loss=loss, parts=config.parts)
    return step.sharded_step(
        mesh,
        optimizer(config),
        prepare=prepare,
        gradients=gradients,
        placement=places(config, mesh),
    )


def loss_on(config: TrainConfig, layout: Layout, mesh: Mesh) -> step.Loss:
    """The loss of a recipe, as a layout computes it on a mesh; ValueError where it cannot."""
    if config.model.logit_bias:
        if layout.loss not in ("dense", "ring"):
            raise ValueError(f"loss: expected dense or ring, as SigLIP's has, got {layout.loss}")
        ring = step.over_mesh(mesh, ring_sigmoid_loss)
        return sigmoid_loss if layout.loss == "dense" else ring
    if layout.loss == "dense":
        return contrastive_loss
    if layout.loss == "chunked":
        if mesh.size > 1:
            raise ValueError(f"loss: expected ring on {mesh.size} devices, got chunked")
        chunk = math.gcd(config.batch_size, CHUNK)
        return functools.partial(chunked_contrastive_loss, chunk=chunk)
    ways = {"gathered": gathered_contrastive_loss, "ring": ring_contrastive_loss}
    return step.over_mesh(mesh, ways[layout.loss])
