"""Gradient caching: the exact gradient of a batch whose activations do not fit (Gao et al. 2021,
arXiv 2101.06983).

The loss needs the embeddings of all pairs, but a tower needs only its own picture or text. So the
batch goes through twice, a few pairs at a time: first forward only, for the embeddings; then the
loss is differentiated with respect to these; then every part goes forward again and back, with its
share of that gradient. Nothing is approximated, unlike in the mean over the losses of parts.

BatchNorm is the one thing that looks across a batch. Here each part is normalised by its own
statistics, in both passes the same, so the gradient is that of a model which sees the batch in
these parts; the new running statistics are the mean over the parts of what each would make of the
old. Towers without BatchNorm give the gradient of the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip.losses import contrastive_loss
from jaxclip.models.clip import Clip
from jaxclip.models.parameters import Statistics, params_only, running_statistics, with_statistics
from jaxclip.training.step import Loss, Metrics, spread

Array = jax.Array


def _deal(x: Array, parts: int) -> Array:
    """[n, ...] -> [parts, n / parts, ...]; part k has the rows k, k + parts, k + 2 parts, ...

    Dealt like cards, so that rows which are spread over devices stay on their devices.
    """
    if x.shape[0] % parts:
        raise ValueError(f"{parts} parts came, which do not divide a batch of {x.shape[0]}")
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)


def _collect(x: Array) -> Array:
    """The inverse of `_deal`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def gradients(
    model: Clip,
    images: Array,
    tokens: Array,
    *,
    parts: int,
    loss: Loss = contrastive_loss,
    axis: str | None = None,
) -> tuple[Clip, Metrics, Statistics]:
    """What `step.gradients` gives, with the activations of n / parts pairs at a time.

    Args:
      model: the model.
      images: [n, h, w, c].
      tokens: [n, l].
      parts: how many; a divisor of n (under `shard_map` and `pmap`, of one device's pairs).
      loss: over the embeddings of the batch, as for `step.gradients`.
      axis: the devices inside `shard_map` and `pmap`.
    """
    old = running_statistics(model)
    parameters = params_only(model)
    dealt = _deal(images, parts), _deal(tokens, parts)

    def embed(parameters: Clip, part: tuple[Array, Array]) -> Any:
        whole = with_statistics(parameters, old)
        I_e, T_e, statistics = whole.embed(*part, train=True, axis=axis)
        return (I_e, T_e), statistics

    # first pass: embeddings [parts, n / parts, e]
    embeds, seen = jax.lax.map(lambda part: embed(parameters, part), dealt)
    I_e, T_e = (_collect(x) for x in embeds)
    numbers = [number[...] for number in parameters.temperature()]
    differentiated = jax.value_and_grad(loss, argnums=tuple(range(2 + len(numbers))))
    value, (d_I, d_T, *d_numbers) = differentiated(I_e, T_e, *numbers)

    # second pass: each part's share of the gradient
    def add(total: Clip, part: Any) -> tuple[Clip, None]:
        inputs, d_embeds = part
        _, backward, _ = jax.vjp(lambda p: embed(p, inputs), parameters, has_aux=True)
        return jax.tree.map(jnp.add, total, backward(d_embeds)[0]), None

    nothing = jax.tree.map(jnp.zeros_like, parameters)
    grads, _ = jax.lax.scan(add, nothing, (dealt, (_deal(d_I, parts), _deal(d_T, parts))))
    for number, d_number in zip(grads.temperature(), d_numbers, strict=True):
        number[...] += d_number
    grads = grads if axis is None else jax.lax.pmean(grads, axis)
    metrics = {"image_spread": spread(I_e, axis), "text_spread": spread(T_e, axis)}
    new = {name: values.mean(0) for name, values in seen.items()}
    return grads, {"loss": value, **metrics, "grad_norm": optax.tree.norm(grads)}, new
