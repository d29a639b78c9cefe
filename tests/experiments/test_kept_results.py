"""A kept result answers its own question only: whatever changes the answer is in its key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import celeba_identity, linear_probe, pets_humans, retrieval, zero_shot
from jaxclip import checkpoint
from jaxclip.evaluation import (
    probe_protocol,
    prompts,
    protocol,
    results,
    retrieval_protocol,
)
from tests.support import planted

NAMES = list(planted.COLOURS)
# What eight pictures show; five of the labels in column a are right, three of those in column b.
SHOWN = ["red", "green", "blue", "white", "black", "yellow", "red", "green"]
A = ["red", "green", "blue", "white", "black", "red", "green", "blue"]
B = ["blue", "blue", "blue", "red", "red", "yellow", "white", "green"]


@pytest.fixture(scope="module")
def planted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("planted") / "model.safetensors")


@pytest.fixture
def model(planted_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may replace."""
    return Path(shutil.copy(planted_model, tmp_path / "model.safetensors"))


def write_table(path: Path, a: list[str] = A, b: list[str] = B) -> Path:
    lines = [f"{i}.png,{i}.png,{x},{y}" for i, (x, y) in enumerate(zip(a, b, strict=True))]
    path.write_text("image,other,a,b\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of eight pictures with two columns of labels; the order of classes is NAMES."""
    for i, colour in enumerate(SHOWN):
        (tmp_path / f"{i}.png").write_bytes(planted.png(colour))
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    return write_table(tmp_path / "t.csv")


def command(model: Path, table: Path, out: Path, *more: str) -> list[str]:
    flags = ["--data", str(table), "--label", "a", "--model", str(model), "--out", str(out)]
    return [*flags, *more]


def value(out: Path) -> float:
    return results.load(out)[0]["value"]


def refusal(main: Callable[[list[str]], int], given: list[str], capsys) -> str:
    """The one line of a command that refuses to tell a kept result; no number is printed."""
    capsys.readouterr()
    assert main(given) == 1
    out, err = capsys.readouterr()
    assert "%" not in out and "Traceback" not in err
    (line,) = [x for x in err.splitlines() if "--force" in x]
    return line


def test_another_label_column_is_another_question(model, table, tmp_path, capsys):
    out = tmp_path / "out"
    assert zero_shot.main(command(model, table, out)) == 0
    assert value(out) == 0.625
    other = command(model, table, out, "--label", "b")
    assert "differs in labels;" in refusal(zero_shot.main, other, capsys)
    assert value(out) == 0.625
    assert zero_shot.main([*other, "--force"]) == 0
    assert value(out) == 0.375 and "top1: 37.50 %" in capsys.readouterr().out


def correct_labels(root: Path) -> list[str]:
    write_table(root / "t.csv", a=SHOWN)
    return []


def replace_a_picture(root: Path) -> list[str]:
    (root / "0.png").write_bytes(planted.png("yellow"))
    return []


def rename_the_classes(root: Path) -> list[str]:
    names = ["crimson" if name == "yellow" else name for name in NAMES]
    (root / "classnames.txt").write_text("\n".join(names))
    return []


def reorder_the_classes(root: Path) -> list[str]:
    (root / "classnames.txt").write_text("\n".join(reversed(NAMES)))
    return []


def replace_the_model(root: Path) -> list[str]:
    """Another file of the same name, whose words for red and green are exchanged."""
    flat, config, notes = checkpoint.load(root / "model.safetensors")
    words = flat["text.token_embedding.embedding"].copy()
    rows = np.flatnonzero(np.abs(words).sum(axis=1))
    words[rows] = np.roll(words[rows], 1, axis=0)
    flat["text.token_embedding.embedding"] = words
    checkpoint.save(root / "model.safetensors", flat, config, notes)
    return []


def other_templates_in_a_file(root: Path) -> list[str]:
    record = {"classes": NAMES, "templates": ["blue blue blue {}"], "metric": "top1"}
    (root / "own.json").write_text(json.dumps(record))
    return ["--dataset", str(root / "own.json")]


CHANGES: list[tuple[Callable[[Path], list[str]], str]] = [
    (correct_labels, "labels"),
    (replace_a_picture, "pictures"),
    (rename_the_classes, "classes"),
    (reorder_the_classes, "classes"),
    (replace_the_model, "weights"),
    (other_templates_in_a_file, "prompts"),
    (lambda root: ["--metric", "mean_per_class"], "metric"),
    (lambda root: ["--prompts", "red red red {}"], "prompts"),
    (lambda root: ["--policy", "safe"], "preprocessing"),
]


@pytest.mark.parametrize(("change", "part"), CHANGES)
def test_what_changes_the_answer_changes_the_key(change, part, model, table, tmp_path, capsys):
    """Refused by naming the part; with --force it is what a fresh folder gets."""
    assert zero_shot.main(command(model, table, tmp_path / "out")) == 0
    more = change(tmp_path)
    given = command(model, table, tmp_path / "out", *more)
    assert part in refusal(zero_shot.main, given, capsys).partition("differs in")[2]
    done = zero_shot.main([*given, "--force"])
    assert zero_shot.main(command(model, table, tmp_path / "fresh", *more)) == done
    if done == 0:  # a class of a word that the planted model does not know is refused
        (forced, a), (fresh, b) = (results.load(tmp_path / name) for name in ("out", "fresh"))
        assert forced["metrics"] == fresh["metrics"] and forced["value"] == fresh["value"]
        assert all(np.array_equal(a[name], b[name]) for name in results.ARRAYS)


def test_a_picture_of_the_same_size_and_time_is_another_picture(model, table, tmp_path, capsys):
    """As `cp -p` replaces one: neither name, size nor time tells them apart."""
    padded = planted.png("red").ljust(1000, b"\0")
    (tmp_path / "0.png").write_bytes(padded)
    before = (tmp_path / "0.png").stat()
    assert zero_shot.main(command(model, table, tmp_path / "out")) == 0
    (tmp_path / "0.png").write_bytes(planted.png("blue").ljust(1000, b"\0"))
    os.utime(tmp_path / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    given = command(model, table, tmp_path / "out")
    assert "differs in pictures;" in refusal(zero_shot.main, given, capsys)


def test_the_same_question_is_answered_from_what_is_kept(model, table, tmp_path, monkeypatch):
    """Another batch size or another limit that the run kept to changes nothing."""
    given = command(model, table, tmp_path / "out")
    assert zero_shot.main(given) == 0
    monkeypatch.setattr(protocol, "classify_block", None)
    assert zero_shot.main(given) == 0
    assert zero_shot.main([*given, "--batch-size", "3", "--skip-limit", "0"]) == 0


def test_a_kept_result_that_left_out_more_than_the_limit_is_refused(model, table, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert zero_shot.main(command(model, table, tmp_path / "out")) == 0
    capsys.readouterr()
    assert zero_shot.main(command(model, table, tmp_path / "out", "--skip-limit", "0")) == 1
    out, err = capsys.readouterr()
    assert "--skip-limit 0" in err and "%" not in out


@pytest.mark.parametrize("kind", ["tar", "classes"])
def test_other_contents_of_shards_and_folders_are_another_question(kind, model, tmp_path, capsys):
    def write(labels: list[str]) -> Path:
        if kind == "tar":
            members: dict[str, bytes] = {}
            for i, (colour, label) in enumerate(zip(SHOWN, labels, strict=True)):
                members |= {f"{i}.png": planted.png(colour), f"{i}.cls": label.encode()}
            (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
            return planted.shard(tmp_path / "0.tar", members)
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        return planted.class_folders(tmp_path / "data", list(zip(labels, SHOWN, strict=True)))

    given = command(model, write(A), tmp_path / "out")
    assert zero_shot.main(given) == 0 and value(tmp_path / "out") == 0.625
    write(B)
    assert "labels" in refusal(zero_shot.main, given, capsys)
    assert zero_shot.main([*given, "--force"]) == 0 and value(tmp_path / "out") == 0.375


def test_a_result_of_another_command_or_an_older_form_is_refused(
    model, table, tmp_path, capsys, monkeypatch
):
    known = prompts.Prompts(tuple(NAMES), ("{}",), "top1")
    monkeypatch.setattr(prompts, "load", lambda *_: known)
    given = command(model, table, tmp_path / "out", "--dataset", "oxford_pets")
    assert zero_shot.main(given) == 0
    at = given.index("--dataset")
    pets = [*given[:at], *given[at + 2 :]]
    assert "differs in command;" in refusal(pets_humans.main, pets, capsys)
    result = results.load(tmp_path / "out")[0]
    results.save(tmp_path / "out", {**result, "key": "ab" * 32}, None)
    assert "--force" in refusal(zero_shot.main, given, capsys)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with a module and a function's name: the function is Ctrl-C in its second call."""

    def stop(module: object, name: str, at: int = 2) -> None:
        honest, calls = getattr(module, name), []

        def stopping(*arguments):
            calls.append(None)
            if len(calls) == at:
                raise KeyboardInterrupt
            return honest(*arguments)

        monkeypatch.setattr(module, name, stopping)

    return stop


@pytest.mark.parametrize("change", [correct_labels, replace_a_picture])
def test_half_a_run_is_not_gone_on_with_after_a_change(
    change, model, table, tmp_path, capsys, stopped
):
    stopped(protocol, "classify_block")
    given = command(model, table, tmp_path / "out", "--batch-size", "3")
    assert zero_shot.main(given) == 1
    change(tmp_path)
    assert "half a run of another kind" in refusal(zero_shot.main, given, capsys)
    assert zero_shot.main([*given, "--force"]) == 0
    assert zero_shot.main(command(model, table, tmp_path / "fresh")) == 0
    assert value(tmp_path / "out") == value(tmp_path / "fresh")


def test_an_interrupted_force_leaves_no_result_beside_other_predictions(
    model, table, tmp_path, monkeypatch
):
    given = command(model, table, tmp_path / "out")
    assert zero_shot.main(given) == 0
    honest = protocol.plots.confusion

    def failing(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(protocol.plots, "confusion", failing)
    assert zero_shot.main([*given, "--label", "b", "--force"]) == 1
    assert not (tmp_path / "out" / "result.json").exists()
    monkeypatch.setattr(protocol.plots, "confusion", honest)
    assert zero_shot.main([*given, "--label", "b"]) == 0
    assert value(tmp_path / "out") == 0.375


# The linear probe ---------------------------------------------------------------------------------


def write_rows(path: Path, labels: list[str]) -> Path:
    """A table over pictures of their own: five of every colour, `labels` given to the colours."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (path.parent / "classnames.txt").write_text("\n".join(NAMES))
    lines = []
    for i, (colour, label) in enumerate(list(zip(NAMES, labels, strict=True)) * 5):
        (folder / f"{i}.png").write_bytes(planted.png(colour))
        lines.append(f"{folder.name}/{i}.png,{label}")
    path.write_text("image,label\n" + "\n".join(lines) + "\n")
    return path


ROLLED = [*NAMES[1:], NAMES[0]]


@pytest.mark.parametrize("role", ["train", "test", "validation"])
@pytest.mark.parametrize("way", ["interrupted", "forced"])
def test_a_probe_reads_labels_that_were_corrected(role, way, model, tmp_path, stopped):
    """Wrong labels in one of three sets, corrected after its features were kept."""
    roles = ("train", "test", "validation")
    tables = {
        name: write_rows(tmp_path / f"{name}.csv", ROLLED if name == role else NAMES)
        for name in roles
    }
    given = ["--data", str(tables["train"]), "--test", str(tables["test"])]
    given += ["--validation", str(tables["validation"]), "--model", str(model)]
    given += ["--out", str(tmp_path / "out")]
    if way == "interrupted":
        stopped(probe_protocol.linear_probe, "search_penalty", at=1)
    assert linear_probe.main(given) == (1 if way == "interrupted" else 0)
    write_rows(tables[role], NAMES)
    if way == "forced":
        given.append("--force")
    assert linear_probe.main(given) == 0
    assert value(tmp_path / "out") == 1.0


def test_a_probe_reads_pictures_that_were_replaced(model, tmp_path, stopped):
    """The test pictures show the next colour at first."""
    train, test = (write_rows(tmp_path / f"{x}.csv", NAMES) for x in ("train", "test"))
    right = {path: path.read_bytes() for path in (tmp_path / "test").glob("*.png")}
    for path in right:
        path.write_bytes(planted.png(ROLLED[int(path.stem) % len(NAMES)]))
    given = ["--data", str(train), "--test", str(test), "--model", str(model)]
    given += ["--out", str(tmp_path / "out")]
    stopped(probe_protocol.linear_probe, "search_penalty", at=1)
    assert linear_probe.main(given) == 1
    for path, content in right.items():
        path.write_bytes(content)
    assert linear_probe.main(given) == 0
    assert value(tmp_path / "out") == 1.0


def test_what_kept_features_left_out_is_still_counted(model, tmp_path, stopped):
    train, test = (write_rows(tmp_path / f"{x}.csv", NAMES) for x in ("train", "test"))
    for path in (tmp_path / "train" / "0.png", tmp_path / "test" / "1.png"):
        path.write_bytes(b"no picture")
    given = ["--data", str(train), "--test", str(test), "--model", str(model)]
    given += ["--out", str(tmp_path / "out")]
    stopped(probe_protocol.linear_probe, "search_penalty", at=1)
    assert linear_probe.main(given) == 1
    assert linear_probe.main(given) == 0
    assert results.load(tmp_path / "out")[0]["skipped"] == {"broken picture": 2}


def test_force_encodes_the_pictures_of_a_probe_again(model, tmp_path, monkeypatch):
    train, test = (write_rows(tmp_path / f"{x}.csv", NAMES) for x in ("train", "test"))
    given = ["--data", str(train), "--test", str(test), "--model", str(model)]
    given += ["--out", str(tmp_path / "out"), "--force"]
    assert linear_probe.main(given) == 0
    asked: list[int] = []
    honest = probe_protocol.describe_block
    monkeypatch.setattr(
        probe_protocol, "describe_block", lambda block: (asked.append(1), honest(block))[1]
    )
    assert linear_probe.main(given) == 0
    assert len(asked) == 2


# Retrieval and CelebA -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["captions", "pictures", "only"])
def test_half_a_retrieval_is_not_gone_on_with_after_a_change(
    change, model, tmp_path, stopped, capsys
):
    """The names of flags stay the same, what the files hold does not."""
    lines = [f"{i}.png#0\t{colour}" for i, colour in enumerate(SHOWN[:6])]
    (tmp_path / "val").mkdir()
    for i, colour in enumerate(SHOWN[:6]):
        (tmp_path / "val" / f"{i}.png").write_bytes(planted.png(colour))
    (tmp_path / "c.token").write_text("\n".join(lines))
    (tmp_path / "only.txt").write_text("\n".join(f"{i}.png" for i in (0, 1, 2, 3)))
    given = ["--data", str(tmp_path / "val"), "--captions", str(tmp_path / "c.token")]
    given += ["--only", str(tmp_path / "only.txt"), "--model", str(model), "--batch-size", "2"]
    stopped(retrieval_protocol, "describe_block")
    assert retrieval.main([*given, "--out", str(tmp_path / "out")]) == 1
    if change == "captions":
        (tmp_path / "c.token").write_text("\n".join(lines).replace("red", "green"))
    elif change == "pictures":
        (tmp_path / "val" / "0.png").write_bytes(planted.png("green"))
    else:
        (tmp_path / "only.txt").write_text("\n".join(f"{i}.png" for i in (5, 4, 3, 2)))
    assert "half a run" in refusal(retrieval.main, [*given, "--out", str(tmp_path / "out")], capsys)
    assert retrieval.main([*given, "--out", str(tmp_path / "out"), "--force"]) == 0
    assert retrieval.main([*given, "--out", str(tmp_path / "fresh")]) == 0
    forced, fresh = (results.load(tmp_path / x)[0] for x in ("out", "fresh"))
    assert forced["metrics"] == fresh["metrics"]
    assert "holds a result" in refusal(
        retrieval.main, [*given, "--out", str(tmp_path / "out")], capsys
    )


@pytest.mark.parametrize("change", ["identities", "pictures", "names"])
def test_celeba_s_files_are_part_of_the_question(change, model, tmp_path, capsys):
    """Two people, each with one picture of four that is right; then the file is corrected."""
    (tmp_path / "img").mkdir()
    for i, colour in enumerate(("red", "red", "blue", "blue")):
        (tmp_path / "img" / f"{i}.png").write_bytes(planted.png(colour))
    who = tmp_path / "identity.txt"
    who.write_text("0.png 1\n1.png 2\n2.png 1\n3.png 2\n")
    (tmp_path / "names.txt").write_text("1 red\n2 blue\n")
    given = ["--data", str(tmp_path / "img"), "--identities", str(who), "--sizes", "2"]
    given += ["--names", str(tmp_path / "names.txt"), "--model", str(model)]
    given += ["--out", str(tmp_path / "out")]
    assert celeba_identity.main(given) == 0 and value(tmp_path / "out" / "2") == 0.5
    if change == "identities":
        who.write_text("0.png 1\n1.png 1\n2.png 2\n3.png 2\n")
    elif change == "pictures":
        for i, colour in ((1, "blue"), (2, "red")):
            (tmp_path / "img" / f"{i}.png").write_bytes(planted.png(colour))
    else:
        (tmp_path / "names.txt").write_text("0.png red\n1.png red\n2.png blue\n3.png blue\n")
    assert "differs in" in refusal(celeba_identity.main, given, capsys)
    assert celeba_identity.main([*given, "--force"]) == 0
    assert value(tmp_path / "out" / "2") == 1.0
