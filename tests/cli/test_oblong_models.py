"""A model whose pictures are not square, through the commands: right numbers or one line."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import cli, convert
from jaxclip.cli import run
from jaxclip.config import ClipConfig, TextConfig, TowerConfig, VisionConfig
from jaxclip.models.single import SingleTower
from jaxclip.reference import l2_normalize
from jaxclip.training.sharding import data_mesh
from tests.support.command import fails
from tests.support.pictures import png
from tests.support.random_clip import random_clip

pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs")
CONFIG = ClipConfig(
    VisionConfig((48, 24), (8, 6), 64, 2, 1), TextConfig(64, 1, 1, context_length=12), 8
)
LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tall.safetensors"
    random_clip(CONFIG).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wide and tall pictures with captions."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        (pictures / f"{i}.png").write_bytes(png(i, 30 + 7 * i, 60 - 5 * i))
        (pictures / f"{i}.txt").write_text(LABELS[i % 3])
    return pictures


def features_of(model: str, folder: Path) -> np.ndarray:
    clip, preprocess = jaxclip.load(model)
    assert preprocess.size == (48, 24)
    pictures = [preprocess.safe(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return np.asarray(clip.encode_image(np.stack(pictures)))


def cosines(model: str, folder: Path, words: tuple[str, ...]) -> np.ndarray:
    clip, _ = jaxclip.load(model)
    texts = np.asarray(clip.encode_text(clip.tokenize(list(words))))
    return l2_normalize(features_of(model, folder)) @ l2_normalize(texts).T


def test_embed_writes_the_model_s_features(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.npz"
    words = ["embed", str(folder), "--model", model, "--out", str(out), "--no-normalize"]
    assert cli.main(words) == 0
    with np.load(out) as table:
        np.testing.assert_allclose(table["embeds"], features_of(model, folder), atol=1e-4)
        assert json.loads(str(table["preprocessing"]))["size"] == [48, 24]
    assert cli.main([*words, "--force"]) == 0


def test_classify_says_the_model_s_probabilities(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["classify", str(folder), "--labels", *LABELS, "--model", model, "--json"]
    assert cli.main([*words, "--prompts", "{}"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = cosines(model, folder, LABELS) * np.exp(jaxclip.load(model)[0].logit_scale[...])
    for line, row in zip(lines, expected, strict=True):
        got = {label["label"]: label["logit"] for label in line["labels"]}
        np.testing.assert_allclose([got[label] for label in LABELS], row, atol=1e-3)


def test_search_ranks_by_the_model_s_cosines_and_indexes_once(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(folder), "a red thing", "--model", model, "--top", "6", "--json"]
    words += ["--index", str(tmp_path / "index")]
    expected = cosines(model, folder, ("a red thing",))[:, 0]
    for _ in range(2):  # the second time from the index
        assert cli.main(words) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        hits = {Path(hit["picture"]).stem: hit["score"] for hit in found}
        assert list(hits) == [str(i) for i in np.argsort(-expected)]
        np.testing.assert_allclose([hits[str(i)] for i in range(6)], expected, atol=1e-3)


def test_verify_holds_and_notices_exchanged_sides(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder, turned = tmp_path / "ladder.safetensors", tmp_path / "turned.safetensors"
    assert cli.main(["verify", model, "--record", str(ladder)]) == 0
    assert cli.main(["verify", model, "--against", str(ladder)]) == 0
    vision = dataclasses.replace(CONFIG.vision, image_size=(32, 36))  # as many patches
    assert vision.tokens == CONFIG.vision.tokens
    wrong = dataclasses.replace(CONFIG, vision=vision)
    random_clip(wrong).save(turned)
    capsys.readouterr()
    said = fails(capsys, 1, "verify", str(turned), "--against", str(ladder))
    assert "pixels: expected floats [n, 32, 36, 3], got" in said


def test_evaluate_classifies_a_folder_of_classes(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        (tmp_path / "data" / LABELS[i % 3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / LABELS[i % 3] / f"{i}.png").write_bytes(png(i, 40, 30))
    out = str(tmp_path / "out")
    words = ["evaluate", str(tmp_path / "data"), "--model", model, "--json", "--out", out]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "data_mesh", functools.partial(data_mesh, jax.devices()[:1]))


@pytest.mark.usefixtures("one_device")
def test_training_goes_on_from_it_and_resumes(model: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ["--batch-size", "4", "--steps", "2", "--log-every", "1", "--learning-rate", "0.01"]
    words = ["train", str(folder), "--start", model, "--out", str(out), *common]
    assert cli.main(words) == 0
    trained, before = convert.load(out / "model.safetensors"), convert.load(model)
    assert trained.config == CONFIG
    name = "visual.positional_embedding"
    assert trained.flat[name].shape == before.flat[name].shape == (25, 64)
    assert not np.array_equal(trained.flat[name], before.flat[name])
    recipe = json.loads((out / "config.json").read_text())
    assert recipe["model"]["vision"]["image_size"] == [48, 24]
    assert cli.main(["train", "--out", str(out), "--resume"]) == 0
    target = tmp_path / "theirs" / "open_clip_model.safetensors"
    convert.convert(out / "model.safetensors", target, "open_clip")
    assert convert.load(target.parent).config.vision == CONFIG.vision


@pytest.mark.usefixtures("one_device")
def test_a_flag_gives_height_and_width(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tower = ["--model.vision.layers", "1", "--model.vision.width", "8", "--model.vision.heads", "1"]
    words = ["train", str(folder), "--preset", "ViT-B/32", *tower, "--model.text.layers", "1"]
    words += ["--model.text.width", "8", "--model.text.heads", "1", "--model.embed-dim", "4"]
    words += ["--model.vision.image-size", "64", "96", "--steps", "1", "--batch-size", "4"]
    assert cli.main([*words, "--out", str(out), "--dtype", "float32"]) == 0
    model, preprocess = jaxclip.load(out)
    assert model.config.vision.image_size == preprocess.size == (64, 96)


def test_drawings_in_memory_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, 2, "train", "emoji", "--start", model, "--out", str(tmp_path / "run"))
    assert "expected a model of square pictures for drawings in memory, got 48 x 24" in said


def test_training_needs_both_towers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "text.safetensors"
    SingleTower.from_config(TowerConfig(TextConfig(16, 1, 2, 9, 50), 8)).save(alone)
    said = fails(capsys, 2, "train", "emoji", "--start", str(alone), "--out", str(tmp_path / "run"))
    assert "--start: expected a model of both towers, got one alone" in said


def test_other_layouts_refuse_it_in_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = str(tmp_path / "folder"), str(tmp_path / "a.pt")
    for target, layout in ((folder, "huggingface"), (file, "openai")):
        said = fails(capsys, 1, "convert", model, target, "--layout", layout)
        assert "expected square pictures and patches" in said and "48 x 24 and 8 x 6" in said
    assert not Path(folder).exists() and not Path(file).exists()
    theirs = tmp_path / "theirs" / "model.safetensors"
    assert cli.main(["convert", model, str(theirs), "--layout", "open_clip"]) == 0
    (theirs.parent / "open_clip_config.json").unlink()
    capsys.readouterr()
    words = ["inspect", str(theirs), "--activation", "quick_gelu", "--heads", "1", "1"]
    assert "expected square patches, got 8 x 6; they need the config" in fails(capsys, 1, *words)


def test_what_is_made_for_squares_refuses_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, 1, "doctor", "probe", "--model", model, "--out", str(tmp_path / "p.npz"))
    assert "got vision.image_size 48 x 24, vision.patch_size 8 x 6" in said
    assert cli.main(["inspect", model]) == 0
    assert "patches of 8 x 6, 48 x 24 pixels" in capsys.readouterr().out


def test_another_size_is_given_as_height_and_width(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "other.safetensors")
    words = ["convert", model, target, "--image-size"]
    assert "multiple of 8 x 6, got 48 x 32" in fails(capsys, 1, *words, "48", "32")
    assert cli.main([*words, "32", "36"]) == 0
    assert convert.load(target).config.vision.grid == (4, 6)
    assert cli.main([*words, "24", "--force"]) == 0
    assert convert.load(target).config.vision.image_size == 24
