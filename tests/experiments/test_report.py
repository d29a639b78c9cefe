"""The report: one sound page that needs nothing from elsewhere, and says what the folder says."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import zero_shot
from experiments.recipes import embed_model
from experiments.report import __main__ as report
from jaxclip import checkpoint, cli
from jaxclip.cli import run
from jaxclip.evaluation import named_pictures, results
from jaxclip.tokenizer import VOCAB_SIZE, tokenize
from jaxclip.training.sharding import data_mesh
from tests.support import planted

HOSTILE = '<script>alert("$x")</script> & co'
CLASSES = ["red", "green", HOSTILE]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Sections by heading, every tag with its attributes; an error where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        for part in text.split("<h2>")[1:]:
            name, _, content = part.partition("</h2>")
            self.sections[name] = content

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def evaluation(folder: Path, data: Path, model: Path, value: float = 0.6) -> Path:
    """An evaluation of six pictures in class folders, two of them answered wrong."""
    where = sorted(str(path) for path in data.rglob("*.png"))
    label, said = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 2])
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (label, said), 1)
    predictions = {
        "label": label,
        "top": said[:, None],
        "score": np.linspace(0.1, 0.6, 6)[:, None],
        "where": np.array(where),
        "confusion": confusion,
    }
    result = {
        "experiment": "zero_shot",
        "data": str(data),
        "model": str(model),
        "metric": "top1",
        "value": value,
        "interval": [0.3, 0.9],
        "metrics": {"top1": value, "top5": 1.0},
        "n": 6,
        "skipped": {"broken picture": 2},
        "empty": [HOSTILE],
        "expected": [{"value": 0.7, "source": f"paper {HOSTILE}"}],
        "verdict": "7 points below",
        "templates": ["a photo of a {}."],
        "classes": CLASSES,
        "per_class": [
            {"class": "red", "n": 3, "accuracy": 2 / 3},
            {"class": HOSTILE, "n": 1, "accuracy": 0.25},
            {"class": "green", "n": 0, "accuracy": None},
        ],
        "versions": {"jax": "1.2.3", "machine": "a loom"},
        "date": "1805-01-01T00:00:00+00:00",
        "checksums": {"weights": "ab" * 32},
    }
    results.save(folder, result, predictions)
    return folder


def run_folder(folder: Path, last: float = 1.5) -> Path:
    """What `jaxclip train` leaves, stopped in the middle of a line."""
    folder.mkdir()
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": last}, {"step": 2, "top1": 0.4}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 3, "lo')
    (folder / "config.json").write_text(json.dumps({"batch_size": 17, "note": HOSTILE}))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(run folder, evaluation folder, pictures); the model is the planted one."""
    root = tmp_path_factory.mktemp("report")
    for name in ("red", "green"):
        (root / "data" / name).mkdir(parents=True)
        for i in range(3):
            (root / "data" / name / f"{i}.png").write_bytes(planted.png(name))
    model = planted.write(root / "planted.safetensors")
    return (
        run_folder(root / "run"),
        evaluation(root / "evaluation", root / "data", model),
        root / "data",
    )


@pytest.fixture(scope="module")
def page(places) -> Page:
    text = report.report(places[:2])
    found = Page(text)
    found.text = text
    return found


