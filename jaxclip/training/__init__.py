"""Training: the paper's optimiser, one step in its several forms, and the loop around it.

A loop of one's own, with any loss and any optimiser, takes `TrainState` and `train_step`. Here the
image tower is locked, and the text tower learns to fit it (LiT, Zhai et al. 2021):

>>> import functools, jax, jaxclip, numpy as np, optax
>>> from flax import nnx
>>> from jaxclip.losses import contrastive_loss
>>> from jaxclip.training import TrainState, train_step
>>> model, preprocess = jaxclip.load("emoji")
>>> optimizer = optax.adam(1e-3)
>>> graphdef, state = TrainState.create(model, optimizer, jax.random.key(0))
>>> def loss_fn(params, stats, batch, key):
...     model = nnx.merge(graphdef, params, stats)
...     I_e, T_e = model.embed(batch["image"], batch["tokens"])  # BatchNorm as in inference
...     loss = contrastive_loss(jax.lax.stop_gradient(I_e), T_e, model.logit_scale[...])
...     return loss, ({}, stats)
>>> step = jax.jit(functools.partial(train_step, loss_fn=loss_fn, optimizer=optimizer))
>>> size = preprocess.size
>>> batch = {
...     "image": np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32),
...     "tokens": jaxclip.tokenize(["a cat", "a rocket", "a bicycle", "an apple"]),
... }
>>> losses = []
>>> for _ in range(3):
...     key = jax.random.fold_in(state.key, state.step)
...     state, metrics = step(state, batch, key)
...     losses.append(float(metrics["loss"]))
>>> losses[2] < losses[0]
True
>>> model = state.model(graphdef)  # to encode with, or to save
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxclip.training.recipe import Recipe as Recipe
    from jaxclip.training.recipe import presets as presets
    from jaxclip.training.state import TrainState as TrainState
    from jaxclip.training.step import clip_loss_fn as clip_loss_fn
    from jaxclip.training.step import train_step as train_step

__all__ = ["Recipe", "TrainState", "clip_loss_fn", "presets", "train_step"]

# resolved when they are first used: importing the recipes imports no jax
_HOMES = {
    "Recipe": "recipe",
    "TrainState": "state",
    "clip_loss_fn": "step",
    "presets": "recipe",
    "train_step": "step",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"jaxclip.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxclip.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
