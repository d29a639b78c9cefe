"""Kernels with a gap after each row give the same numbers, and nobody outside sees the gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.peers import archives
from jaxclip import convert, hardware
from jaxclip.hardware import memory, padded
from jaxclip.hardware.padded import PADDING, CpuNumerics, Padded
from jaxclip.models import clip, parameters, starts
from jaxclip.models.layers import Numerics
from tests.support import foreign
from tests.support.tolerances import departure, within

TOKENS = np.array([[99, 5, 7, 100, 0], [99, 8, 100, 0, 0]], np.int32)
CONFIGS = {"vit": foreign.VIT, "resnet": foreign.RESNET}


@pytest.fixture(params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> convert.Loaded:
    archives.write_torchscript_like(tmp_path / "model.pt", foreign.openai(CONFIGS[request.param]))
    return convert.load(tmp_path / "model.pt")


@pytest.fixture(autouse=True)
def every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tests' small models too."""
    monkeypatch.setattr(padded, "STRIDE", 1)
    monkeypatch.setattr(padded, "LEAST_COLUMNS", 1)


def plain_model(loaded: convert.Loaded) -> clip.Clip:
    return parameters.from_flat(loaded.flat, clip.abstract(loaded.config, remat="none"))


def filled(loaded: convert.Loaded) -> clip.Clip:
    """Arranged while it is a tree of shapes, as `load` does."""
    empty = hardware.for_cpu(clip.abstract(loaded.config, remat="none"))
    return parameters.from_flat(loaded.flat, empty, memory.put)


@jax.jit
def encode(model: Any, images: Any, tokens: Any) -> Any:
    return model.visual(images), model.text(tokens)


def features(model: Any) -> tuple[np.ndarray, np.ndarray]:
    size = model.config.vision.image_size
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    image, text = encode(model, images, TOKENS)
    return np.asarray(image), np.asarray(text)


def is_padded(node: Any) -> bool:
    return isinstance(node, Padded)


def test_features_are_those_of_kernels_without_gaps(loaded: convert.Loaded) -> None:
    apart, close = filled(loaded), plain_model(loaded)
    for with_gaps, without in zip(features(apart), features(close), strict=True):
        assert departure(with_gaps, without) < within("float32 twice")


def spoiled(model: clip.Clip, own: bool) -> clip.Clip:
    """The last column of every kernel, or of what is its own, is no number."""

    def changed(node: Any) -> Any:
        at = -PADDING - 1 if own else -1
        return Padded(node[...].at[..., at].set(np.nan)) if is_padded(node) else node

    return jax.tree.map(changed, model, is_leaf=is_padded)


def test_no_result_depends_on_the_gaps(loaded: convert.Loaded) -> None:
    model = filled(loaded)
    images, texts = features(model)
    for own in (False, True):  # the latter is the negative twin
        for want, got in zip((images, texts), features(spoiled(model, own)), strict=True):
            assert np.array_equal(want, got) is not own


def test_arranging_arrays_is_filling_what_was_arranged(loaded: convert.Loaded) -> None:
    model, other = filled(loaded), hardware.for_cpu(plain_model(loaded))
    assert jax.tree.structure(model) == jax.tree.structure(other)
    assert all(map(np.array_equal, jax.tree.leaves(model), jax.tree.leaves(other)))


def test_arrays_come_back_without_gaps(loaded: convert.Loaded) -> None:
    model = filled(loaded)
    kernels = [n for n in jax.tree.leaves(model, is_leaf=is_padded) if is_padded(n)]
    assert kernels and all(not np.asarray(kernel[...])[..., -PADDING:].any() for kernel in kernels)
    restored = hardware.plain(model)
    assert jax.tree.structure(restored) == jax.tree.structure(plain_model(loaded))
    back, flat = parameters.to_flat(restored), loaded.flat
    assert back.keys() == flat.keys()
    assert all(np.array_equal(back[name], flat[name].astype(np.float32)) for name in flat)
    with pytest.raises(ValueError, match=r"got \(.*hardware.plain\(model\)"):
        parameters.to_flat(model)


def test_arranging_leaves_the_model_as_it_was(loaded: convert.Loaded) -> None:
    model = plain_model(loaded)
    structure = jax.tree.structure(model)
    hardware.for_cpu(model)
    assert jax.tree.structure(model) == structure


def test_a_wrong_shape_is_named_without_the_gap(loaded: convert.Loaded) -> None:
    flat, name = dict(loaded.flat), "text.text_projection"
    rows, columns = flat[name].shape
    flat[name] = np.zeros((rows, columns + PADDING), np.float32)  # as long as with the gap
    with pytest.raises(ValueError, match=rf"{name}.*\({rows}, {columns + PADDING}\)"):
        parameters.from_flat(flat, hardware.for_cpu(clip.abstract(loaded.config)), memory.put)


def test_which_rows_are_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    widths = (64, 256, 512, 600, 768, 1024, 2304, 3072, 3088)
    kernels = {width: starts.Shapes().normal((2, width), 1.0) for width in widths}
    apart = {width for width, kernel in kernels.items() if is_padded(padded.pad(kernel))}
    assert apart == {512, 768, 1024, 2304, 3072}


def test_they_are_float32_s_alone() -> None:
    for dtype, expected in ((jnp.float32, True), (jnp.bfloat16, False), (jnp.float64, False)):
        empty = clip.abstract(foreign.VIT, numerics=Numerics(dtype))
        leaves = jax.tree.leaves(hardware.for_cpu(empty), is_leaf=is_padded)
        assert any(map(is_padded, leaves)) is expected


@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 6), (6,), (2, 6)])
def test_a_row_alone_is_multiplied_as_it_is_beside_others(shape: tuple[int, ...]) -> None:
    """In bfloat16 it is given to the product twice, and once to whoever asked."""
    rng = np.random.default_rng(0)
    x, matrix = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in (shape, (6, 5)))
    expected = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64)
    for dtype in (jnp.bfloat16, jnp.float32):
        product = CpuNumerics(dtype).product(x, matrix)
        assert product.shape == expected.shape
        assert product.dtype == jnp.float32
        assert departure(np.asarray(product), expected) < within("float32 twice")
        twice = "broadcast" in str(jax.make_jaxpr(CpuNumerics(dtype).product)(x, matrix))
        assert twice == (dtype == jnp.bfloat16 and shape != (2, 6))
    assert departure(np.asarray(product[..., ::-1]), expected) > 0.1  # the negative twin
