"""`verify`: any ladder file gives the right comparison or one line; so does any flag."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from jaxclip import checkpoint, cli, parity
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from tests.support import tiny
from tests.support.command import fails

CONFIG = ClipConfig(VisionConfig(20, 5, 24, 2, 3), TextConfig(16, 2, 2, 13, 101), 7)
Change = Callable[[dict[str, Any], dict[str, Any]], Any]


@functools.cache
def flat() -> checkpoint.Flat:
    params = tiny.params(vision_layers=2, text_layers=2)
    return {k: np.float32(x) for k, x in checkpoint.flatten(params).items()}


@functools.cache
def ladder() -> parity.Rungs:
    images, tokens = tiny.batch(n=2)
    return parity.reference_rungs(flat(), CONFIG, images.astype(np.float32), tokens, np.float32)


@pytest.fixture
def model(tmp_path: Path) -> str:
    checkpoint.save(tmp_path / "model.safetensors", flat(), CONFIG, {"source": "a test"})
    return str(tmp_path / "model.safetensors")


def written(tmp_path: Path, change: Change | None = None, notes: Any = None) -> str:
    """A ladder file of the reference, altered."""
    rungs, about = dict(ladder()), {"by": "a test"} if notes is None else notes
    if change is not None:
        change(rungs, about)
    path = tmp_path / "ladder.safetensors"
    text = about if isinstance(about, str) else json.dumps(about)
    checkpoint.save_arrays(path, rungs, {"format": parity.FORMAT, "notes": text})
    return str(path)


def png(size: int = 20) -> np.ndarray:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, "png")
    return np.frombuffer(file.getvalue(), np.uint8)


def put(name: str, value: Any) -> Change:
    def change(rungs: dict[str, Any], about: dict[str, Any]) -> None:
        rungs[name] = value(rungs[name]) if callable(value) else value

    return change


def one_picture(content: np.ndarray) -> Change:
    def change(rungs: dict[str, Any], about: dict[str, Any]) -> None:
        for name in rungs:
            if name == "pixels" or name.startswith("image") or name == "logits":
                rungs[name] = rungs[name][:1]
        rungs["picture"] = content

    return change


def only_inputs(rungs: dict[str, Any], about: dict[str, Any]) -> None:
    for name in set(rungs) - {"pixels", "tokens"}:
        del rungs[name]


def without(name: str) -> Change:
    return lambda rungs, about: rungs.pop(name)


def token(number: int) -> Change:
    def change(rungs: dict[str, Any], about: dict[str, Any]) -> None:
        rungs["tokens"] = rungs["tokens"].astype(np.int64)
        rungs["tokens"][1, 1] = number

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "tokens of float": (put("tokens", lambda x: x.astype(np.float32)), "tokens: .*got float32"),
    "tokens of bool": (put("tokens", lambda x: x > 0), "tokens: .*got bool"),
    "one row of tokens": (put("tokens", lambda x: x[0]), r"tokens: .*\(13,\)"),
    "no tokens": (put("tokens", lambda x: x[:0]), r"tokens: .*\(0, 13\)"),
    "long tokens": (put("tokens", np.ones((2, 14), np.int32)), r"tokens: .*\(2, 14\)"),
    "a negative id": (token(-1), "token id -1: .*101"),
    "an id too large": (token(101), "token id 101: .*101"),
    "an id of 64 bits": (token(2**32 + 5), "token id 4294967301"),
    "pixels missing": (without("pixels"), "expected pixels and tokens"),
    "tokens missing": (without("tokens"), "expected pixels and tokens"),
    "pixels of int": (put("pixels", lambda x: x.astype(np.int32)), "pixels: .*got int32"),
    "pixels of another size": (put("pixels", lambda x: x[:, 1:]), r"pixels: .*\(2, 19, 20, 3\)"),
    "no pixels": (put("pixels", lambda x: x[:0]), "pixels: expected one picture"),
    "pixels NaN": (put("pixels", lambda x: x * np.nan), "pixels: expected finite"),
    "pixels beyond float32": (
        put("pixels", lambda x: x.astype(np.float64) * 1e200),
        "pixels: expected finite",
    ),
    "no stage": (only_inputs, "expected stages"),
    "a rung of int": (put("logits", lambda x: x.astype(np.int64)), "logits: .*int64"),
    "a rung of another shape": (put("logits", lambda x: x[:1]), r"logits: .*\(1, 2\)"),
    "an empty rung": (put("image.stem", lambda x: x[:0]), "image.stem"),
    "a scalar rung": (put("image.stem", np.float32(1)), "image.stem"),
    "a picture of two": (put("picture", png()), "picture: .*pixels of one picture"),
    "a broken picture": (one_picture(png()[:40]), "expected a picture"),
    "a picture of float": (one_picture(np.ones(9, np.float32)), "picture: expected the bytes"),
    "no picture": (one_picture(png()[:0]), "expected a picture"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_ladder_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, name: str
) -> None:
    change, says = WRONG[name]
    line = fails(capsys, 1, "verify", model, "--against", written(tmp_path, change))
    assert re.search(says, line), line


@pytest.mark.parametrize(
    "notes",
    [
        *("[1]", "3", "null", '"a"', "{", "[" * 100_000, '{"a": ' * 100_000, "9" * 5000),
        *('{"texts": "a cat"}', '{"texts": [1, 2]}', '{"texts": ["a", null]}', '{"texts": 5}'),
        *('{"texts": ["one"]}', '{"texts": []}', '{"by": ["me"]}'),
        json.dumps({"texts": ["very " * 50] * 5}),
        '{"texts": ["a", "b", "c", "d", "\\ud800"]}',
    ],
    ids=lambda notes: notes[:20],
)
def test_wrong_notes_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, notes: str
) -> None:
    fails(capsys, 1, "verify", model, "--against", written(tmp_path, notes=notes))


@pytest.mark.parametrize("kind", ["fifo", "directory", "empty", "jpeg", "missing", "device"])
def test_what_is_no_ladder_file_is_refused_without_waiting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, kind: str
) -> None:
    path = tmp_path / "ladder"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "jpeg":
        Image.new("RGB", (9, 9)).save(path, "jpeg")
    elif kind == "device":
        path = Path("/dev/zero")
    assert path.name in fails(capsys, 1, "verify", model, "--against", str(path))


def test_sound_ladders_are_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    assert cli.main(["verify", model, "--against", written(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.count("every stage holds") == 2 and "not compared" in err and "'image.conv1'" in err
    coarse = put("text.features", lambda x: x.astype(ml_dtypes.bfloat16))
    arguments = ["verify", model, "--against", written(tmp_path, coarse), "--json"]
    assert cli.main(arguments) == 1
    departs = json.loads(capsys.readouterr().out)["first_departure"]
    assert departs == {"reference, float64": None, "recorded by a test": "text.features"}
    assert cli.main(["verify", model, "--against", written(tmp_path, token(5)), "--json"]) == 1
    departs = json.loads(capsys.readouterr().out)["first_departure"]
    assert departs["recorded by a test"] == "text.stem"
    not_finite = put("image.block.1", lambda x: x * np.inf)
    assert cli.main(["verify", model, "--against", written(tmp_path, not_finite), "--json"]) == 1
    departs = json.loads(capsys.readouterr().out)["first_departure"]
    assert departs["recorded by a test"] == "image.block.1"


def mutated(rng: random.Random, content: bytes) -> bytes:
    """A file with bytes changed, cut or doubled; most often in its header."""
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        end = len(spoilt) if rng.random() < 0.3 else min(len(spoilt), 3000)
        spoilt[rng.randrange(end)] = rng.randrange(256)
    if rng.random() < 0.2:
        del spoilt[rng.randrange(len(spoilt)) :]
    return bytes(spoilt)


def test_any_bytes_give_a_ladder_or_a_value_error(tmp_path: Path) -> None:
    content = Path(written(tmp_path)).read_bytes()
    rng, path, refused = random.Random(0), tmp_path / "spoilt.safetensors", 0
    for _ in range(300):
        path.write_bytes(mutated(rng, content))
        try:
            rungs, notes = parity.recorded(path)
            parity.check_recorded(rungs, notes, CONFIG)
        except ValueError:
            refused += 1
    assert 100 < refused < 300


def test_any_arrays_give_a_ladder_or_a_value_error() -> None:
    rng, refused = np.random.default_rng(0), 0
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_, np.float64]
    for _ in range(300):
        rungs = dict(ladder())
        name = rng.choice([*rungs, "picture", "other"])
        shape = list(rungs.get(name, np.zeros(3)).shape)
        if shape and rng.random() < 0.5:
            shape[rng.integers(len(shape))] = rng.integers(0, 3)
        values = rng.normal(size=shape) * rng.choice([1, 50, 1e30, 1e300])
        with np.errstate(all="ignore"):
            rungs[name] = np.asarray(values).astype(dtypes[rng.integers(len(dtypes))])
        try:
            parity.check_recorded(rungs, {}, CONFIG)
        except ValueError:
            refused += 1
    assert 50 < refused < 300


# A vocabulary of its own, and flags ---------------------------------------------------------------


def test_a_model_of_another_vocabulary_is_proven_on_random_ids(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    record = tmp_path / "own.safetensors"
    assert cli.main(["verify", model, "--record", str(record), "--json"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["holds"] and "101" in err and "49408" in err
    rungs, notes = parity.recorded(record)
    assert "texts" not in notes and rungs["tokens"].max() == 100 and rungs["tokens"].min() >= 0
    assert cli.main(["verify", model, "--against", str(record)]) == 0
    capsys.readouterr()
    line = fails(capsys, 1, "verify", model, "--texts", "a cat")
    assert "49,408 tokens for CLIP's tokenizer" in line and "101" in line


def test_a_record_is_overwritten_only_when_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    assert "--force" in fails(capsys, 2, "verify", model, "--record", str(path))
    assert path.read_text() == "years of work"
    assert cli.main(["verify", model, "--record", str(path), "--force"]) == 0
    assert parity.recorded(path)[1]["model"] == model
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--precision", "nonsense"], "nonsense"),
        (["--texts"], "--texts"),
        (["--texts", ""], "--texts"),
        (["--texts", "a cat", " "], "--texts"),
        (["--against", "x", "--texts", "a cat"], "--against"),
        (["--against", "x", "--picture", "a.png"], "--against"),
    ],
)
def test_flags_that_make_no_sense_take_one_line(
    capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert says in fails(capsys, 2, "verify", *flags)
