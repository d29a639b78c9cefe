"""The ladder names the first stage that departs, and holds where there is nothing to find."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import checkpoint, parity
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.models import clip
from tests import tiny

TEXT = TextConfig(16, layers=12, heads=2, context_length=13, vocab_size=101)
VIT = ClipConfig(VisionConfig(20, 5, 24, 12, 3), TEXT, 7)
BAG = dataclasses.replace(VIT, text=dataclasses.replace(TEXT, kind="cbow"))
RESNET = ClipConfig(ResNetConfig(96, 16, (1, 2, 1, 1)), TEXT, 7)
CASES = {
    "vit": (VIT, tiny.params(), 20),
    "bag of words": (BAG, tiny.params(text="cbow"), 20),
    "resnet": (RESNET, {**tiny.params(), "visual": tiny.resnet()}, 96),
}


def ladders(case: str) -> tuple[parity.Rungs, parity.Rungs, ClipConfig]:
    """(the Flax model's rungs, the reference's, the config) of a tiny random model."""
    config, params, size = CASES[case]
    flat = checkpoint.flatten(params)
    images, tokens = tiny.batch(image_size=size)
    images = images.astype(np.float32)
    model = clip.from_flat(flat, clip.abstract(config))
    got = parity.model_rungs(model, jnp.asarray(images), tokens)
    single = {name: np.float32(value) for name, value in flat.items()}
    return got, parity.reference_rungs(single, config, images, tokens), config


@pytest.mark.parametrize("case", CASES)
def test_every_rung_of_a_faithful_model_holds(case: str) -> None:
    got, expected, config = ladders(case)
    rungs = parity.compare(got, expected, parity.bound(config))
    assert parity.first_departure(rungs) is None
    names = [rung.name for rung in rungs]
    assert names[:2] == ["tokens", "pixels"] and names[-1] == "logits"
    # no stage that nobody judges; `text.pooled` is a row of `text.last`
    assert set(got) - {"text.pooled"} <= set(expected)
    stages = {"vit": "image.block.11", "bag of words": "text.pooled", "resnet": "image.layer4"}
    assert stages[case] in names and "text.features" in names and "image.stem" in names


def test_the_first_rung_that_departs_is_named() -> None:
    config, params, size = CASES["vit"]
    flat = dict(checkpoint.flatten(params))
    images, tokens = tiny.batch(image_size=size)
    images = images.astype(np.float32)
    bias = "visual.transformer.resblocks.7.mlp.c_proj.bias"
    spoilt = {**flat, bias: flat[bias] + 0.01}
    got = parity.model_rungs(clip.from_flat(spoilt, clip.abstract(config)), images, tokens)
    expected = parity.reference_rungs(flat, config, images, tokens)
    first = parity.first_departure(parity.compare(got, expected, parity.bound(config)))
    assert first is not None and first.name == "image.block.7"


def test_another_activation_departs_in_the_first_block() -> None:
    config, params, size = CASES["vit"]
    flat = checkpoint.flatten(params)
    images, tokens = tiny.batch(image_size=size)
    other = dataclasses.replace(config, activation="gelu")
    got = parity.model_rungs(
        clip.from_flat(flat, clip.abstract(other)), images.astype(np.float32), tokens
    )
    expected = parity.reference_rungs(flat, config, images, tokens)
    first = parity.first_departure(parity.compare(got, expected, parity.bound(config)))
    assert first is not None and first.name == "image.block.0"


def test_tokens_must_be_equal_and_shapes_too() -> None:
    one = {"tokens": np.array([[1, 2]]), "logits": np.ones((1, 1))}
    other = {**one, "tokens": np.array([[1, 3]])}
    first = parity.first_departure(parity.compare(one, other, 0.9))
    assert first is not None and first.name == "tokens"
    with pytest.raises(ValueError, match=r"logits: shape \(1, 1\) came"):
        parity.compare(one, {"logits": np.ones((2, 1))}, 1.0)
    with pytest.raises(ValueError, match="share no rung"):
        parity.compare(one, {"elsewhere": np.ones(1)}, 1.0)


def test_what_is_not_finite_departs() -> None:
    got = {"logits": np.array([np.nan])}
    assert parity.first_departure(parity.compare(got, {"logits": np.ones(1)}, 1.0)) is not None


def test_a_recorded_ladder_comes_back(tmp_path: Path) -> None:
    rungs: dict[str, Any] = {"tokens": np.eye(2, dtype=np.int32), "pixels": np.ones((1, 2, 2, 3))}
    path = tmp_path / "ladder.safetensors"
    parity.record(path, rungs, {"model": "tiny"})
    came, notes = parity.recorded(path)
    assert notes == {"model": "tiny"} and came.keys() == rungs.keys()
    assert all(np.array_equal(came[name], rungs[name]) for name in rungs)
    parity.record(path, {"logits": np.ones(1)}, {})
    with pytest.raises(ValueError, match="no pixels and tokens"):
        parity.recorded(path)
    checkpoint.save_arrays(path, rungs, {"format": "other"})
    with pytest.raises(ValueError, match="format 'other' came"):
        parity.recorded(path)


@pytest.mark.parametrize("known", parity.PUBLISHED, ids=lambda known: known.source.split()[0])
def test_published_logits_are_found_and_told_from_others(known: parity.Published) -> None:
    model, logits = next(iter(known.logits.items()))
    order = [2, 0, 1]
    texts = [known.texts[i] for i in order]
    ours = np.array([logits[i] for i in order])
    near = parity.published_rung(model, known.picture_sha256, texts, ours + 0.3 * known.tolerance)
    assert near is not None and near.holds
    far = parity.published_rung(model, known.picture_sha256, texts, ours + 3 * known.tolerance)
    assert far is not None and not far.holds
    assert parity.published_rung(model, "0" * 64, texts, ours) is None
    assert parity.published_rung(model, known.picture_sha256, ["a"], ours) is None
