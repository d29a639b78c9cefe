"""Evaluation while training: the same scores on any mesh, however the model is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.data.crops import random_crop
from jaxclip.data.labelled import open_labelled
from jaxclip.data.pairs import open_pairs
from jaxclip.data.spec import parse_spec
from jaxclip.evaluation.held_out import HeldOut
from jaxclip.images.open import decode_image
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip
from jaxclip.reference import l2_normalize
from jaxclip.tokenizer import tokenize
from jaxclip.training.sharding import data_mesh, shardings
from tests.support.pictures import deep, encoded, png

pytestmark = pytest.mark.usefixtures("quick_compiling")
CONFIG = ClipConfig(VisionConfig(16, 8, 16, 2, 2), TextConfig(16, 2, 2, context_length=16), 8)
NAMES = ("ant", "bee", "old cow")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, one picture broken, and the same pictures with two captions each."""
    root = tmp_path_factory.mktemp("held")
    for kind in ("classes", "captions"):
        for i in range(14):
            below = root / kind / (NAMES[i % 3].replace(" ", "_") if kind == "classes" else "all")
            below.mkdir(parents=True, exist_ok=True)
            (below / f"{i:02}.png").write_bytes(png(i, 24, 20) if i != 7 else b"broken")
            if kind == "captions":
                (below / f"{i:02}.txt").write_text(f"number {i}\nthe {i}. picture")
    return root


def held_out(folders: Path, devices: int, fsdp: int, tensor: int) -> dict[str, float]:
    mesh = data_mesh(jax.devices()[:devices], fsdp=fsdp, tensor=tensor)
    model = clip.create(CONFIG, placement=shardings(clip.abstract(CONFIG), mesh))
    asked = HeldOut(
        mesh,
        CONFIG,
        labelled=open_labelled(parse_spec(str(folders / "classes"))),
        templates=("a {}.", "one more {}."),
        pairs=open_pairs(parse_spec(str(folders / "captions"))),
    )
    return asked(model)


def by_hand(folders: Path) -> dict[str, float]:
    """Top-1, and R@1 and R@5 of text to image, without a loop over blocks."""
    model, pixels = clip.create(CONFIG), Preprocess(16)
    from PIL import Image

    there = [i for i in range(14) if i != 7]
    images = np.stack(
        [pixels(Image.open(folders / "captions" / "all" / f"{i:02}.png")) for i in there]
    )
    I_e = l2_normalize(np.asarray(model.encode_image(images)))

    def embeds(texts: list[str]) -> np.ndarray:
        return l2_normalize(np.asarray(model.encode_text(tokenize(texts, 16))))

    T_e = l2_normalize(
        (embeds([f"a {n}." for n in NAMES]) + embeds([f"one more {n}." for n in NAMES])) / 2
    )
    said = (I_e @ T_e.T).argmax(axis=1)
    texts = embeds([text for i in there for text in (f"number {i}", f"the {i}. picture")])
    order = np.argsort(-texts @ I_e.T, axis=1)  # [26, 13]
    own = np.repeat(np.arange(13), 2)[:, None]
    return {
        "top1": float(np.mean(said == np.array(there) % 3)),
        "text_to_image_r1": float((order[:, :1] == own).any(axis=1).mean()),
        "text_to_image_r5": float((order[:, :5] == own).any(axis=1).mean()),
    }


def test_the_scores_are_those_by_hand_and_the_broken_picture_does_not_count(folders: Path) -> None:
    scores, expected = held_out(folders, 1, 1, 1), by_hand(folders)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value), name
    assert 0 < scores["text_to_image_r5"] < 1  # neither nothing nor everything is right
    assert scores["top1"] * 13 == pytest.approx(round(scores["top1"] * 13))


def test_pictures_are_those_of_training() -> None:
    """A 16-bit ramp: white all over by the policy `official`."""
    content = encoded(deep("I;16"), "PNG")
    config = replace(CONFIG, vision=replace(CONFIG.vision, image_size=256))
    seen = HeldOut(data_mesh(jax.devices()[:1]), config).preprocess(decode_image(content))
    trained = random_crop(content, 256, np.random.default_rng(0))
    np.testing.assert_array_equal(Preprocess(256).denormalise(seen), trained)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
def test_they_are_the_same_on_a_mesh_that_cuts_the_model(folders: Path) -> None:
    assert held_out(folders, 8, 2, 2) == pytest.approx(held_out(folders, 1, 1, 1))
