"""Winograd's way gives the convolution's numbers, at odd sizes as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import resnet, winograd
from jaxclip.models.layers import Numerics
from jaxclip.models.resnet import Convolution
from tests.support.tolerances import departure, within

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
    assert departure(np.asarray(winograd.convolution(x, kernel)), expected) < within("winograd")
    turned = winograd.convolution(x, kernel[::-1])  # the negative twin
    assert departure(np.asarray(turned), expected) > 0.1


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a convolution has called instead of XLA's, by name."""
    called: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            called.append(name)
            return function(*arguments)

        return wrapped

    for module, name in ((winograd, "convolution"), (resnet, "with_neighbours")):
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    return called


@pytest.mark.parametrize(("side", "way"), [(24, "convolution"), (7, "with_neighbours")])
def test_bfloat16_rounds_what_goes_into_the_products_and_what_comes_out(
    side: int, way: str, ways: list[str]
) -> None:
    made = Convolution(64, 64, numerics=Numerics(jnp.bfloat16, winograd=True), rngs=None)
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 64, 64)), jnp.bfloat16)
    x = jnp.asarray(RNG.normal(size=(1, side, side, 64)), jnp.bfloat16)
    expected = plain(np.asarray(x), np.asarray(kernel, np.float64))
    made.kernel.set_value(kernel)
    y = made(x)
    assert ways == [way]
    assert y.dtype == jnp.bfloat16
    assert departure(np.asarray(y, np.float64), expected) < within("winograd bfloat16")
    made.kernel.set_value(kernel[:, ::-1])  # the negative twin
    assert departure(np.asarray(made(x), np.float64), expected) > 0.1


def test_a_convolution_takes_it_where_it_pays_and_asked_for(ways: list[str]) -> None:
    cases = ((64, 1, 32), (64, 2, 32), (63, 1, 32), (64, 1, 22))  # channels, stride, side
    for dtype, expected in (
        (jnp.float32, ["convolution", "", "", ""]),
        (jnp.bfloat16, ["convolution", "", "", "with_neighbours"]),
    ):
        for asked in (False, True):
            for (channels, stride, side), way in zip(cases, expected, strict=True):
                ways.clear()
                numerics = Numerics(dtype, winograd=asked)
                made = Convolution(channels, channels, stride, numerics=numerics, rngs=None)
                made.kernel.set_value(jnp.zeros((3, 3, channels, channels)))
                made(jnp.zeros((1, side, side, channels)))
                assert ways == ([way] if asked and way else [])
