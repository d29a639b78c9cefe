"""A tiny model of open_clip whose pictures are not square, with what open_clip said: no torch.

The recipe is tests/golden/make_open_clip_golden.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import convert, parity
from jaxclip.images.preprocess import Preprocess
from tests.golden.open_clip_tall import FOLDER, HOW, RESULTS, SIZE, make_pictures
from tests.support.tolerances import departure, within

STAGES = ("image_features", "text_features", "logits")
LOADED = convert.load(FOLDER)


def said() -> dict[str, np.ndarray]:
    with np.load(RESULTS) as kept:
        return dict(kept)


def departures(loaded: convert.Loaded, turn: bool = False) -> dict[str, float]:
    """How far each stage is from open_clip's, in parts of its largest value."""
    expected = said()
    pixels = expected["pixels"].swapaxes(1, 2) if turn else expected["pixels"]
    model, _ = jaxclip.load(loaded, precision="highest")
    got = model.encode_image(pixels), model.encode_text(expected["tokens"])
    stages = dict(zip(STAGES, (*got, model(pixels, expected["tokens"])[0]), strict=True))
    return {name: departure(np.asarray(stages[name]), expected[name]) for name in STAGES}


def test_features_and_logits_are_open_clip_s() -> None:
    assert LOADED.config.vision is not None and LOADED.config.vision.grid == (5, 3)
    far = departures(LOADED)
    assert max(far.values()) < within("golden"), far


def test_so_are_those_of_the_reference() -> None:
    expected = said()
    rungs = parity.reference_rungs(
        LOADED.flat, LOADED.config, expected["pixels"], expected["tokens"]
    )
    names = {"image.features": "image_features", "text.features": "text_features"}
    for rung, name in (names | {"logits": "logits"}).items():
        assert departure(rungs[rung], expected[name]) < within("golden, float64")


def test_height_and_width_exchanged_are_noticed() -> None:
    """As many patches, so that every tensor fits."""
    vision = dataclasses.replace(LOADED.config.vision, image_size=SIZE[::-1])
    wrong = LOADED._replace(config=dataclasses.replace(LOADED.config, vision=vision))
    far = departures(wrong, turn=True)
    assert far["image_features"] > 100 * within("golden") > far["text_features"]


def test_positions_by_column_are_noticed() -> None:
    name = "visual.positional_embedding"
    table = LOADED.flat[name]
    grid = table[1:].reshape(5, 3, -1).swapaxes(0, 1).reshape(15, -1)
    wrong = LOADED._replace(flat={**LOADED.flat, name: np.concatenate([table[:1], grid])})
    assert departures(wrong)["image_features"] > 100 * within("golden")


def test_the_way_back_is_equal_to_the_bit(tmp_path: Path) -> None:
    convert.convert(FOLDER, tmp_path / "ours.safetensors")
    target = tmp_path / "back" / "open_clip_model.safetensors"
    convert.convert(tmp_path / "ours.safetensors", target, "open_clip")
    before, after = convert.read(FOLDER), convert.read(target)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert {x.dtype for x in after.values()} == {np.dtype(np.float16)}
    again = convert.load(target)
    assert again.config == LOADED.config
    config = (target.parent / "open_clip_config.json").read_text()
    assert '"image_size": [\n        30,\n        18\n      ]' in config


@pytest.mark.parametrize("resize", HOW)
@pytest.mark.parametrize("i", [0, 1])
def test_pixels_are_open_clip_s(resize: str, i: int) -> None:
    preprocess = Preprocess(SIZE, **vars(HOW[resize]))
    image, expected = make_pictures()[i], said()[f"{resize} {i}"]
    np.testing.assert_array_equal(preprocess.denormalise(preprocess(image)), expected)
    for other in HOW.keys() - {resize}:
        wrong = Preprocess(SIZE, **vars(HOW[other]))
        assert not np.array_equal(wrong.denormalise(wrong(image)), expected)


def test_it_differentiates() -> None:
    expected = said()
    model, _ = jaxclip.load(FOLDER)

    def score(pixels: Any) -> Any:
        return model(pixels, expected["tokens"])[0].sum()

    gradient = np.asarray(jax.grad(score)(expected["pixels"]))
    assert gradient.shape == (2, *SIZE, 3) and np.abs(gradient).min((0, 1, 2)).all()
