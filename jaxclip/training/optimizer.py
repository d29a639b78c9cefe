"""The paper's optimiser (section 2.5): AdamW, decay on matrices only, cosine with warm-up."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip.config import ResNetConfig, VisionConfig
from jaxclip.models.parameters import params_only

MAX_LOGIT_SCALE = math.log(100)
CONSTANTS = {VisionConfig: (0.98, 1e-6), ResNetConfig: (0.999, 1e-8)}  # beta2, epsilon
NEVER_DECAYED = ("bias", "in_proj_bias", "scale", "class_embedding", "logit_scale", "logit_bias")


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
    learning_rate: float,
    warmup: int,
    steps: int,
    weight_decay: float = 0.2,
    *,
    tower: type[VisionConfig | ResNetConfig] = VisionConfig,
) -> optax.GradientTransformation:
    """AdamW with the paper's constants for the kind of image tower (section 2.5).

    `init` and `update` take a whole model and leave its running statistics out.
    """
    beta2, epsilon = CONSTANTS[tower]
    inner = optax.adamw(
        schedule(learning_rate, warmup, steps),
        b1=0.9,
        b2=beta2,
        eps=epsilon,
        weight_decay=weight_decay,
        mask=decayed,
    )

    def update(grads: Any, state: Any, model: Any) -> tuple[Any, Any]:
        return inner.update(grads, state, params_only(model))

    return optax.GradientTransformation(lambda model: inner.init(params_only(model)), update)


def hold_logit_scale(model: Any) -> Any:
    """The model with its log temperature held at ln 100 or less, after each update."""
    model.logit_scale[...] = jnp.minimum(model.logit_scale[...], MAX_LOGIT_SCALE)
    return model