def test_nothing_comes_from_elsewhere(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|url\(|@import", page.text)


def test_hostile_names_are_shown_as_they_are_and_never_run(page):
    assert "<script" not in page.text
    assert any(HOSTILE in text for text in page.texts)


def test_every_picture_inside_is_a_sound_png(page):
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) > 8
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        picture.load()
        assert picture.format == "PNG"


def test_every_section_says_what_the_folders_say(page):
    said = {
        "Result": ("60.00 %", "30.00 % to 90.00 %", "broken picture", "7 points below", "70.00 %"),
        "Curves": ("loss 1.5 at step 2", "top1 40.00 %"),
        "Classes": ("66.67 %", "25.00 %"),
        "Confusion": ("green", "alert"),
        "Right and wrong": ("said: green", "is: red", 'class="right"', 'class="wrong"'),
        "Similarity": ("a photo of a {}.", "rgb("),
        "Attention": ("grid of 4 by 4",),
        "Recipe": ("batch_size", "17"),
        "Surroundings": ("a loom", "1805-01-01", "abab"),
    }
    assert set(said) == set(page.sections)
    for name, words in said.items():
        for word in words:
            assert word in page.sections[name], (name, word)


def test_a_right_picture_is_nearest_to_its_name(page):
    """The planted model knows colours, so a red picture's cosine with "red" is 1."""
    section = page.sections["Similarity"]
    values = [float(x) for x in re.findall(r">(-?\d\.\d\d)</td>", section)]
    assert max(values) == 1.0 and min(values) < 0.9


def test_another_result_gives_another_page(places, tmp_path, page):
    model = json.loads((places[1] / "result.json").read_text())["model"]
    other = evaluation(tmp_path / "other", places[2], Path(model), value=0.61)
    run = run_folder(tmp_path / "run", last=2.5)
    changed = Page(report.report([run, other]))
    for name in ("Result", "Curves"):
        assert changed.sections[name] != page.sections[name]
    assert changed.sections["Confusion"] == page.sections["Confusion"]  # the same counts


def test_a_result_with_a_gap_fails_in_one_line(places, tmp_path, capsys):
    folder = evaluation(tmp_path / "gap", places[2], tmp_path / "no.safetensors")
    result = json.loads((folder / "result.json").read_text()) | {"expected": [{"value": 0.5}]}
    (folder / "result.json").write_text(json.dumps(result))
    assert report.main([str(folder), "--out", str(tmp_path / "x.html")]) == 1
    assert "complete result.json" in capsys.readouterr().err


def test_what_is_gone_is_said_and_the_rest_is_shown(places, tmp_path):
    gone = evaluation(tmp_path / "gone", places[2], tmp_path / "no.safetensors")
    assert "cannot be loaded" in report.report([gone])
    result = json.loads((gone / "result.json").read_text()) | {"data": "no/such/folder"}
    (gone / "result.json").write_text(json.dumps(result))
    text = report.report([gone])
    assert "pictures cannot be shown" in text and "60.00 %" in text


@pytest.mark.usefixtures("quick_compiling")
def test_a_finished_run_on_the_emoji_is_shown(tmp_path, monkeypatch, capsys):
    """As `jaxclip train emoji` leaves it; the scores in the page are those that it told."""
    few = named_pictures.load_emoji("validation").select(np.arange(40))
    monkeypatch.setattr(named_pictures, "load_unseen_artist", lambda: few)
    monkeypatch.setattr(named_pictures, "load_emoji", lambda split: few)
    monkeypatch.setattr(run, "load_emoji", lambda split: few)
    monkeypatch.setattr(run, "data_mesh", functools.partial(data_mesh, jax.devices()[:1]))
    small = ["--model.vision.image-size", "32", "--model.vision.width", "2", "--batch-size", "8"]
    small += ["--model.text.width", "8", "--model.embed-dim", "8", "--steps", "2", "--warmup", "1"]
    out = tmp_path / "emoji"
    assert cli.main(["train", "emoji", *small, "--out", str(out)]) == 0
    capsys.readouterr()
    assert report.main([str(out), "--out", str(tmp_path / "x.html")]) == 0
    page = Page((tmp_path / "x.html").read_text())
    said = {"Unseen artist", "Curves", "Similarity", "Attention", "Recipe"}
    assert set(page.sections) == said
    record = json.loads((out / "result.json").read_text())
    section = page.sections["Unseen artist"]
    for who, column in record["scores"].items():
        assert who in section
        assert all(f"{100 * share:.2f} %" in section for share in column.values())
    assert "40 pictures" in section
    monkeypatch.setattr(embed_model, "TARGET", tmp_path / "embedded.safetensors")
    monkeypatch.setattr(embed_model, "RECORD", tmp_path / "embedded.json")
    for name in ("load_emoji", "load_unseen_artist"):
        monkeypatch.setattr(embed_model, name, lambda *_: few)
    assert embed_model.main([str(out)]) == 0
    flat, _, notes = checkpoint.load(tmp_path / "embedded.safetensors")
    assert notes["scores"] == record["scores"]["model"]
    table = flat[checkpoint.TABLE]
    used = np.unique(tokenize(few.names))
    assert table.shape[0] == VOCAB_SIZE and table[used].any(axis=1).all()
    assert 0 < table.any(axis=1).sum() < 1000  # the captions' tokens alone
    told = json.loads((tmp_path / "embedded.json").read_text())
    assert set(told["scores"]) == {"emoji, held out", "the unseen artist"}
    assert all(row["classes"] == 40 for row in told["scores"].values())
    errors = told["calibration"]["errors"]["emoji, held out"]
    assert errors["after"] < errors["before"]


def test_a_run_on_the_emoji_and_an_evaluation_stand_side_by_side(places, tmp_path):
    run = run_folder(tmp_path / "run")
    record = {"classes": 9, "pictures": 8, "scores": {"model": {"top1": 0.125}}}
    (run / "result.json").write_text(json.dumps(record))
    sections = Page(report.report([run, places[1]])).sections
    assert "12.50 %" in sections["Unseen artist"] and "60.00 %" in sections["Result"]


def test_pictures_of_a_table_are_found_by_the_columns_that_were_asked_for(places, tmp_path):
    rows = [f"{path},{path.parent.name}" for path in sorted(places[2].rglob("*.png"))]
    (tmp_path / "t.csv").write_text("\n".join(["file,kind", *rows]))
    given = ["--data", str(tmp_path / "t.csv"), "--image", "file", "--label", "kind"]
    given += ["--model", json.loads((places[1] / "result.json").read_text())["model"]]
    assert zero_shot.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert 'class="right"' in Page(report.report([tmp_path / "out"])).sections["Right and wrong"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "got none of them"),
        ({"metrics.jsonl": '{"step": 1}\nnonsense\n{"step": 2}\n'}, "line 2"),
        ({"config.json": "[1]"}, "JSON object"),
        ({"config.json": "{"}, "no JSON"),
        ({"result.json": '{"experiment": 1}'}, "is not a result"),
        ({"result.json": '{"scores": 1}'}, "expected scores"),
        ({"result.json": '{"scores": {"model": {"top1": NaN}}}'}, "expected scores"),
        ({"result.json": "[" * 100000}, "no JSON"),
    ],
)
def test_a_folder_of_something_else_fails_in_one_line(files, message, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert report.main([str(tmp_path), "--out", str(tmp_path / "x.html")]) == 1
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
    assert not (tmp_path / "x.html").exists()


def test_the_command_writes_once(places, tmp_path, capsys):
    given = [str(places[0]), "--data", str(places[2]), "--out", str(tmp_path / "x.html")]
    assert report.main(given) == 0
    assert "Curves" in Page((tmp_path / "x.html").read_text()).sections
    assert report.main(given) == 1
    assert "--force" in capsys.readouterr().err
    assert report.main([*given, "--force"]) == 0
