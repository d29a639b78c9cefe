"""`jaxclip evaluate DATA`: the planted table from any data, by the task that fits them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import linear_probe, retrieval, zero_shot
from jaxclip import cli
from jaxclip.data.subset import Subset
from jaxclip.evaluation import protocol, results
from tests.support import planted

NAMES = sorted(planted.COLOURS)
ORDER = [list(planted.COLOURS).index(name) for name in NAMES]
TABLE = planted.TABLE[np.ix_(ORDER, ORDER)]
CHANGING = ("date", "key", "experiment", "expected", "verdict", "expected_text_to_image")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(planted.write(tmp_path_factory.mktemp("planted") / "model.safetensors"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return planted.class_folders(tmp_path / "folders", planted.rows())


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    folder = tmp_path / "captioned"
    folder.mkdir()
    for i, colour in enumerate(NAMES):
        (folder / f"{i}.png").write_bytes(planted.png(colour))
        (folder / f"{i}.txt").write_text(f"a {colour}")
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """The JSON object that the command prints."""
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, arguments), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    try:
        found = cli.main(["evaluate", *map(str, arguments)])
    except SystemExit as stop:
        found = stop.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("jaxclip:")]
    assert found == code and len(lines) == 1 and "Traceback" not in err, (found, err)
    assert "%" not in out
    return lines[0]


def same(one: dict, other: dict) -> bool:
    keep = (one.keys() | other.keys()) - set(CHANGING)
    return all(one.get(name) == other.get(name) for name in keep)


def test_class_folders_are_classified_as_the_experiment_does(model, folders, tmp_path, capsys):
    found = told(capsys, folders, "--model", model, "--out", tmp_path / "out")
    assert found["value"] == np.trace(TABLE) / TABLE.sum()
    result, predictions = results.load(tmp_path / "out")
    assert result == found and np.array_equal(predictions["confusion"], TABLE)
    given = ["--data", str(folders), "--model", model, "--out", str(tmp_path / "experiment")]
    assert zero_shot.main(given) == 0
    assert same(found, results.load(tmp_path / "experiment")[0])


def test_without_out_nothing_is_left(model, folders, cache, capsys):
    assert told(capsys, folders, "--model", model)["n"] == TABLE.sum()
    assert not list((cache / "jaxclip" / "evaluations").glob("*"))
    assert cli.main(["evaluate", str(folders), "--model", model]) == 0
    out = capsys.readouterr().out
    assert re.search(r"top1: \d+\.\d\d %", out) and "wrote" not in out


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_evaluation_resumes(model, folders, tmp_path, capsys, monkeypatch, kept):
    given = [folders, "--model", model, "--batch-size", "7"]
    given += ["--out", tmp_path / "out"] if kept else []
    expected = told(capsys, *given, "--force")
    if kept:
        (tmp_path / "out" / "result.json").unlink()
    blocks: list[int] = []
    honest = protocol.classify_block

    def counting(block, matrix):
        blocks.append(len(block.items))
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return honest(block, matrix)

    monkeypatch.setattr(protocol, "classify_block", counting)
    assert "interrupted" in fails(capsys, 1, *given)
    assert same(told(capsys, *given), expected)
    assert len(blocks) == 4 + -(-len(planted.rows()) // 7) - 3


def test_pictures_with_captions_are_retrieved(model, captioned, tmp_path, capsys):
    found = told(capsys, captioned, "--model", model, "--prompts", "the {}")
    assert found["metrics"]["image_to_text_r1"] == 1 and found["prompt"] == "the {}"
    given = ["--data", str(captioned), "--model", model, "--prompt", "the {}"]
    assert retrieval.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert same(found, results.load(tmp_path / "out")[0])
    rows = "".join(f"{captioned}/{i}.png\tone {colour}\n" for i, colour in enumerate(NAMES))
    (tmp_path / "pairs.tsv").write_text("image\tcaption\n" + rows)
    assert told(capsys, tmp_path / "pairs.tsv", "--model", model)["captions"] == len(NAMES)


def test_a_probe_is_trained_where_training_pictures_are_named(model, folders, tmp_path, capsys):
    train = planted.class_folders(tmp_path / "train", [(name, name) for name in NAMES] * 5)
    found = told(capsys, folders, "--train", train, "--model", model)
    given = ["--data", str(train), "--test", str(folders), "--model", model]
    assert linear_probe.main([*given, "--out", str(tmp_path / "out")]) == 0
    expected = results.load(tmp_path / "out")[0]
    assert same(found, expected) and found["penalty"] == expected["penalty"]


def test_a_limit_draws_from_all_classes(model, folders, capsys):
    found = told(capsys, folders, "--model", model, "--limit", "30")
    assert found["n"] == 30 and sum(row["n"] > 0 for row in found["per_class"]) > 2
    assert told(capsys, folders, "--model", model, "--limit", "30")["value"] == found["value"]
    rows = Subset(range(100), 10).rows
    assert len(set(rows)) == 10 and (np.diff(rows) > 0).all() and rows.max() > 30


def test_the_kind_of_tar_shards_is_asked_for_where_texts_may_be_either(model, tmp_path, capsys):
    members: dict[str, bytes] = {}
    for i, colour in enumerate(NAMES):
        members |= {f"{i}.png": planted.png(colour), f"{i}.txt": f"a {colour}".encode()}
    shard = planted.shard(tmp_path / "0.tar", members)
    assert "--task: expected zero-shot or retrieval" in fails(capsys, 2, shard, "--model", model)
    found = told(capsys, shard, "--model", model, "--task", "retrieval")
    assert found["experiment"] == "retrieval"


@pytest.mark.parametrize(
    ("code", "more", "message"),
    [
        (2, ["--batch-size", "0"], "--batch-size: expected a whole number from 1"),
        (2, ["--limit", "0"], "--limit: expected a whole number from 1"),
        (2, ["--metric", "top7"], "top7"),
        (2, ["--split", "test"], "--split: expected --task retrieval, got zero-shot"),
        (2, ["--task", "linear-probe"], "--train: expected the training pictures"),
        (2, ["--task", "retrieval", "--label", "x"], "--label: expected --task zero-shot"),
        (1, ["--prompts", "a photo"], "expected exactly one slot"),
        (1, ["--dataset", "cifar11"], "dataset: expected a file or one of"),
        (1, ["--model", "no-such"], "no model is named"),
        (1, ["--skip-limit", "0", "--dataset", "cifar10"], "is --dataset right?"),
    ],
)
def test_mistakes_take_one_line(model, folders, capsys, code, more, message):
    assert message in fails(capsys, code, folders, "--model", model, *more)


def test_data_that_are_not_there_take_one_line(model, capsys):
    assert "nothing is there" in fails(capsys, 1, "no-such-folder", "--model", model)


def test_flags_for_data_are_refused_without_data(capsys):
    assert "--limit: expected DATA" in fails(capsys, 2, "--limit", "5")
    assert "--data-dir: expected DATA" in fails(capsys, 2, "--data-dir", "x")


def test_another_model_file_of_the_same_name_is_another_run(model, folders, tmp_path, capsys):
    """A kept result answers its own question only, also through the command."""
    given = [folders, "--model", model, "--out", tmp_path / "out"]
    told(capsys, *given)
    assert "differs in" in fails(capsys, 1, *given, "--prompts", "a {}")
    assert told(capsys, *given, "--prompts", "a {}", "--force")["templates"] == ["a {}"]
