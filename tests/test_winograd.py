"""Winograd's way gives the convolution's numbers, at odd sizes as well."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import winograd
from jaxclip.models.layers import Numerics
from jaxclip.models.resnet import Convolution
from tests.tolerances import TOLERANCES, departure

LIMIT = TOLERANCES["winograd"][0]
RNG = np.random.default_rng(0)


def plain(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The sum as it is written, over nine shifted pictures, in float64."""
    _, h, w, _ = x.shape
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, a : a + h, b : b + w] @ kernel[a, b] for a in range(3) for b in range(3)]
    return sum(shifted[1:], shifted[0])


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6)])
def test_it_is_the_convolution(size: tuple[int, int]) -> None:
    x = RNG.normal(size=(2, *size, 5)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3, 5, 4)).astype(np.float32)
    expected = plain(x, kernel.astype(np.float64))
    assert departure(np.asarray(winograd.convolution(x, kernel)), expected) < LIMIT
    turned = winograd.convolution(x, kernel[::-1])  # the negative twin
    assert departure(np.asarray(turned), expected) > 0.1


def test_a_convolution_takes_it_where_it_pays_and_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[tuple[int, ...]] = []

    def told(x: jax.Array, kernel: jax.Array, dot: object) -> jax.Array:
        taken.append(x.shape)
        return x

    monkeypatch.setattr(winograd, "convolution", told)
    for asked in (False, True):
        for channels, stride, side in ((64, 1, 32), (64, 2, 32), (63, 1, 32), (64, 1, 22)):
            numerics = Numerics(winograd=asked)
            made = Convolution(channels, channels, stride, numerics=numerics, rngs=None)
            made.kernel.set_value(jnp.zeros((3, 3, channels, channels)))
            made(jnp.zeros((1, side, side, channels)))
    assert taken == [(1, 32, 32, 64)]
