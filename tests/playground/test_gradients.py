"""Every operation of the page, and its gradient, against JAX and the project's own layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.proofs.playground_twin import loss_of
from jaxclip.losses import l2_normalize
from jaxclip.models.layers import Numerics, attend, quick_gelu
from tests.support.node import needs_node, run_node
from tests.support.tolerances import departure, within, worst

SCRIPT = Path(__file__).with_name("gradients.mjs")
Case = tuple[dict[str, Any], Callable[..., Any], dict[str, tuple[int, ...]], dict[str, Any]]


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`jaxclip.models.layers.LayerNorm`, as a function."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + bias


def first_attended(qkv: jax.Array) -> jax.Array:
    return attend(qkv, 2, None, Numerics(np.float64))[0]


def class_first(patches: jax.Array, token: jax.Array, positions: jax.Array) -> jax.Array:
    first = jnp.broadcast_to(token, (len(patches), 1, token.size))
    return jnp.concatenate([first, patches], axis=1) + positions


TEXTS = [[0, 2, 5], [0, 1, 2, 2, 5], [0, 5]]
ATTENTION = {"n": 3, "l": 5, "d": 8, "heads": 2}

# name: (operation, the same in JAX, shapes of what it takes, sizes for the page)
CASES: dict[str, tuple[str, Callable[..., Any], dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "linear": (
        "linear",
        lambda x, kernel, bias: x @ kernel + bias,
        {"x": (7, 5), "kernel": (5, 12), "bias": (12,)},
        {"inputs": 5, "outputs": 12},
    ),
    "linear without bias, by odd sizes": (
        "withoutBias",
        lambda x, kernel: x @ kernel,
        {"x": (6, 4), "kernel": (4, 3)},
        {"inputs": 4, "outputs": 3},
    ),
    "linear in plain JavaScript": (
        "linear",
        lambda x, kernel, bias: x @ kernel + bias,
        {"x": (7, 5), "kernel": (5, 12), "bias": (12,)},
        {"inputs": 5, "outputs": 12, "plain": True},
    ),
    "add": ("add", lambda x, z: x + z, {"x": (3, 4), "z": (3, 4)}, {}),
    "layer norm": ("layerNorm", layer_norm, {"x": (5, 8), "scale": (8,), "bias": (8,)}, {}),
    "QuickGELU": ("quickGelu", quick_gelu, {"x": (5, 7)}, {}),
    "attention of all tokens": (
        "attention",
        first_attended,
        {"qkv": (3, 5, 24)},
        {**ATTENTION, "queries": 5},
    ),
    "attention of the class token": (
        "attention",
        lambda qkv: first_attended(qkv)[:, :1],
        {"qkv": (3, 5, 24)},
        {**ATTENTION, "queries": 1},
    ),
    "class token": (
        "withClassToken",
        class_first,
        {"patches": (3, 4, 8), "token": (8,), "positions": (5, 8)},
        {"n": 3},
    ),
    "first tokens": (
        "firstTokens",
        lambda x: x[:, :2],
        {"x": (3, 5, 4)},
        {"n": 3, "l": 5, "d": 4, "rows": 2},
    ),
    "bag of words": (
        "bagOfWords",
        lambda embedding: jnp.stack([embedding[jnp.array(ids)].mean(0) for ids in TEXTS]),
        {"embedding": (6, 4)},
        {"texts": TEXTS, "d": 4},
    ),
    "length one": ("l2Normalize", l2_normalize, {"x": (5, 3)}, {"e": 3}),
}
LOSSES = ("softmax", "oneSided", "sigmoid")


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def case_of(operation: str, arrays: dict[str, Any], sizes: dict[str, Any], upstream: Any) -> Any:
    tensors = {name: np.ravel(array).tolist() for name, array in arrays.items()}
    return {"op": operation, "tensors": tensors, "sizes": sizes, "upstream": upstream.tolist()}


def expected_of(
    function: Callable[..., Any], arrays: dict[str, np.ndarray]
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """(value, upstream gradient, gradients by name), in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in arrays.values()]
        value, pull = jax.vjp(function, *wide)
        upstream = np.cos(np.arange(value.size)) if value.ndim else np.ones(1)
        grads = pull(jnp.asarray(upstream.reshape(value.shape)))
        flat = {name: np.ravel(grad) for name, grad in zip(arrays, grads, strict=True)}
        return np.ravel(value), upstream, flat


@pytest.fixture(scope="module")
def operations() -> dict[str, tuple[Any, Any, Any]]:
    """{name: (what the page computes, value and gradients of JAX)}, from one run of Node."""
    cases, expected = [], {}
    for name, (operation, function, shapes, sizes) in CASES.items():
        arrays = draw(shapes)
        value, upstream, grads = expected_of(function, arrays)
        cases.append(case_of(operation, arrays, sizes, upstream))
        expected[name] = (value, grads)
    got = run_node(SCRIPT, given=cases)
    return {name: (each, *expected[name]) for name, each in zip(CASES, got, strict=True)}


@needs_node
@pytest.mark.parametrize("name", CASES)
def test_operation_and_its_gradient_are_those_of_jax(operations: Any, name: str) -> None:
    got, value, grads = operations[name]
    assert departure(got["value"], value) < within("playground operation")
    assert worst(got["grads"], grads) < within("playground operation")


@needs_node
def test_another_epsilon_of_the_layer_norm_is_noticed() -> None:
    arrays = draw({"x": (5, 8), "scale": (8,), "bias": (8,)})
    value, upstream, grads = expected_of(layer_norm, arrays)
    (got,) = run_node(SCRIPT, given=[case_of("layerNorm", arrays, {"epsilon": 1e-6}, upstream)])
    assert departure(got["value"], value) > within("playground operation")
    assert worst(got["grads"], grads) > within("playground operation")


def unit_rows(n: int, e: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(n, e)) for _ in range(2)]
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in rows]


@needs_node
@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_its_gradients_are_the_projects(kind: str) -> None:
    images, texts = unit_rows(6, 5)
    arrays = {"images": images, "texts": texts, "scale": np.float32(2.0)}
    if kind == "sigmoid":
        arrays["bias"] = np.float32(-3.0)
    loss = loss_of({"loss": kind, "temperature": "learned"})
    value, upstream, grads = expected_of(loss, arrays)
    others = [other for other in LOSSES if other != kind]
    cases = [case_of(each, arrays, {"n": 6, "e": 5}, upstream) for each in [kind, *others]]
    got, *wrong = run_node(SCRIPT, given=cases)
    assert departure(got["value"], value) < within("playground operation")
    assert worst(got["grads"], grads) < within("playground operation")
    for each in wrong:
        assert departure(each["value"], value) > 0.01
