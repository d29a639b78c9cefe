"""`SingleTower`: features, every hidden state, files and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip import checkpoint, hardware, parity, reference
from jaxclip.config import TextConfig, TowerConfig, read_config
from jaxclip.models import parameters, single
from tests.support import variants
from tests.support.tolerances import departure, within
from tests.support.variants import SINGLE, inputs, model


def tower(name: str) -> single.SingleTower:
    return parameters.from_flat(variants.flat(SINGLE[name]), single.abstract(SINGLE[name]))


@pytest.mark.parametrize("name", SINGLE)
def test_a_tower_alone_equals_the_reference_in_every_hidden_state(name: str) -> None:
    config, taps = SINGLE[name], {}
    params = checkpoint.nest(variants.flat(config))
    options = parity.reference_options(config.tower, config.activation)
    images, tokens = variants.batch(config)
    if config.vision is None:
        right = reference.text_transformer(tokens, params["text"], **options, taps=taps)
        got = tower(name).encode_text(tokens)
        states = tower(name).hidden_states(tokens)
    else:
        images = images.astype(np.float32)
        right = reference.vision_transformer(images, params["visual"], **options, taps=taps)
        got = tower(name).encode_image(images)
        states = tower(name).hidden_states(images)
    assert departure(got, right) < within("features")
    assert states.shape[0] == config.tower.layers + 1
    for i, stage in enumerate(("stem", "block.0", "block.1", "block.2")):
        assert departure(states[i], taps[stage]) < within("block")
    assert departure(states[-2], taps["block.2"]) > 0.01  # the layer before the last is another


@pytest.mark.parametrize("name", SINGLE)
def test_a_tower_alone_travels_in_a_file(name: str, tmp_path: Path) -> None:
    config, kind = SINGLE[name], "text" if SINGLE[name].vision is None else "image"
    path = tmp_path / "tower.safetensors"
    tower(name).save(path)
    loaded, preprocess = jaxclip.load(path, tower=kind)
    assert isinstance(loaded, single.SingleTower) and loaded.config == config
    assert read_config(config.to_json()) == config
    got, want = parameters.to_flat(loaded), parameters.to_flat(tower(name))
    assert all((got[key] == want[key]).all() for key in want) and got.keys() == want.keys()
    assert (preprocess is None) == (kind == "text")
    arranged = jaxclip.load(path, tower=kind, arrange=True)[0]
    assert parameters.to_flat(hardware.plain(arranged)).keys() == want.keys()
    other = "image" if kind == "text" else "text"
    with pytest.raises(ValueError, match=f"tower: expected {kind}, the only one in that file"):
        jaxclip.load(path)
    with pytest.raises(ValueError, match=f"got {other}; pass tower='{kind}'"):
        jaxclip.load(path, tower=other)


def test_a_text_tower_refuses_pictures() -> None:
    with pytest.raises(ValueError, match="a model with an image tower, got a text tower alone"):
        tower("text").encode_image(variants.batch(SINGLE["text"])[0])
    with pytest.raises(ValueError, match="tower: expected image or text for a model of both"):
        model("mean").hidden_states(inputs("mean")[1])


def test_a_tower_without_projection_is_as_wide_as_its_features() -> None:
    with pytest.raises(ValueError, match="expected none only where the width is embed_dim, 7"):
        TowerConfig(TextConfig(**variants.TEXTS, projection="none"), 7)


def test_stable_diffusion_xl_s_conditioning_is_two_lines() -> None:
    """The layer before the last of both text encoders side by side, and the second's features."""
    first, second = tower("text"), tower("projected text")
    tokens = variants.batch(SINGLE["text"])[1]
    hidden = np.concatenate([t.hidden_states(tokens)[-2] for t in (first, second)], axis=-1)
    assert hidden.shape == (4, 13, 32) and second.encode_text(tokens).shape == (4, 7)
