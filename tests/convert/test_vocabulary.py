"""A token id that a text tower has no row for is refused on every path, never clamped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import checkpoint, convert, reference
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.evaluation.classifier_cache import cached_classifier
from jaxclip.evaluation.held_out import HeldOut
from jaxclip.hub import load as hub
from jaxclip.tokenizer import check_vocabulary
from jaxclip.training.sharding import data_mesh
from tests.support import tiny
from tests.support.command import EXAMPLES, fails

TEXT = TextConfig(16, layers=2, heads=2, context_length=13, vocab_size=101)
CONFIG = ClipConfig(VisionConfig(20, 5, 24, 2, 3), TEXT, 7)
IMAGES, TOKENS = tiny.batch(n=4)
PIXELS = IMAGES.astype(np.float32)
KINDS = ("transformer", "cbow")


def params(kind: str) -> dict[str, Any]:
    return tiny.params(vision_layers=2, text_layers=2, text=kind)


def config(kind: str) -> ClipConfig:
    return dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, kind=kind))


def loaded(kind: str = "transformer", **options: Any) -> jaxclip.Clip:
    flat = {k: np.float32(x) for k, x in checkpoint.flatten(params(kind)).items()}
    return hub.load(convert.Loaded(flat, config(kind), {}), **options)[0]


def with_id(number: int, dtype: Any = np.int64) -> np.ndarray:
    tokens = TOKENS.astype(dtype)
    tokens[2, 1] = number
    return tokens


@pytest.mark.parametrize("number", [-1, 101, 49407, 2**32 + 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_and_the_reference_refuse_an_id(kind: str, number: int) -> None:
    model, tokens = loaded(kind), with_id(number)
    says = rf"token id {number}: expected an id from 0 to 100.* 101"
    for call in (
        lambda: model.encode_text(tokens),
        lambda: model(PIXELS, tokens),
        lambda: loaded(kind, jit=False).encode_text(tokens),
        lambda: loaded(kind, tower="text").encode_text(tokens),
        lambda: reference.clip(IMAGES, tokens, params(kind), vision_heads=3, text_heads=2),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_ids_of_the_vocabulary_are_taken_in_every_format() -> None:
    model = loaded()
    expected = np.asarray(model.encode_text(TOKENS))
    for dtype in (np.uint8, np.int16, np.uint32, np.int64):
        assert np.array_equal(model.encode_text(TOKENS.astype(dtype)), expected)
    assert np.array_equal(model.encode_text(jnp.asarray(TOKENS)), expected)
    check_vocabulary(np.zeros((0, 5), np.int32), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_model_answers_and_a_wrong_id_is_no_number(kind: str) -> None:
    model = loaded(kind)
    encode, ask = jax.jit(model.encode_text), jax.jit(model)
    expected = np.asarray(model.encode_text(TOKENS))
    assert np.allclose(encode(TOKENS), expected, atol=1e-5)
    assert np.allclose(ask(PIXELS, TOKENS)[0], model(PIXELS, TOKENS)[0], atol=1e-4)
    padded = np.pad(TOKENS, ((0, 0), (0, 4)))
    assert np.allclose(encode(padded), expected, atol=1e-5)
    padded[1, -1] = 5  # a text that is too long
    for tokens, row in ((with_id(-1), 2), (with_id(101), 2), (padded, 1)):
        broken = np.isnan(np.asarray(encode(tokens))).all(axis=1)
        assert broken.tolist() == [i == row for i in range(len(tokens))]
    shapes = jax.eval_shape(model.encode_text, jax.ShapeDtypeStruct((3, 77), jnp.int32))
    assert shapes.shape == (3, 7)


def test_the_embedded_model_is_traced_with_rows_of_77() -> None:
    model, _ = jaxclip.load("emoji")
    tokens = jaxclip.tokenize(["a cat", "rocket"])
    assert np.allclose(jax.jit(model.encode_text)(tokens), model.encode_text(tokens), atol=1e-4)


def saved(tmp_path: Path) -> str:
    flat = {k: np.float32(x) for k, x in checkpoint.flatten(params("transformer")).items()}
    checkpoint.save(tmp_path / "m.safetensors", flat, CONFIG, {"source": "tiny"})
    return str(tmp_path / "m.safetensors")


def test_text_for_another_vocabulary_is_refused_everywhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = saved(tmp_path)
    ask = ["classify", str(EXAMPLES[0]), "--labels", "cat", "dog", "--model", path]
    says = "expected a vocabulary of 49,408 tokens for CLIP's tokenizer, got 101"
    assert says in fails(capsys, 1, *ask)
    with pytest.raises(ValueError, match=says):
        cached_classifier(loaded(), ["cat"], ["{}"], None)
    texts = HeldOut(data_mesh(jax.devices()[:1]), loaded().config)._texts(loaded())
    with pytest.raises(ValueError, match=says):
        texts(["a cat"])
    assert says in fails(capsys, 1, "evaluate", "--model", path)


def test_training_refuses_a_vocabulary_that_the_captions_do_not_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--out", str(tmp_path / "run"), "--steps", "1", "--model.text.vocab-size", "1000"]
    line = fails(capsys, 2, "train", "emoji", *flags)
    assert "--model.text.vocab-size: expected a model of 49408 tokens" in line
    assert "got 1000" in line
