"""One definition of logits and probabilities: library, command line and reference agree."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import checkpoint, cli, reference
from jaxclip.models import clip, parameters
from tests.support import planted, tiny
from tests.support.command import EXAMPLES, LABELS

BIAS = -10.0
BIASED = dataclasses.replace(planted.CONFIG, logit_bias=True)
COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model with SigLIP's bias, and a picture beside it."""
    folder = tmp_path_factory.mktemp("biased")
    flat, _, _ = checkpoint.load(planted.write(folder / "plain.safetensors"))
    flat |= {"logit_bias": np.float32(BIAS)}
    checkpoint.save(folder / "model.safetensors", flat, BIASED, {})
    (folder / "red.png").write_bytes(planted.png("red"))
    return folder


def classified(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str, *flags: str
) -> dict[str, Any]:
    arguments = ["classify", str(folder / "red.png"), "--labels", *COLOURS, "--json"]
    assert cli.main([*arguments, "--model", str(folder / model), *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_classify_says_what_the_model_says(
    capsys: pytest.CaptureFixture[str], biased: Path
) -> None:
    model, preprocess = jaxclip.load(biased / "model.safetensors")
    pixels = preprocess.safe(Image.open(biased / "red.png"))[None]
    expected = np.asarray(model(pixels, jaxclip.tokenize(COLOURS, 13))[0])[0]
    record = classified(capsys, biased, "model.safetensors")
    said = {entry["label"]: entry for entry in record["labels"]}
    for label, logit in zip(COLOURS, expected, strict=True):
        assert said[label]["logit"] == pytest.approx(logit, abs=1e-4)
        assert said[label]["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-3)
    assert record["probabilities"] == "sigmoid"
    assert sum(entry["probability"] for entry in record["labels"]) < 0.9  # nothing adds up to 1


def test_a_bias_moves_every_logit_and_is_named_in_the_table(
    capsys: pytest.CaptureFixture[str], biased: Path
) -> None:
    with_bias = classified(capsys, biased, "model.safetensors")["labels"]
    plain = classified(capsys, biased, "plain.safetensors")
    for a, b in zip(with_bias, plain["labels"], strict=True):
        assert a["label"] == b["label"] and a["logit"] - b["logit"] == pytest.approx(BIAS, abs=1e-4)
    assert plain["probabilities"] == "softmax"
    assert sum(entry["probability"] for entry in plain["labels"]) == pytest.approx(1)
    ask = ["classify", str(biased / "red.png"), "--labels", *COLOURS, "--model"]
    assert cli.main([*ask, str(biased / "model.safetensors")]) == 0
    assert "each label on its own" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*ask, str(biased / "plain.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert "on its own" not in out and "embedded" not in err


@pytest.mark.parametrize("bias", [None, -3.5])
def test_model_and_reference_have_one_definition(bias: float | None) -> None:
    params = tiny.params(vision_layers=2, text_layers=2)
    config = dataclasses.replace(
        planted.CONFIG, text=dataclasses.replace(planted.CONFIG.text, kind="transformer")
    )
    text = dataclasses.replace(config.text, layers=2, heads=2, width=16, vocab_size=101)
    config = dataclasses.replace(config, text=text, embed_dim=7, logit_bias=bias is not None)
    if bias is not None:
        params["logit_bias"] = np.array(bias)
    images, tokens = tiny.batch()
    model = parameters.from_flat(checkpoint.flatten(params), clip.abstract(config, remat="none"))
    pixels = images.astype(np.float32)
    I_e, T_e = model.embed(pixels, tokens)
    expected = reference.clip(images, tokens, params, vision_heads=3, text_heads=2)[0]
    for logits in (model.logits(I_e, T_e), model(pixels, tokens)[0]):
        assert np.abs(np.asarray(logits) - expected).max() < 1e-4
    alone = 1 / (1 + np.exp(-expected))
    odds = np.exp(expected - expected.max(axis=1, keepdims=True))
    together = odds / odds.sum(axis=1, keepdims=True)
    right, wrong = (together, alone) if bias is None else (alone, together)
    assert np.abs(np.asarray(model.probabilities(expected)) - right).max() < 1e-5
    assert np.abs(np.asarray(model.probabilities(expected)) - wrong).max() > 0.05
    with pytest.raises(ValueError, match=r"expected embeddings \[n, 7\]"):
        model.logits(np.ones((2, 6)), T_e)


def test_one_tower_is_enough_for_logits() -> None:
    whole, preprocess = jaxclip.load("emoji")
    image, _ = jaxclip.load("emoji", tower="image")
    text, _ = jaxclip.load("emoji", tower="text")
    pixels = np.stack([preprocess.safe(Image.open(path)) for path in EXAMPLES[:2]])
    tokens = jaxclip.tokenize(LABELS)
    embeds = [
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (np.asarray(image.encode_image(pixels)), np.asarray(text.encode_text(tokens)))
    ]
    expected = np.asarray(whole(pixels, tokens)[0])
    for model in (image, text):
        assert np.allclose(model.logits(*embeds), expected, atol=1e-3)
        with pytest.raises(ValueError, match="without its"):
            model(pixels, tokens)


# The embedded model -------------------------------------------------------------------------------


def test_the_embedded_model_says_once_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pictures = [str(path) for path in EXAMPLES[:2]]
    out = str(tmp_path / "e.npz")
    for arguments in (
        ["classify", *pictures, "--labels", *LABELS],
        ["classify", *pictures, "--labels", *LABELS, "--model", "emoji", "--json"],
        ["embed", *pictures, "--out", out],
    ):
        assert cli.main(arguments) == 0
        said = capsys.readouterr()
        notes = [line for line in said.err.splitlines() if "no photographs" in line]
        assert len(notes) == 1 and "--model ViT-B/32" in notes[0]
        assert "photograph" not in said.out


@pytest.mark.parametrize("factor", [0.0, 1e38])
def test_features_without_a_direction_are_refused(
    capsys: pytest.CaptureFixture[str], biased: Path, factor: float
) -> None:
    """Zero features gave NaN for every label, those too large a cosine of 0, and exit code 0."""
    flat, config, _ = checkpoint.load(biased / "plain.safetensors")
    proj = np.clip(flat["visual.proj"].astype(np.float64) * factor, -3e38, 3e38)
    path = biased / f"{factor}.safetensors"
    checkpoint.save(path, flat | {"visual.proj": proj.astype(np.float32)}, config, {})
    asked = [str(biased / "red.png"), "--model", str(path)]
    out = biased / f"{factor}.npz"
    for command in (
        ["classify", *asked, "--labels", *COLOURS],
        ["embed", *asked, "--out", str(out)],
    ):
        capsys.readouterr()
        assert cli.main(command) == 1
        said, told = capsys.readouterr()
        assert said == "" and "zero, too large or no numbers" in told
    assert not out.exists()
