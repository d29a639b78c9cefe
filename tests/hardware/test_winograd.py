"""Winograd's way gives the convolution's numbers, at odd sizes as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import hardware
from jaxclip.hardware import winograd
from jaxclip.hardware.padded import CpuNumerics
from jaxclip.hardware.winograd import WinogradConvolution
from jaxclip.models import clip
from jaxclip.models.layers import Numerics
from jaxclip.models.starts import Shapes
from tests.support import foreign
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

    for name in ("convolution", "with_neighbours"):
        monkeypatch.setattr(winograd, name, noted(name, getattr(winograd, name)))
    return called


@pytest.mark.parametrize(("side", "way"), [(24, "convolution"), (7, "with_neighbours")])
def test_bfloat16_rounds_what_goes_into_the_products_and_what_comes_out(
    side: int, way: str, ways: list[str]
) -> None:
    made = WinogradConvolution(64, 64, numerics=CpuNumerics(jnp.bfloat16), init=Shapes())
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


def test_a_convolution_takes_it_where_it_pays(ways: list[str]) -> None:
    cases = ((64, 1, 32), (64, 2, 32), (63, 1, 32), (64, 1, 22))  # channels, stride, side
    for dtype, expected in (
        (jnp.float32, ["convolution", "", "", ""]),
        (jnp.bfloat16, ["convolution", "", "", "with_neighbours"]),
    ):
        for (channels, stride, side), way in zip(cases, expected, strict=True):
            ways.clear()
            numerics = CpuNumerics(dtype)
            made = WinogradConvolution(channels, channels, stride, numerics=numerics, init=Shapes())
            made.kernel.set_value(jnp.zeros((3, 3, channels, channels)))
            made(jnp.zeros((1, side, side, channels)))
            assert ways == ([way] if way else [])


def test_a_model_takes_it_in_two_formats() -> None:
    cases = ((jnp.float32, True), (jnp.bfloat16, True), (jnp.float16, False))
    for dtype, expected in cases:
        arranged = hardware.for_cpu(clip.abstract(foreign.RESNET, numerics=Numerics(dtype)))
        for block in (arranged.visual, arranged.visual.layer1[0]):
            assert isinstance(block.conv2, WinogradConvolution) is expected
    assert not isinstance(clip.abstract(foreign.RESNET).visual.conv2, WinogradConvolution)
