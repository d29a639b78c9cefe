"""Kernels with a gap after each row give the same numbers, and nobody outside sees the gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxclip
from experiments.lib.peers import archives
from jaxclip import convert
from jaxclip.models import clip, layers, parameters
from jaxclip.models.layers import PADDING, Numerics, Padded
from tests.support import foreign
from tests.support.tolerances import departure, within

TOKENS = np.array([[99, 5, 7, 100, 0], [99, 8, 100, 0, 0]], np.int32)
CONFIGS = {"vit": foreign.VIT, "resnet": foreign.RESNET}


@pytest.fixture(params=CONFIGS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    archives.write_torchscript_like(tmp_path / "model.pt", foreign.openai(CONFIGS[request.param]))
    return tmp_path / "model.pt"


@pytest.fixture(autouse=True)
def every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tests' small models too."""
    monkeypatch.setattr(layers, "STRIDE", 1)
    monkeypatch.setattr(layers, "LEAST_COLUMNS", 1)


def features(model: Any) -> tuple[np.ndarray, np.ndarray]:
    size = model.config.vision.image_size
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    return np.asarray(model.encode_image(images)), np.asarray(model.encode_text(TOKENS))


@pytest.mark.parametrize("unroll", [True, False])
def test_features_are_those_of_kernels_without_gaps(file: Path, unroll: bool) -> None:
    apart = jaxclip.load(file, padded=True, unroll=unroll)[0]
    close = jaxclip.load(file, padded=False, unroll=unroll)[0]
    for with_gaps, without in zip(features(apart), features(close), strict=True):
        assert departure(with_gaps, without) < within("float32 twice")


def spoiled(model: clip.Clip, own: bool) -> clip.Clip:
    """The last column of every kernel, or of what is its own, is no number."""

    def changed(node: Any) -> Any:
        at = -PADDING - 1 if own else -1
        return Padded(node[...].at[..., at].set(np.nan)) if isinstance(node, Padded) else node

    return jax.tree.map(changed, model, is_leaf=lambda node: isinstance(node, Padded))


def test_no_result_depends_on_the_gaps(file: Path) -> None:
    model = jaxclip.load(file, padded=True)[0]
    images, texts = features(model)
    for own in (False, True):  # the latter is the negative twin
        changed = jaxclip.hub.load.Model(spoiled(model.module, own))
        for want, got in zip((images, texts), features(changed), strict=True):
            assert np.array_equal(want, got) is not own


@pytest.mark.parametrize("unroll", [True, False])
def test_arrays_come_back_without_gaps(file: Path, unroll: bool) -> None:
    flat = convert.load(file).flat
    model = jaxclip.load(file, padded=True, unroll=unroll)[0].module
    kernels = [n for n in jax.tree.leaves(model, is_leaf=padded) if padded(n)]
    assert kernels and all(not np.asarray(kernel[...])[..., -PADDING:].any() for kernel in kernels)
    back = parameters.to_flat(model)
    assert back.keys() == flat.keys()
    assert all(np.array_equal(back[name], flat[name].astype(np.float32)) for name in flat)


def padded(node: Any) -> bool:
    return isinstance(node, Padded)


def test_a_kernel_that_is_drawn_has_them_too() -> None:
    plain = layers.normal(nnx.Rngs(0), (2, 3), 1.0)
    apart = Numerics(padded=True).kernel(plain)
    assert padded(apart) and np.array_equal(apart[...], np.pad(plain[...], [(0, 0), (0, PADDING)]))
    assert Numerics().kernel(plain) is plain


def test_a_wrong_shape_is_named_without_the_gap(file: Path) -> None:
    flat = dict(convert.load(file).flat)
    config = convert.load(file).config
    name = "text.text_projection"
    rows, columns = flat[name].shape
    flat[name] = np.zeros((rows, columns + PADDING), np.float32)  # as long as with the gap
    with pytest.raises(ValueError, match=rf"{name}.*\({rows}, {columns + PADDING}\)"):
        parameters.from_flat(flat, clip.abstract(config, numerics=Numerics(padded=True)))


def test_which_rows_are_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    numerics = Numerics(padded=True)
    widths = (64, 256, 512, 600, 768, 1024, 2304, 3072, 3088)
    apart = {
        width for width in widths if padded(numerics.kernel(layers.normal(None, (2, width), 1.0)))
    }
    assert apart == {512, 768, 1024, 2304, 3072}


def test_they_are_float32_s_on_a_cpu_unless_said_otherwise(file: Path) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"dtype": jnp.bfloat16}, False),
        ({"padded": False}, False),
    ]
    for options, expected in cases:
        assert jaxclip.load(file, **options)[0].module.text.numerics.padded is expected
