"""Compiled classifiers: made once, whole, and never taken for one of another key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxclip import checkpoint, cli
from jaxclip.evaluation import classifier_cache
from jaxclip.evaluation.zero_shot import build_classifier
from jaxclip.hub import load as hub
from jaxclip.models.clip import Clip
from jaxclip.tokenizer import tokenize
from tests.support import planted

# of products and kernels: each changes the last bits
WAYS = [("precision", "highest"), ("arrange", True)]
CLASSES, TEMPLATES = ("red", "green", "blue"), ("a {}.", "my {}", "the red {}")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("planted") / "model.safetensors")


@pytest.fixture
def model(file: Path) -> Clip:
    """A fresh one, so that what it is asked can be counted."""
    return hub.load(file)[0]


def counted(model: Clip) -> list[int]:
    """How many texts the model is asked to encode, call by call, from now on."""
    asked: list[int] = []
    honest = model.encode_text

    def counting(tokens):
        asked.append(len(tokens))
        return honest(tokens)

    model.encode_text = counting  # type: ignore[method-assign]
    return asked


def files(cache: Path) -> list[Path]:
    return sorted((cache / classifier_cache.FOLDER).iterdir())


def test_a_classifier_is_made_once_and_equals_the_ensemble(model, tmp_path):
    asked = counted(model)
    first = classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path)
    assert asked == [9]
    again = classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path)
    assert asked == [9] and np.array_equal(first, again)
    (path,) = files(tmp_path)
    assert path.suffix == ".safetensors" and len(path.stem) == 64
    whole = build_classifier(
        lambda t: np.asarray(model.encode_text(tokenize(t, 13))), CLASSES, TEMPLATES
    )
    assert_allclose(first, whole, atol=1e-6)
    assert first.shape == (3, planted.WIDTH) and first.dtype == np.float32


def test_no_folder_keeps_nothing(model, tmp_path):
    asked = counted(model)
    for _ in range(2):
        classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, None)
    assert asked == [9, 9]


@pytest.mark.parametrize(
    ("classes", "templates"),
    [
        (("red", "green"), TEMPLATES),
        (("green", "red", "blue"), TEMPLATES),
        (CLASSES, TEMPLATES[:2]),
        (CLASSES, TEMPLATES[::-1]),
        (("red", "green", "white"), TEMPLATES),
    ],
)
def test_other_classes_or_templates_are_another_file(model, tmp_path, classes, templates):
    first = classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path)
    asked = counted(model)
    other = classifier_cache.cached_classifier(model, classes, templates, tmp_path)
    assert asked and len(files(tmp_path)) == 2
    assert_allclose(other, classifier_cache.cached_classifier(model, classes, templates, None))
    assert np.array_equal(
        first, classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path)
    )


def test_the_same_tokens_from_other_templates_are_another_key(model):
    tokens = tokenize(["a red"], 13)
    keys = {classifier_cache.classifier_key(model, tokens, [t]) for t in ("a {}", "{} red", "A {}")}
    assert len(keys) == 3


def test_other_weights_are_another_file_and_another_image_tower_is_not(file, tmp_path):
    """A bit of the text tower decides; the image tower has no part in a classifier."""
    flat, config, notes = checkpoint.load(file)
    model = hub.load(file)[0]
    classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path)
    count = {}
    for name in ("text.text_projection", "visual.proj"):
        changed = {**flat, name: flat[name].copy()}
        changed[name].flat[0] = np.nextafter(changed[name].flat[0], 9, dtype=np.float32)
        checkpoint.save(tmp_path / "other.safetensors", changed, config, notes)
        other = hub.load(tmp_path / "other.safetensors")[0]
        asked = counted(other)
        classifier_cache.cached_classifier(other, CLASSES, TEMPLATES, tmp_path)
        count[name] = len(asked)
        assert classifier_cache.weights_checksum(other) != classifier_cache.weights_checksum(model)
    assert count == {"text.text_projection": 1, "visual.proj": 0}


def test_another_number_format_precision_or_activation_is_another_key(file, model):
    tokens = tokenize(["red"], 13)
    flat, config, notes = checkpoint.load(file)
    gelu = file.with_name("gelu.safetensors")
    checkpoint.save(gelu, flat, dataclasses.replace(config, activation="gelu"), notes)
    models = [model, hub.load(file, dtype=jnp.bfloat16)[0], hub.load(gelu)[0]]
    models += [hub.load(file, **{name: flag})[0] for name, flag in WAYS]
    assert len({classifier_cache.classifier_key(m, tokens, ["{}"]) for m in models}) == len(models)


def test_another_jax_backend_or_global_precision_is_another_key(model, monkeypatch):
    tokens = tokenize(["red"], 13)
    keys = {classifier_cache.classifier_key(model, tokens, ["{}"])}
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    keys.add(classifier_cache.classifier_key(model, tokens, ["{}"]))
    with jax.default_matmul_precision("highest"):
        keys.add(classifier_cache.classifier_key(model, tokens, ["{}"]))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    keys.add(classifier_cache.classifier_key(model, tokens, ["{}"]))
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "another", "empty", "shape"])
def test_a_damaged_file_is_made_anew(model, tmp_path, damage, caplog):
    first = classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "another":  # a sound file under a name that is not its own
        classifier_cache.cached_classifier(model, CLASSES[::-1], TEMPLATES, tmp_path)
        (other,) = (p for p in files(tmp_path) if p != path)
        other.replace(path)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        checkpoint.save_arrays(path, {"matrix": first[:2]}, {"key": path.stem})
    asked = counted(model)
    assert np.array_equal(
        classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path), first
    )
    assert asked == [9] and "damaged" in caplog.text
    assert np.array_equal(
        classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path), first
    )
    assert asked == [9]


def test_a_folder_that_takes_nothing_is_told_and_the_answer_comes_all_the_same(
    model, tmp_path, caplog
):
    (tmp_path / "cache").write_text("a file where the folder should be")
    matrix = classifier_cache.cached_classifier(model, CLASSES, TEMPLATES, tmp_path / "cache")
    assert matrix.shape == (3, planted.WIDTH) and "not kept" in caplog.text


def test_a_prompt_that_says_nothing_to_the_model_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="features of the prompts are zero"):
        classifier_cache.cached_classifier(model, ["rocket"], ["{}"], tmp_path)
    assert not (tmp_path / classifier_cache.FOLDER).exists()


def test_classify_uses_the_kept_classifier(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXCLIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.png").write_bytes(planted.png("blue"))
    given = ["classify", str(tmp_path / "x.png"), "--model", str(file), "--labels", *CLASSES]
    assert cli.main([*given, "--json"]) == 0
    first = capsys.readouterr().out
    assert '"label": "blue"' in first.split('"probability"')[0]
    assert len(files(tmp_path / "cache")) == 2  # the labels, and the unrelated words
    monkeypatch.setattr(Clip, "encode_text", None)  # whoever asks for a text now fails
    assert cli.main([*given, "--json"]) == 0
    assert capsys.readouterr().out == first
