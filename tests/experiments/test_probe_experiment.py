"""The linear probe from the command line: a planted model gives exactly the planted table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import linear_probe
from jaxclip.evaluation import probe_protocol, protocol, results
from tests.support import planted

NAMES = sorted(planted.COLOURS)
ORDER = [list(planted.COLOURS).index(name) for name in NAMES]
TABLE = planted.TABLE[np.ix_(ORDER, ORDER)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("planted") / "model.safetensors")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Five pictures of every colour, each in the folder of its own name."""
    return planted.class_folders(tmp_path / "train", [(name, name) for name in NAMES] * 5)


@pytest.fixture
def test(tmp_path: Path) -> Path:
    return planted.class_folders(tmp_path / "test", planted.rows())


def command(model: Path, train: Path, test: object, out: Path, *more: str) -> list[str]:
    flags = ["--data", str(train), "--test", str(test), "--model", str(model), "--out", str(out)]
    return [*flags, "--batch-size", "16", *more]


def fails(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the failing command told."""
    assert linear_probe.main(given) == 1
    told = [x for x in capsys.readouterr().err.splitlines() if x.startswith("linear_probe:")]
    assert len(told) == 1
    return told[0]


def test_the_planted_confusion_comes_out_exactly(model, train, test, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert linear_probe.main(command(model, train, test, out)) == 0
    result, predictions = results.load(out)
    assert np.array_equal(predictions["confusion"], TABLE)
    assert result["classes"] == NAMES and result["empty"] == ["white"]
    assert result["value"] == np.trace(TABLE) / TABLE.sum()
    assert result["n"] == TABLE.sum() and result["n_train"] == 30
    assert len(result["search"]["penalties"]) == 15 and result["experiment"] == "linear_probe"
    assert (out / "confusion.png").is_file() and "penalty:" in capsys.readouterr().out

    # once more: refused, and without its result done from the features that are there
    assert "--force" in fails(command(model, train, test, out), capsys)
    (out / "result.json").unlink()
    monkeypatch.setattr(protocol, "KeptBlocks", None)
    assert linear_probe.main(command(model, train, test, out)) == 0
    again, _ = results.load(out)
    assert again["value"] == result["value"]


def test_features_of_a_run_that_was_interrupted_are_gone_on_from(model, train, test, tmp_path):
    """Stopped in the third block of the test pictures: what came before is not read anew."""
    (test / NAMES[0] / "0.png").write_bytes(b"no picture")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert linear_probe.main(command(model, train, test, whole)) == 0
    asked: list[int] = []
    honest = probe_protocol.describe_block

    def counting(block):
        asked.append(len(block.items))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return honest(block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_protocol, "describe_block", counting)
        assert linear_probe.main(command(model, train, test, halves)) == 1
        first = len(asked)
        assert linear_probe.main(command(model, train, test, halves)) == 0
    assert first == 5 and len(asked) == first + 1
    a, b = results.load(whole), results.load(halves)
    assert a[0]["metrics"] == b[0]["metrics"] and a[0]["skipped"] == b[0]["skipped"]
    assert all(np.array_equal(a[1][name], b[1][name]) for name in results.ARRAYS)
    assert not list(halves.glob("*.parts"))


def test_half_a_reading_of_other_blocks_gives_way_to_force(model, train, test, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol.KeptBlocks, "join", lambda *_: (_ for _ in ()).throw(OSError("x")))
        assert linear_probe.main(command(model, train, test, out)) == 1
    capsys.readouterr()
    other = command(model, train, test, out)
    other[other.index("16")] = "8"
    assert "add --force" in fails(other, capsys)
    assert linear_probe.main([*other, "--force"]) == 0


def test_wrong_labels_in_training_give_a_wrong_table(model, test, tmp_path):
    """The probe learns from --data: with two names exchanged it exchanges them."""
    other = {"red": "blue", "blue": "red"}
    swapped = [(other.get(name, name), name) for name in NAMES] * 5
    train = planted.class_folders(tmp_path / "swapped", swapped)
    assert linear_probe.main(command(model, train, test, tmp_path / "out")) == 0
    _, predictions = results.load(tmp_path / "out")
    red, blue = NAMES.index("red"), NAMES.index("blue")
    expected = TABLE.copy()
    expected[:, [red, blue]] = TABLE[:, [blue, red]]
    assert np.array_equal(predictions["confusion"], expected)


def test_a_validation_set_of_its_own_is_used(model, train, test, tmp_path):
    validation = planted.class_folders(tmp_path / "held", [(name, name) for name in NAMES] * 2)
    given = command(model, train, test, tmp_path / "out", "--validation", str(validation))
    assert linear_probe.main(given) == 0
    result, _ = results.load(tmp_path / "out")
    assert result["n_train"] == 30 + 12 and result["validated_on"] == str(validation)


def test_held_out_is_a_share_of_every_class():
    labels = np.repeat([0, 1, 2], [10, 20, 2])
    out = probe_protocol.hold_out(labels, 0.2)
    assert np.bincount(labels[out]).tolist() == [2, 4, 1]
    assert (out != probe_protocol.hold_out(labels, 0.2, seed=1)).any()


def test_too_few_pictures_to_hold_any_out_are_told(model, test, tmp_path, capsys):
    few = planted.class_folders(tmp_path / "few", [(name, name) for name in NAMES])
    assert "--validation" in fails(command(model, few, test, tmp_path / "out"), capsys)


def test_other_classes_in_the_test_set_are_refused(model, train, tmp_path, capsys):
    (tmp_path / "odd" / "mauve").mkdir(parents=True)
    (tmp_path / "odd" / "mauve" / "0.png").write_bytes(planted.png("red"))
    assert "mauve" in fails(command(model, train, tmp_path / "odd", tmp_path / "out"), capsys)


def test_broken_pictures_are_counted_and_labels_out_of_range_too(model, train, test, tmp_path):
    (test / "red" / "999.png").write_bytes(b"no picture")
    assert linear_probe.main(command(model, train, test, tmp_path / "out")) == 0
    result, _ = results.load(tmp_path / "out")
    assert result["skipped"] == {"broken picture": 1} and result["n"] == TABLE.sum()
    rows = [{"image": str(path), "label": 77} for path in (train / "red").glob("*.png")]
    rows += [{"image": str(path), "label": 0} for path in (train / "blue").glob("*.png")]
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    assert linear_probe.main(command(model, train, table, tmp_path / "other")) == 0
    result, _ = results.load(tmp_path / "other")
    assert result["skipped"] == {"label out of range": 5} and result["n"] == 5


@pytest.mark.parametrize("share", ["0", "1", "nan"])
def test_a_senseless_share_is_refused(model, train, test, tmp_path, share, capsys):
    given = command(model, train, test, tmp_path / "out", "--held-out", share)
    with pytest.raises(SystemExit, match="2"):
        linear_probe.main(given)
    assert "between 0 and 1" in capsys.readouterr().err


def write_labels(path: Path, labels: list[object]) -> Path:
    """A table of one picture of every colour, twice."""
    for colour in NAMES:
        (path.parent / f"{colour}.png").write_bytes(planted.png(colour))
    rows = [f"{name}.png,{label}" for name, label in zip(NAMES * 2, labels, strict=True)]
    path.write_text("image,label\n" + "\n".join(rows) + "\n")
    return path


def test_numbers_are_no_places_among_names_that_were_sorted(model, tmp_path, capsys):
    """One table has names, the other numbers in another order: it was 12.5 %, without a word."""
    order = list(planted.COLOURS)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = write_labels(tmp_path / "a" / "train.csv", [*NAMES, *NAMES])
    numbers = write_labels(tmp_path / "b" / "test.csv", [order.index(x) for x in NAMES * 2])
    given = command(model, names, numbers, tmp_path / "out")
    told = fails(given, capsys)
    assert "test.csv: expected classes by name" in told and "classnames.txt" in told
    told = fails(command(model, names, names, tmp_path / "v", "--validation", str(numbers)), capsys)
    assert "test.csv: expected classes by name" in told
    (tmp_path / "b" / "classnames.txt").write_text("\n".join(order))
    assert linear_probe.main(given) == 0
    assert results.load(tmp_path / "out")[0]["value"] == 1


def test_numbers_stay_places_where_the_classes_have_an_order(model, tmp_path):
    """Both are numbers, and a list beside the training table names them for both."""
    order = list(planted.COLOURS)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    labels = [order.index(x) for x in NAMES * 2]
    train, test = (write_labels(tmp_path / x / "t.csv", labels) for x in "ab")
    (tmp_path / "a" / "classnames.txt").write_text("\n".join(order))
    assert linear_probe.main(command(model, train, test, tmp_path / "out")) == 0
    assert results.load(tmp_path / "out")[0]["value"] == 1
