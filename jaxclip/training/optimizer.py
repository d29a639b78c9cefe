"""The paper's optimiser (section 2.5): AdamW, decay on matrices only, cosine with warm-up."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

MAX_LOGIT_SCALE = math.log(100)
NEVER_DECAYED = ("bias", "in_proj_bias", "scale", "class_embedding", "logit_scale")


def decayed(model: Any) -> Any:
    """A tree like `model` that is True at the leaves that weight decay acts on.

    By name, not by rank: a stack of biases is a matrix too, but holds gains and biases still.
    """

    def by_name(path: tuple[Any, ...], _: Any) -> bool:
        names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
        return not any(name in NEVER_DECAYED for name in names)

    return jax.tree_util.tree_map_with_path(by_name, model)


def schedule(learning_rate: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear from zero over `warmup` steps, then a cosine down to zero at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1))


def adamw(
    learning_rate: float, warmup: int, steps: int, weight_decay: float = 0.2
) -> optax.GradientTransformation:
    """AdamW with the paper's constants for a Vision Transformer (beta2 0.98, epsilon 1e-6)."""
    rate = schedule(learning_rate, warmup, steps)
    return optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=weight_decay, mask=decayed)


def hold_logit_scale(model: Any) -> Any:
    """The model with its log temperature held at ln 100 or less, after each update."""
    model.logit_scale[...] = jnp.minimum(model.logit_scale[...], MAX_LOGIT_SCALE)
    return model
