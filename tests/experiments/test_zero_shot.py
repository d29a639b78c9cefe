"""Zero-shot from the command line to the table: a planted model gives exactly the planted table."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import pets_humans, zero_shot
from experiments.lib import common
from jaxclip import checkpoint
from jaxclip.config import TextConfig
from jaxclip.evaluation import protocol, results
from jaxclip.models import clip, parameters
from tests.support import planted

NAMES = list(planted.COLOURS)
# the command sorts the classes of a folder
ORDER = sorted(range(len(NAMES)), key=lambda i: NAMES[i])
TABLE = planted.TABLE[np.ix_(ORDER, ORDER)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("planted") / "model.safetensors")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return planted.class_folders(tmp_path / "data", planted.rows())


def command(model: Path, data: object, out: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--model", str(model), "--out", str(out), *more]


def fails(capsys: pytest.CaptureFixture[str], given: list[str], code: int = 1) -> str:
    """The single line that a failing command told."""
    capsys.readouterr()
    try:
        came = zero_shot.main(given)
    except SystemExit as stop:
        came = stop.code
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zero_shot:")]
    assert came == code and len(told) == 1, told
    return told[0]


@pytest.mark.parametrize("batch", ["4", "7", "64"])
def test_the_planted_confusion_comes_out_exactly(model, data, tmp_path, batch, capsys):
    """4 and 7 leave a partial batch, 64 is never full."""
    out = tmp_path / "out"
    given = command(model, data, out, "--batch-size", batch, "--prompts", "a {}.", "my {}")
    assert zero_shot.main(given) == 0
    result, predictions = results.load(out)
    assert predictions is not None
    assert np.array_equal(predictions["confusion"], TABLE)
    assert result["classes"] == sorted(NAMES)
    n, hits = TABLE.sum(), np.trace(TABLE)
    assert result["n"] == n and result["value"] == result["metrics"]["top1"] == hits / n
    assert result["interval"][0] < result["value"] < result["interval"][1]
    seen = TABLE.sum(1) > 0
    means = np.diag(TABLE)[seen] / TABLE.sum(1)[seen]
    assert result["metrics"]["mean_per_class"] == pytest.approx(means.mean(), abs=1e-15)
    assert result["empty"] == ["white"]
    per_class = {row["class"]: (row["n"], row["accuracy"]) for row in result["per_class"]}
    assert per_class["red"] == (10, 0.7) and per_class["white"] == (0, None)
    assert np.array_equal(predictions["label"], np.repeat(range(6), TABLE.sum(1)))
    answer = np.array(sorted(NAMES))[predictions["top"][:, 0]]
    for where, said in zip(predictions["where"], answer, strict=True):
        with Image.open(where) as picture:
            assert planted.COLOURS[said] == picture.getpixel((0, 0))
    assert predictions["score"][:, 0] == pytest.approx(1, abs=1e-5)
    with Image.open(out / "confusion.png") as picture:
        assert picture.size[0] > 100
    assert not (out / "parts").exists()
    assert "mean_per_class" in capsys.readouterr().out


def test_the_result_file_says_what_it_depends_on(model, data, tmp_path):
    for number, more in enumerate(([], ["--prompts", "a {}"], ["--policy", "safe"])):
        assert zero_shot.main(command(model, data, tmp_path / str(number), *more)) == 0
    plain, prompted, safe = (results.load(tmp_path / str(i))[0]["checksums"] for i in range(3))
    changed = [{k for k in plain if plain[k] != other[k]} for other in (prompted, safe)]
    assert changed == [{"prompts"}, {"preprocessing"}]
    assert all(len(value) == 64 for value in plain.values())
    result = results.load(tmp_path / "0")[0]
    assert {"jax", "python", "machine", "backend"} <= set(result["versions"])
    assert "T" in result["date"] and result["verdict"].startswith("nothing is published")


def test_broken_pictures_and_labels_out_of_range_are_counted_and_left_out(model, tmp_path, capsys):
    """The table of the others is as if they had never been there."""
    (tmp_path / "x").mkdir()
    lines = []
    for number, (label, colour) in enumerate(planted.rows()):
        (tmp_path / "x" / f"{number}.png").write_bytes(planted.png(colour))
        lines.append(f"x/{number}.png,{NAMES.index(label)}")
    (tmp_path / "x" / "damaged.png").write_bytes(planted.png("red")[:40])
    lines[3:3] = ["x/damaged.png,0", "x/gone.png,1", "x/0.png,6", "x/1.png,-1"]
    (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(lines) + "\n")
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    out, given = tmp_path / "out", command(model, tmp_path / "t.csv", tmp_path / "out")
    assert zero_shot.main(given) == 0
    result, predictions = results.load(out)
    assert result["skipped"] == {"broken picture": 2, "label out of range": 2}
    assert np.array_equal(predictions["confusion"], planted.TABLE)
    assert "left out: 2, broken picture" in capsys.readouterr().out
    limited = command(model, tmp_path / "t.csv", tmp_path / "limited", "--skip-limit", "3")
    assert "more than 3 pairs skipped" in fails(capsys, limited)
    assert not (tmp_path / "limited" / "result.json").exists()


def test_a_run_that_was_interrupted_goes_on_to_the_same_result(model, data, tmp_path, monkeypatch):
    """Stopped after three of seven blocks, with a skip among the first; only the rest is asked."""
    (data / "black" / "broken.png").write_bytes(b"no picture")
    given = command(model, data, tmp_path / "whole", "--batch-size", "7")
    assert zero_shot.main(given) == 0
    asked: list[int] = []
    honest = protocol.classify_block

    def counting(block, matrix):
        asked.append(len(block.items))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return honest(block, matrix)

    monkeypatch.setattr(protocol, "classify_block", counting)
    given = command(model, data, tmp_path / "parts", "--batch-size", "7")
    assert zero_shot.main(given) == 1
    assert len(list((tmp_path / "parts" / "parts").glob("*.npz"))) == 3
    assert zero_shot.main(given) == 0
    assert len(asked) == 4 + 4
    (whole, a), (again, b) = results.load(tmp_path / "whole"), results.load(tmp_path / "parts")
    assert whole["skipped"] == again["skipped"] == {"broken picture": 1}
    assert all(np.array_equal(a[name], b[name]) for name in results.ARRAYS)
    assert whole["metrics"] == again["metrics"]


def test_half_a_run_of_another_kind_and_a_result_are_not_overwritten(model, data, tmp_path, capsys):
    given = command(model, data, tmp_path / "out")
    assert zero_shot.main(given) == 0
    date = results.load(tmp_path / "out")[0]["date"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "classify_block", None)  # the same question is not asked again
        assert zero_shot.main(given) == 0
    assert results.load(tmp_path / "out")[0]["date"] == date
    assert "--force" in fails(capsys, [*given, "--prompts", "a {}"])
    assert zero_shot.main([*given, "--prompts", "a {}", "--force"]) == 0
    assert results.load(tmp_path / "out")[0]["templates"] == ["a {}"]
    (tmp_path / "half" / "parts").mkdir(parents=True)
    (tmp_path / "half" / "parts" / "key").write_text("other")
    (tmp_path / "half" / "parts" / "00000000.npz").touch()
    assert "half a run of another kind" in fails(capsys, command(model, data, tmp_path / "half"))


def test_mistakes_take_one_line(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    given = command(model, data, out)
    assert "expected exactly one slot" in fails(capsys, [*given, "--prompts", "a photo"])
    assert "expected exactly one slot" in fails(capsys, [*given, "--prompts", "{} {x}"])
    assert "are not among the 10 expected" in fails(capsys, [*given, "--dataset", "cifar10"])
    assert "one of celeba, cifar10" in fails(capsys, [*given, "--dataset", "cifar11"])
    assert "got 'x'" in fails(capsys, [*given, "--template-set", "x"])
    assert "--batch-size" in fails(capsys, [*given, "--batch-size", "0"], 2)
    assert "nothing is there" in fails(capsys, command(model, tmp_path / "no", out))
    assert "no model is named" in fails(capsys, command(Path("no-such"), data, out))
    assert "--colour" in fails(capsys, [*given, "--colour"], 2)
    for folder in data.iterdir():
        shutil.rmtree(folder)
        folder.mkdir()
    assert "no pictures in class folders" in fails(capsys, given)
    for colour in NAMES:
        (data / colour / "1.png").write_bytes(b"")
    assert "nothing to measure" in fails(capsys, given)
    assert not (out / "result.json").exists()


def test_classes_and_prompts_from_a_file_of_ones_own(model, data, tmp_path):
    """In that file's order; a class more than the folder has is one without pictures."""
    record = {"classes": [*NAMES, "rocket"], "templates": ["my {}"], "metric": "mean_per_class"}
    (tmp_path / "own.json").write_text(json.dumps(record))
    given = command(model, data, tmp_path / "out", "--dataset", str(tmp_path / "own.json"))
    # the rocket's words are no colour, so its vector is nothing: refused, not counted
    assert zero_shot.main(given) == 1
    record["classes"] = NAMES
    (tmp_path / "own.json").write_text(json.dumps(record))
    assert zero_shot.main(given) == 0
    result, predictions = results.load(tmp_path / "out")
    assert np.array_equal(predictions["confusion"], planted.TABLE)
    assert result["metric"] == "mean_per_class"
    assert result["value"] == result["metrics"]["mean_per_class"]


