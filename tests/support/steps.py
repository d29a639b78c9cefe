"""What tests of the training step share: a tiny model in float64, its batch, its gradient.

An optimiser that keeps the gradient as its state shows what a whole step differentiates to:
parameters after Adam would hide a factor of the device count.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.training.state import TrainState
from jaxclip.training.step import clip_loss_fn
from tests.support import tiny

BAG = TextConfig(16, context_length=13, vocab_size=101, kind="cbow")  # compiles in half the time
CONFIG = ClipConfig(VisionConfig(20, 5, 24, 1, 3), BAG, 7)
PARAMS = checkpoint.flatten(tiny.params(vision_layers=1, text="cbow"))
IMAGES, TOKENS = tiny.batch(n=16)
BATCH_OF_16 = {"image": IMAGES, "tokens": TOKENS}

# Its state is the newest gradient, and it changes no parameter.
KEEPING = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def tiny_model(config: ClipConfig = CONFIG, flat: checkpoint.Flat = PARAMS) -> clip.Clip:
    """In float64; call it with float64 enabled."""
    like = clip.abstract(config, numerics=Numerics(dtype=jnp.float64))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), like)
    return parameters.from_flat(flat, like)


def state_of(model: clip.Clip, optimizer: Any = KEEPING) -> tuple[Any, TrainState]:
    """(graphdef, first state) with key 0."""
    return TrainState.create(model, optimizer, jax.random.key(0))


def loss_and_grads(
    model: clip.Clip,
    images: Any,
    tokens: Any,
    loss: Any = contrastive_loss,
    microbatches: int = 1,
) -> tuple[Any, Any, Any]:
    """(gradient, metrics with `loss`, new statistics) of the loss that steps differentiate."""
    graphdef, params, stats = parameters.split_statistics(model)
    loss_fn = clip_loss_fn(graphdef, loss, microbatches=microbatches)
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    batch = {"image": images, "tokens": tokens}
    (value, (metrics, new)), grads = grad_fn(params, stats, batch, jax.random.key(0))
    return grads, {"loss": value, **metrics}, new


def noisy(batch: Any, key: Any) -> Any:
    """Random numbers belong to rows of the global batch, whichever way it is divided."""
    keys = jax.random.split(key, 16)
    draw = functools.partial(jax.random.normal, shape=(20, 20, 3), dtype=jnp.float64)
    return batch["image"] + 0.3 * jax.vmap(draw)(keys)
