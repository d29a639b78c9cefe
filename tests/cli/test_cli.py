"""The command line: what it prints, its exit codes, and one clear line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxclip import cli
from jaxclip.training.recipe import Recipe, presets
from tests.support.command import EXAMPLES, LABELS, fails


def test_classify_names_the_examples_of_the_unseen_artist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["classify", *map(str, EXAMPLES), "--labels", *LABELS, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 4
    for path, record in zip(EXAMPLES, records, strict=True):
        best = record["labels"][0]["label"].replace(" ", "-")
        assert best == path.stem
        assert sum(entry["probability"] for entry in record["labels"]) == pytest.approx(1)


def test_classify_prints_a_ranked_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classify", str(EXAMPLES[0]), "--labels", *LABELS]) == 0
    out = capsys.readouterr().out
    assert all(label in out for label in LABELS) and "%" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classify", "x.png", "--labels", "a", "a"], "'a' twice"),
        (["classify", "x.png", "--labels", "a", " "], "empty label"),
        (["classify", "--labels", "a"], "no picture"),
        (["classify", "x.png"], "--labels"),
        (["classify", "x.png", "--labels", "a", "--colour"], "--colour"),
        (["train", "emoji", "--steps", "many"], "many"),
        (["train", "photos"], "photos"),
        (["train", "emoji", "--process", "-1"], "--process: expected a whole number from 0 to 0"),
        (["train", ""], "got an empty text"),
        (["classify", "", "--labels", "a"], "got an empty text"),
        (["embed", "x.png", "--out="], "got an empty text"),
        (["dance"], "dance"),
        ([], "subcommand"),
    ],
)
def test_usage_errors_take_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert says.lower() in fails(capsys, 2, *arguments).lower()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "embed x --out x.npz --batch-size 1.5",
            "--batch-size: expected a whole number, got '1.5'",
        ),
        (
            "embed x --out x.npz --batch-size x'y",
            """--batch-size: expected a whole number, got "x'y\"""",
        ),
        ("train x --learning-rate abc", "--learning-rate: expected a number, got 'abc'"),
        ("train x --weights 1 b", "--weights: expected a number, got '1', 'b'"),
        ("convert emoji x --image-size a", "--image-size: expected a whole number, got 'a'"),
        ("convert emoji x --heads 3", "--heads: expected 2 whole numbers, got '3'"),
        ("convert emoji x --heads a b", "--heads: expected 2 whole numbers, got 'a', 'b'"),
        (
            "train x --model.vision.layers a b c d",
            "--model.vision.layers: expected 4 whole numbers, got 'a', 'b', 'c', 'd'",
        ),
    ],
)
def test_a_flag_that_takes_numbers_says_so(
    capsys: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    assert fails(capsys, 2, *arguments.split(" ")) == f"jaxclip: {says}\n"


def test_failures_take_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html></html>")
    ask = ["--labels", "cat", "dog"]
    assert "page.png" in fails(capsys, 1, "classify", str(page), *ask)
    assert "missing.png" in fails(capsys, 1, "classify", str(tmp_path / "missing.png"), *ask)
    picture = str(EXAMPLES[0])
    assert "run folder" in fails(capsys, 1, "classify", picture, *ask, "--model", str(tmp_path))
    assert "no-such" in fails(capsys, 1, "classify", picture, *ask, "--model", "no-such")
    assert "an HTML page" in fails(capsys, 1, "classify", picture, *ask, "--model", str(page))
    long = "very " * 100
    assert "token" in fails(capsys, 1, "classify", picture, "--labels", long, "cat")
    assert "slot" in fails(capsys, 1, "classify", picture, *ask, "--prompts", "a picture")


def test_help_is_there_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (function.__name__ for function in cli.COMMANDS):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert not stop.value.code
        assert "--help" in capsys.readouterr().out


def test_preset_gives_every_flag_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "full", "--help"])
    assert f"default: {presets['full'].steps})" in capsys.readouterr().out


def test_the_last_of_two_presets_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "quick", "--preset=full", "--help"])
    assert f"default: {presets['full'].steps})" in capsys.readouterr().out


def test_ctrl_c_while_the_command_is_imported_takes_one_line() -> None:
    program = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "jaxclip.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from jaxclip.__main__ import main
sys.exit(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "jaxclip: interrupted\n")


def test_train_refuses_a_folder_that_holds_something(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "--force" in fails(capsys, 2, "train", "emoji", "--out", str(tmp_path))
    assert "config.json" in fails(capsys, 2, "train", "emoji", "--out", str(tmp_path), "--resume")
    (tmp_path / "config.json").write_text(Recipe(seed=1).to_json())
    assert "data.json" in fails(capsys, 1, "train", "emoji", "--out", str(tmp_path), "--resume")
    (tmp_path / "config.json").write_text('{"steps": 1, "colour": "red"}')
    assert "config" in fails(capsys, 1, "train", "emoji", "--out", str(tmp_path), "--resume")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_tokenize_shows_pieces_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenize", "Hello World!", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == [3306, 1002, 256]


def test_python_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "jaxclip", "tokenize", "a cat"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cat" in done.stdout


def test_python_classifies_in_ten_lines() -> None:
    """The public surface, compiled and op by op."""
    from PIL import Image

    import jaxclip

    model, preprocess = jaxclip.load("emoji")
    pictures = [preprocess.safe(Image.open(path)) for path in EXAMPLES]
    tokens = jaxclip.tokenize(LABELS)
    logits_per_image, logits_per_text = model(np.stack(pictures), tokens)
    assert np.array_equal(logits_per_image, logits_per_text.T)
    best = np.asarray(logits_per_image).argmax(axis=1)
    said = {path.stem: LABELS[i].replace(" ", "-") for path, i in zip(EXAMPLES, best, strict=True)}
    assert all(stem == label for stem, label in said.items())
    eager, _ = jaxclip.load("emoji", jit=False)
    assert np.allclose(eager(np.stack(pictures), tokens)[0], logits_per_image, atol=1e-3)
