"""The state of a training run as one pytree of arrays, and the way from a model to it and back.

Annotated: chapter 10, "Training, and the similarity matrix".
"""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxclip.models.parameters import split_statistics


class TrainState(NamedTuple):
    """All arrays that a training step takes and returns.

    What is no array, the classes and their configuration, is the `graphdef` beside it.
    """

    params: Any  # what the optimiser changes
    stats: Any  # running statistics of BatchNorm; empty for a Vision Transformer
    opt_state: Any
    step: jax.Array  # updates made so far, int32
    key: jax.Array  # the run's random key, from jax.random.key; it never changes

    @classmethod
    def create(
        cls, model: nnx.Module, optimizer: optax.GradientTransformation, key: jax.Array
    ) -> tuple[nnx.GraphDef, Self]:
        """(graphdef, first state) of a `Clip` or a module with one inside; copies no array."""
        graphdef, params, stats = split_statistics(model)
        opt_state = optimizer.init(params)
        return graphdef, cls(params, stats, opt_state, jnp.zeros((), jnp.int32), key)

    def model(self, graphdef: nnx.GraphDef) -> Any:
        """The model with the state's parameters and statistics."""
        return nnx.merge(graphdef, self.params, self.stats)
