"""With every knob at its default the doctor's models are the reference; each knob changes them."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.doctor.knobs import Pixels, Words, right_walk, turn
from jaxclip.doctor.network import Network
from jaxclip.doctor.preprocessing import make_pixels, make_tokens
from jaxclip.doctor.probe import TEXTS, make_pictures
from jaxclip.doctor.variants import single_variants
from jaxclip.images.preprocess import Preprocess
from jaxclip.tokenizer import tokenize
from tests.support import tiny

VIT = ClipConfig(VisionConfig(20, 5, 24, 12, tiny.VISION_HEADS), TextConfig(16, 12, 2, 13, 101), 7)
RESNET = ClipConfig(ResNetConfig(96, 16, (1, 2, 1, 1)), TextConfig(16, 1, 1, 13, 101, "cbow"), 7)


def network(config: ClipConfig, seed: int = 0) -> tuple[Network, dict[str, Any]]:
    params = tiny.params(seed, text=config.text.kind)
    if isinstance(config.vision, ResNetConfig):
        params["visual"] = tiny.resnet(seed)
    return Network(checkpoint.flatten(params), config), params


def outputs(config: ClipConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{side: (the network's features, the reference's)}."""
    ours, params = network(config)
    walk = right_walk(config)
    images, tokens = tiny.batch(image_size=config.vision.image_size)
    inputs = {"image": images, "text": tokens}
    found = {side: ours.run(side, x, walk[side], 0).features for side, x in inputs.items()}
    visual, text = params["visual"], params["text"]
    table = np.float32(text["token_embedding"]["embedding"])
    text = {**text, "token_embedding": {"embedding": table}}
    if isinstance(config.vision, ResNetConfig):
        image = reference.modified_resnet(images, visual, heads=config.vision.heads)
        words = reference.continuous_bag_of_words(tokens, text)
    else:
        image = reference.vision_transformer(images, visual, heads=config.vision.heads)
        words = reference.text_transformer(tokens, text, heads=config.text.heads)
    return {"image": (found["image"], image), "text": (found["text"], words)}


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_walk_without_a_fault_is_the_reference(config: ClipConfig) -> None:
    for ours, theirs in outputs(config).values():
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_walk_with_any_fault_of_a_tower_departs(config: ClipConfig, side: str) -> None:
    """The negative twin, for every row of the table."""
    ours, _ = network(config)
    walk = right_walk(config)
    images, tokens = tiny.batch(image_size=config.vision.image_size)
    inputs = images if side == "image" else tokens
    right = ours.run(side, inputs, walk[side], 0).features
    variants = single_variants(config, walk, [side])
    assert len(variants) >= (3 if config is RESNET and side == "text" else 20)
    for variant in variants:
        wrong = ours.run(side, inputs, turn(walk, variant.changes)[side], 0).features
        same = wrong.shape == right.shape
        off = np.linalg.norm(wrong - right) / np.linalg.norm(right) if same else 1.0
        assert not off <= 1e-9, (variant.names, variant.changes)


def test_pixels_without_a_fault_are_the_preprocessing() -> None:
    for picture in make_pictures(32):
        right = Preprocess(32)(Image.fromarray(picture))
        assert np.abs(make_pixels(picture, 32, Pixels()) - right).max() <= 1e-6


def test_pixels_with_any_fault_depart() -> None:
    walk = right_walk(VIT)
    pictures = make_pictures(32)
    for variant in single_variants(VIT, walk, ["pixels"]):
        knobs = turn(walk, variant.changes)["pixels"]
        pairs = [(make_pixels(p, 32, knobs), make_pixels(p, 32, Pixels())) for p in pictures]
        assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3, variant.changes


def test_tokens_without_a_fault_are_the_tokenizer_s() -> None:
    right = tokenize(list(TEXTS), truncate=True)
    assert (make_tokens(TEXTS, 77, Words()) == right).all()
    assert (right[-1] != 0).all(), "the last text is longer than the context"


def test_tokens_with_any_fault_depart() -> None:
    walk = right_walk(VIT)
    right = make_tokens(TEXTS, 77, Words())
    for variant in single_variants(VIT, walk, ["tokens"]):
        wrong = make_tokens(TEXTS, 77, turn(walk, variant.changes)["tokens"])
        assert wrong.shape != right.shape or (wrong != right).any(), variant.changes
