"""From a recipe to what runs: model, optimiser, first state with its shardings, compiled step.

Annotated: chapter 10, "Training, and the similarity matrix".
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxclip import hardware
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.models.clip import Clip
from jaxclip.models.layers import Numerics
from jaxclip.models.parameters import split_statistics
from jaxclip.training.finetune import at_rates, with_average, with_clipped_norm
from jaxclip.training.global_losses import (
    chunked_contrastive_loss,
    gathered_contrastive_loss,
    ring_contrastive_loss,
)
from jaxclip.training.optimizer import adamw
from jaxclip.training.pixels import BatchToPixels
from jaxclip.training.recipe import Execution, Recipe, parse_rates
from jaxclip.training.sharding import shardings
from jaxclip.training.sigmoid import ring_sigmoid_loss, sigmoid_loss
from jaxclip.training.state import TrainState
from jaxclip.training.step import Loss, clip_loss_fn, loss_over_mesh, sharded_step, statistics_step

CHUNK = 1024  # texts a block of the chunked loss, or the largest divisor that it has with the batch


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The paper's AdamW, with the rates, the clipping and the average that the recipe names."""
    optimizer = adamw(
        recipe.learning_rate,
        recipe.warmup,
        recipe.steps,
        recipe.weight_decay,
        tower=type(recipe.model.vision),
        beta2=recipe.beta2 or None,
        first_moment=jnp.bfloat16 if recipe.first_moment == "bfloat16" else None,
    )
    rates = parse_rates(recipe.rates)
    if rates:
        optimizer = at_rates(optimizer, rates)
    if recipe.clip_norm:
        optimizer = with_clipped_norm(optimizer, recipe.clip_norm, rates)
    return with_average(optimizer, recipe.average) if recipe.average else optimizer


def _model_options(recipe: Recipe) -> dict[str, Any]:
    return {"remat": recipe.remat, "numerics": Numerics(jnp.dtype(recipe.dtype))}


def _plain_model(recipe: Recipe, flat: dict[str, Any] | None, mesh: Mesh) -> Clip:
    """A model of arrays, each made on the devices that will hold it."""
    like = clip.abstract(recipe.model, **_model_options(recipe))
    where = shardings(like, mesh)
    if flat is not None:
        return jax.device_put(parameters.from_flat(flat, like), where)
    options = _model_options(recipe)
    return clip.create(recipe.model, recipe.seed, placement=where, **options)


def _split_for(
    model: Clip, recipe: Recipe, mesh: Mesh, attention: str = "auto"
) -> tuple[nnx.GraphDef, Any, Any]:
    """(graphdef, params, stats) of a model in the modules that train best on the mesh's devices."""
    device = mesh.devices.flat[0]
    if attention == "pallas" and mesh.size > 1:  # every device would gather the others' rows
        raise ValueError(
            f"attention: expected one device for pallas, got {mesh.size}; choose another kernel"
        )
    arranged = hardware.arrange_training(
        model,
        device.platform,
        recipe.remat,
        device_kind=device.device_kind,
        attention=attention,
        devices=mesh.size,
    )
    return split_statistics(arranged)


def _rest_of_state(recipe: Recipe, params: Any) -> tuple[Any, jax.Array, jax.Array]:
    """(opt_state, step, key) of a run that begins."""
    key = jax.random.key(recipe.seed)
    return make_optimizer(recipe).init(params), jnp.zeros((), jnp.int32), key


def abstract_state(
    recipe: Recipe, mesh: Mesh, attention: str = "auto"
) -> tuple[nnx.GraphDef, TrainState]:
    """(graphdef, state) of shapes without arrays; `attention` as of `Execution`."""
    plain = clip.abstract(recipe.model, **_model_options(recipe))
    graphdef, params, stats = _split_for(plain, recipe, mesh, attention)
    rest = jax.eval_shape(functools.partial(_rest_of_state, recipe), params)
    return graphdef, TrainState(params, stats, *rest)


def state_shardings(recipe: Recipe, mesh: Mesh) -> TrainState:
    """The sharding of every leaf of the state."""
    return shardings(abstract_state(recipe, mesh)[1], mesh)


def first_state(recipe: Recipe, mesh: Mesh, flat: dict[str, Any] | None = None) -> TrainState:
    """The state that a run begins with, each array made on the devices that will hold it.

    The weights are drawn from the recipe's seed, or taken from `flat` (by official name).
    """
    _, params, stats = _split_for(_plain_model(recipe, flat, mesh), recipe, mesh)
    where = state_shardings(recipe, mesh)
    rest = jax.jit(functools.partial(_rest_of_state, recipe), out_shardings=where[2:])
    return TrainState(params, stats, *rest(params))


def compiled_step(
    recipe: Recipe, execution: Execution, mesh: Mesh, batch_to_pixels: BatchToPixels
) -> Any:
    """`step.sharded_step` for a recipe: (state, batch, key) -> (state, metrics)."""
    graphdef, _ = abstract_state(recipe, mesh, execution.attention)
    loss = choose_loss(recipe, execution, mesh)
    return sharded_step(
        mesh,
        clip_loss_fn(graphdef, loss, microbatches=recipe.microbatches),
        make_optimizer(recipe),
        batch_to_pixels=batch_to_pixels,
        state_shardings=state_shardings(recipe, mesh),
        dtype=jnp.dtype(recipe.dtype),
    )


def compiled_statistics_step(
    recipe: Recipe, execution: Execution, mesh: Mesh, batch_to_pixels: BatchToPixels
) -> Any:
    """`step.statistics_step` for a recipe: (state, batch, key) -> statistics."""
    graphdef, _ = abstract_state(recipe, mesh, execution.attention)
    return statistics_step(
        mesh,
        clip_loss_fn(
            graphdef, choose_loss(recipe, execution, mesh), microbatches=recipe.microbatches
        ),
        batch_to_pixels=batch_to_pixels,
        state_shardings=state_shardings(recipe, mesh),
        dtype=jnp.dtype(recipe.dtype),
    )


def choose_loss(recipe: Recipe, execution: Execution, mesh: Mesh) -> Loss:
    """The loss of a recipe, in the form that `execution` names; ValueError where there is none."""
    name = execution.loss
    if recipe.model.logit_bias:
        if name not in ("dense", "ring"):
            raise ValueError(f"loss: expected dense or ring, as SigLIP's has, got {name}")
        return sigmoid_loss if name == "dense" else loss_over_mesh(mesh, ring_sigmoid_loss)
    if name == "dense":
        return contrastive_loss
    if name == "chunked":
        if mesh.size > 1:
            raise ValueError(f"loss: expected ring on {mesh.size} devices, got chunked")
        chunk = math.gcd(recipe.batch_size, CHUNK)
        return functools.partial(chunked_contrastive_loss, chunk=chunk)
    losses = {"gathered": gathered_contrastive_loss, "ring": ring_contrastive_loss}
    return loss_over_mesh(mesh, losses[name])
