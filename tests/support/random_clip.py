"""A Flax model of random numbers, drawn in NumPy: nothing is compiled, unlike by `clip.create`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.config import ClipConfig
from jaxclip.models import clip


def random_clip(config: ClipConfig, seed: int = 2) -> clip.Clip:
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        numbers = 0.3 * rng.normal(size=leaf.shape)
        positive = "var" in str(path[-2:])  # of BatchNorm
        return jnp.asarray(np.exp(numbers) if positive else numbers, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, clip.abstract(config, remat="none"))
