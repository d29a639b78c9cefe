"""Embeddings for the losses, and a loss whose pairs are split over devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxclip.losses import l2_normalize
from jaxclip.training.sharding import data_mesh

N, E = 48, 7


def arguments(n: int = N, scale: float = 2.5, bias: float | None = None) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    embeds = (l2_normalize(jnp.asarray(rng.normal(size=(n, E)))) for _ in range(2))
    return (*embeds, jnp.asarray(scale), *([] if bias is None else [jnp.asarray(bias)]))


def on_devices(
    loss: Callable[..., Any], devices: int, *, check_vma: bool = True
) -> Callable[..., Any]:
    """The loss with its pairs split over devices, differentiated from outside."""

    def spread(images: Any, texts: Any, *scalars: Any) -> Any:
        specs = (P("data"), P("data"), *(P() for _ in scalars))
        mesh = data_mesh(jax.devices()[:devices])
        inner = functools.partial(loss, axis="data")
        mapped = jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return mapped(images, texts, *scalars)

    return spread