def test_the_pets_stand_beside_the_published_people(model, data, tmp_path, monkeypatch, capsys):
    """With the planted classes in place of the breeds, which the planted model cannot know."""
    from jaxclip.evaluation import prompts

    pets = prompts.load("oxford_pets")
    assert (len(pets.classes), pets.metric) == (37, "mean_per_class")
    known = prompts.Prompts(tuple(NAMES), pets.templates, pets.metric)
    monkeypatch.setattr(prompts, "load", lambda *_: known)
    assert pets_humans.main(command(model, data, tmp_path / "out")) == 0
    result = results.load(tmp_path / "out")[0]
    rows = {row["who"]: row["percent"] for row in result["table"]["rows"]}
    assert rows["zero-shot human"] == [53.7, 57.0] and rows["zero-shot CLIP"] == [93.5, 93.5]
    assert rows["one-shot human"] == [75.7, 80.3] and rows["two-shot human"] == [75.7, 85.0]
    assert rows[f"ours, {model}"] == [100 * result["metrics"]["mean_per_class"]]
    assert capsys.readouterr().out.count("measured here") == 1


def test_published_figures_are_found_by_model_and_metric():
    figures = common.published("cifar100", "ViT-L/14", "top1")
    assert [round(100 * row["value"], 2) for row in figures] == [80.5, 77.9, 75.82]
    assert common.published("cifar100", "ViT-L/14", "mean_per_class") == []
    assert common.published("cifar100", "emoji", "top1") == []
    told = results.verdict(0.758, (0.75, 0.766), figures)
    assert told.count("outside") == 2 and "75.8 (re-run" in told and "-4.7 points" in told
    (imagenet, _) = common.published("imagenet", "ViT-L/14@336px", "top1")
    assert imagenet["value"] == pytest.approx(0.762)
    table1 = {"ViT-L/14": (59.2, 43.3, 42.2), "RN50x4": (52.8, 38.1, 37.3)}
    table1 |= {"RN50x64": (56.4, 39.5, 38.4), "RN50x16": (52.7, 37.4, 36.3)}
    for name, percents in table1.items():
        for size, percent in zip((100, 1000, 2000), percents, strict=True):
            (row,) = common.published(f"celeba_{size}", name, "top1")
            assert row["value"] == pytest.approx(percent / 100)


