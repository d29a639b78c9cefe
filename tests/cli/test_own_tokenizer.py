"""Commands on models that bring a tokenizer of their own, or towers that are not as released."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import cli
from jaxclip.cli import run
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.convert.layouts import vocabulary
from jaxclip.models import clip
from jaxclip.training.sharding import data_mesh
from tests.support import variants
from tests.support.command import fails
from tests.support.pictures import png
from tests.support.tokenizers import write_unigram

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs")
TEXT = "a photo of a cat"


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    """A model file with SigLIP's kind of tokenizer beside it."""
    size = write_unigram(tmp_path / "words")
    plain = TextConfig(16, 1, 2, context_length=16, vocab_size=size, pooling="last")
    own = vocabulary.of_folder(tmp_path / "words", plain, None, siglip=True)
    text = dataclasses.replace(plain, tokenizer=own)
    path = tmp_path / "model.safetensors"
    clip.create(ClipConfig(VisionConfig(16, 8, 16, 1, 2), text, 8)).save(path)
    return path


def says(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_tokenize_uses_the_models_own_tokenizer(
    siglip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = jaxclip.load(siglip)
    row = model.tokenize([TEXT])[0].tolist()
    shown = json.loads(says(capsys, "tokenize", TEXT, "--model", siglip, "--show", "--json"))
    assert shown["ids"] == row
    end = shown["end"]
    assert shown["pieces"][end] == "</s>" and row[end] == 1 and len(shown["pieces"]) == end + 1
    record = json.loads(says(capsys, "tokenize", TEXT, "--model", siglip, "--json"))
    assert record["ids"] == row[:end] and "".join(record["pieces"]).replace("▁", " ")[1:] == TEXT
    clips = json.loads(says(capsys, "tokenize", TEXT, "--json"))
    assert clips["ids"] != record["ids"]
    assert f"{end + 1} to 15" in says(capsys, "tokenize", TEXT, "--model", siglip, "--show")


def test_tokenize_refuses_a_tower_without_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxclip import checkpoint

    path = tmp_path / "pictures.safetensors"
    config = variants.SINGLE["pictures"]
    flat = {name: x.astype(np.float32) for name, x in variants.flat(config).items()}
    checkpoint.save(path, flat, config, {})
    said = fails(capsys, 1, "tokenize", TEXT, "--model", str(path))
    assert "expected a model with a text tower" in said


# The doctor knows the released towers and CLIP's tokenizer ----------------------------------------


def test_a_probe_of_another_tokenizer_is_refused_by_name(
    siglip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = fails(capsys, 1, "doctor", "probe", "--model", str(siglip), "--out", str(tmp_path / "p"))
    assert "text.pooling 'last', text.tokenizer of its own" in said and "jaxclip verify" in said
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name, part", [("SigLIP", "vision.pooling"), ("epsilon", "epsilon")])
def test_a_probe_of_other_towers_is_refused_by_name(
    name: str, part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    variants.model(name).save(path)
    out = tmp_path / "probe.npz"
    assert part in fails(capsys, 1, "doctor", "probe", "--model", str(path), "--out", str(out))
    assert not out.exists()


def test_a_probe_of_another_activation_and_vocabulary_is_made(tmp_path: Path) -> None:
    path, out = tmp_path / "model.safetensors", tmp_path / "probe.npz"
    variants.model("wide heads").save(path)  # gelu, 101 tokens
    assert cli.main(["doctor", "probe", "--model", str(path), "--out", str(out)]) == 0
    with np.load(out) as made:
        assert made["tokens"].max() == 100 and not any(made["texts"])


# Training from scratch ----------------------------------------------------------------------------


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(run, "data_mesh", functools.partial(data_mesh, jax.devices()[:1]))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for i in range(4):
        (pairs / f"{i}.png").write_bytes(png(i, 40, 36))
        (pairs / f"{i}.txt").write_text("a photo of a cat")
    size = write_unigram(tmp_path / "words")
    model = {"vision.image-size": 32, "vision.width": 2, "embed-dim": 8}
    model |= {"text.width": 8, "text.heads": 1, "text.layers": 1, "text.kind": "transformer"}
    model |= {"text.context-length": 16, "text.vocab-size": size}
    said = {f"--model.{name}": value for name, value in model.items()}
    said |= {"--batch-size": 4, "--steps": 1, "--warmup": 1, "--out": tmp_path / "run"}
    said |= {"--tokenizer": tmp_path / "words"}
    return ["train", str(pairs), *(str(word) for pair in said.items() for word in pair)]


def test_a_model_trains_from_scratch_with_a_tokenizer_that_travels(
    flags: list[str], tmp_path: Path
) -> None:
    end = ["--model.text.pooling", "end", "--model.text.end-token", "1"]
    assert cli.main([*flags, *end]) == 0
    trained, _ = jaxclip.load(tmp_path / "run")
    words = (tmp_path / "words" / "tokenizer.json").read_bytes()
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == words
    assert trained.config.text.tokenizer is not None
    assert 1 in trained.tokenize([TEXT])[0].tolist()  # "</s>"


def test_a_tokenizer_that_does_not_fit_takes_one_line(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, 2, *flags)  # pooled at the largest id, which ends no text
    assert "give --model.text.pooling end --model.text.end-token 1" in said
    kind = flags.index("--model.text.kind") + 1
    assert "expected --model.text.kind transformer" in fails(
        capsys, 2, *flags[:kind], "cbow", *flags[kind + 1 :]
    )
    nowhere = [*flags[:-1], str(tmp_path)]
    assert "expected a folder with a tokenizer.json" in fails(capsys, 2, *nowhere)
    small = flags.index("--model.text.vocab-size") + 1
    said = fails(capsys, 2, *flags[:small], "10", *flags[small + 1 :])
    assert said.startswith("jaxclip: --tokenizer: ") and "up to 9" in said
    assert "expected --tokenizer or --resume" in fails(capsys, 2, *flags, "--resume")
