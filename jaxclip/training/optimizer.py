"""The paper's optimiser (section 2.5): AdamW, decay on matrices only, cosine with warm-up.

Annotated: chapter 6, "The temperature, learned and logarithmic".
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip.config import ResNetConfig, VisionConfig

MAX_LOGIT_SCALE = math.log(100)
CONSTANTS = {VisionConfig: (0.98, 1e-6), ResNetConfig: (0.999, 1e-8)}  # beta2, epsilon
NEVER_DECAYED = {"bias", "in_proj_bias", "scale", "class_embedding", "cls_emb", "probe"}
NEVER_DECAYED |= {"logit_scale", "logit_bias"}


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]


def decay_mask(params: Any) -> Any:
    """A tree like `params` that is True at the leaves that weight decay acts on.

    By name, not by rank: a stack of biases is a matrix too, but holds gains and biases still.
    """

    def by_name(path: tuple[Any, ...], _: Any) -> bool:
        return not any(name in NEVER_DECAYED for name in _names(path))

    return jax.tree_util.tree_map_with_path(by_name, params)


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
    beta2: float | None = None,
    first_moment: Any = None,
) -> optax.GradientTransformation:
    """AdamW with the paper's constants for the kind of image tower (section 2.5).

    `first_moment` is the dtype in which the mean of the gradients is kept between steps; the
    parameters' if not given. `beta2` is the paper's if not given.
    """
    own_beta2, epsilon = CONSTANTS[tower]
    return optax.adamw(
        schedule(learning_rate, warmup, steps),
        b1=0.9,
        b2=own_beta2 if beta2 is None else beta2,
        eps=epsilon,
        mu_dtype=first_moment,
        weight_decay=weight_decay,
        mask=decay_mask,
    )


def hold_logit_scale(params: Any) -> Any:
    """The parameters with their log temperature held at ln 100 or less, after each update."""

    def held(path: tuple[Any, ...], leaf: Any) -> Any:
        return jnp.minimum(leaf, MAX_LOGIT_SCALE) if "logit_scale" in _names(path) else leaf

    return jax.tree_util.tree_map_with_path(held, params)