# The same pictures from every place ---------------------------------------------------------------

BUILDER = """
import io
import tensorflow_datasets as tfds
from tests.support import planted

class Planted(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=sorted(planted.COLOURS))}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))
    def _split_generators(self, manager):
        return {"test": self._generate_examples()}
    def _generate_examples(self):
        for i, (label, colour) in enumerate(planted.rows()):
            yield i, {"image": io.BytesIO(planted.png(colour)), "label": label}
"""
PREPARE = """
import sys
from made import Planted
from experiments import zero_shot
Planted(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
code = zero_shot.main(sys.argv[2:])
assert "tensorflow" not in sys.modules
raise SystemExit(code)
"""


def test_a_tfds_name_a_folder_and_tar_shards_give_the_same_result(model, data, tmp_path):
    """tfds in a process of its own, which shows at its end that TensorFlow was not imported."""
    pytest.importorskip("tensorflow_datasets")
    members: dict[str, bytes] = {}
    for i, (label, colour) in enumerate(planted.rows()):
        members |= {f"{i:03d}.png": planted.png(colour), f"{i:03d}.cls": label.encode()}
    half = list(members)[:40]
    (tmp_path / "shards").mkdir()
    planted.shard(tmp_path / "shards" / "0.tar", {name: members[name] for name in half})
    rest = {name: content for name, content in members.items() if name not in half}
    planted.shard(tmp_path / "shards" / "1.tar", rest)
    (tmp_path / "shards" / "classnames.txt").write_text("\n".join(sorted(NAMES)))
    assert zero_shot.main(command(model, data, tmp_path / "folder")) == 0
    assert zero_shot.main(command(model, tmp_path / "shards", tmp_path / "tar")) == 0
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "__init__.py").write_text(BUILDER)
    (tmp_path / "prepare.py").write_text(PREPARE)
    prepared = str(tmp_path / "prepared")
    given = command(model, "tfds:planted:test", tmp_path / "tfds", "--data-dir", prepared)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "prepare.py"), prepared, *given],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {kind: results.load(tmp_path / kind) for kind in ("folder", "tar", "tfds")}
    one = found["folder"]
    for result, predictions in found.values():
        assert np.array_equal(predictions["confusion"], TABLE)
        same = ("metrics", "interval", "per_class", "classes", "checksums", "n", "empty")
        assert all(result[key] == one[0][key] for key in same)
        order = np.lexsort((predictions["top"][:, 0], predictions["label"]))
        first = np.lexsort((one[1]["top"][:, 0], one[1]["label"]))
        assert np.allclose(predictions["score"][order], one[1]["score"][first], atol=1e-6)


def test_imagenet_folders_by_wordnet_id_are_asked_with_the_released_names(tmp_path):
    """A thousand classes, three folders, a random model: the labels are the released places."""
    config = dataclasses.replace(planted.CONFIG, text=TextConfig(16, 1, 2, 77, 49408))
    path = tmp_path / "random.safetensors"
    checkpoint.save(path, parameters.to_flat(clip.create(config, remat="none")), config, {})
    for folder, colour in (("n01440764", "red"), ("n02123045", "blue"), ("n15075141", "white")):
        (tmp_path / "val" / folder).mkdir(parents=True)
        (tmp_path / "val" / folder / "1.png").write_bytes(planted.png(colour))
    given = command(path, tmp_path / "val", tmp_path / "out", "--dataset", "imagenet")
    assert zero_shot.main([*given, "--template-set", "one"]) == 0
    result, predictions = results.load(tmp_path / "out")
    assert predictions["label"].tolist() == [0, 281, 999]
    assert [result["classes"][i] for i in (0, 281, 999)] == ["tench", "tabby cat", "toilet paper"]
    assert predictions["confusion"].shape == (1000, 1000) and len(result["empty"]) == 997
