"""CLIP against its supervised twin: the two sides differ in the loss only; the table is exact."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from experiments.recipes import fashion_mnist
from experiments.supervised import __main__ as compare_supervised
from experiments.supervised import data as comparison_data
from experiments.supervised import runs as comparison
from experiments.supervised import table as comparison_table
from experiments.supervised import towers
from experiments.supervised.data import Emoji, FashionMnist, on_white
from experiments.supervised.table import Answers, differences, interval, markdown, row, table
from jaxclip.config import ClipConfig, ResNetConfig, VisionConfig
from jaxclip.data.emoji.pictures import load_emoji, load_unseen_artist, select_names
from jaxclip.evaluation.named_pictures import nearest_pixels
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip
from tests.support import idx

VIT = VisionConfig(image_size=28, patch_size=14, width=16, layers=1, heads=2)
RESNET = ResNetConfig(image_size=32, width=2, layers=(1, 1, 1, 1))
COUNT = 10


def pictures(size: int, count: int = 40) -> towers.LabelledArrays:
    images, labels = idx.pictures(count, 0)
    wide = np.zeros((count, size, size, 3), np.uint8)
    wide[:, :28, :28] = images[..., None]
    return towers.LabelledArrays(wide, labels.astype(np.int64), fashion_mnist.CLASSES)


# The two sides ------------------------------------------------------------------------------------


def test_every_picture_comes_once_an_epoch():
    rows = towers.order(7, 3)
    first, second = ([next(rows) for _ in range(7)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert [next(towers.order(50, 4)) for _ in range(1)] != [next(towers.order(50, 5))]


def test_both_sides_see_the_same_pictures_with_the_same_keys(monkeypatch):
    seen = []

    def recording(mesh, loss_fn, optimizer, *, batch_to_pixels):
        def step(state, batch, key):
            seen[-1].append((batch["image"].copy(), jax.random.key_data(key).tolist()))
            assert batch_to_pixels.func is towers.random_crop
            return state, {"loss": 1.0}

        return step

    monkeypatch.setattr(towers.steps, "sharded_step", recording)
    recipe = towers.Recipe(VIT, pictures_seen=80, batch_size=16, seed=2)
    for side in (lambda *a: towers.from_captions(*a, ["a {}."]), towers.from_labels):
        seen.append([])
        side(recipe, pictures(28))
    assert len(seen[0]) == recipe.steps == 5
    for (image, key), (other, other_key) in zip(*seen, strict=True):
        np.testing.assert_array_equal(image, other)
        assert key == other_key


def test_a_crop_is_the_picture_moved_by_at_most_the_margin():
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3)).astype(np.uint8)
    made = np.asarray(towers.random_crop({"image": images}, jax.random.key(0), size=8))
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    corners = []
    for i in range(6):
        moved = [
            (y, x)
            for y, x in np.ndindex(5, 5)
            if np.allclose(
                made[i], towers.pixels(wide[i : i + 1, y : y + 8, x : x + 8])[0], atol=1e-5
            )
        ]
        assert len(moved) == 1
        corners += moved
    assert len(set(corners)) > 1


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_gradient_of_the_head_is_that_of_softmax_regression(vision):
    model = clip.create(ClipConfig(vision, towers.UNUSED, COUNT), remat="none")
    data = pictures(vision.image_size, 6)
    images = towers.pixels(jnp.asarray(data.images))
    train = {"train": True} if vision is RESNET else {}
    logits, seen = jax.jit(lambda m, x: m.visual.stages(x, **train))(model, images)
    if vision is RESNET:
        logits, _ = logits  # with the new statistics
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    loss_and_grads = jax.jit(jax.value_and_grad(towers.label_loss_fn(graphdef), has_aux=True))
    batch = {"image": images, "tokens": data.labels}
    (loss, (_, new)), grads = loss_and_grads(params, stats, batch, jax.random.key(0))
    slopes = np.asarray(jax.nn.softmax(logits)) - np.eye(COUNT)[data.labels]
    expected = np.asarray(seen["pooled"]).T @ slopes / 6
    visual = grads["visual"]
    head = visual["attnpool"]["c_proj"]["kernel"] if vision is RESNET else visual["proj"]
    np.testing.assert_allclose(head[...], expected, atol=2e-5)
    right = np.asarray(jax.nn.log_softmax(logits))[np.arange(6), data.labels]
    np.testing.assert_allclose(loss, -right.mean(), rtol=1e-4)
    pairs = zip(jax.tree.leaves(stats), jax.tree.leaves(new), strict=True)
    changed = [not np.array_equal(old, leaf) for old, leaf in pairs]
    assert all(changed) and bool(changed) == (vision is RESNET)


@pytest.mark.slow  # three towers are trained
def test_both_sides_learn_and_a_divergence_is_told():
    recipe = towers.Recipe(VIT, 2400, batch_size=20, warmup=5, learning_rate=5e-3)
    data = pictures(28)
    by_labels = towers.encode_all(towers.from_labels(recipe, data), data.images)
    assert (by_labels.argmax(1) == data.labels).mean() > 0.5
    model = towers.from_captions(recipe, data, ["a {}.", "one {}."])
    scores = (
        towers.encode_all(model, data.images)
        @ comparison.build_name_classifier(model, data.classes, ["a {}."]).T
    )
    assert (scores.argmax(1) == data.labels).mean() > 0.5
    wild = towers.Recipe(VIT, 200, batch_size=20, warmup=0, learning_rate=1e30)
    with pytest.raises(ValueError, match="try a lower learning rate"):
        towers.from_labels(wild, data)


# Probes -------------------------------------------------------------------------------------------


def clouds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return (3 * np.eye(3)[labels] + rng.normal(size=(n, 3))).astype(np.float32), labels


def test_few_pictures_are_all_that_a_few_shot_probe_sees():
    train, (test, answers) = clouds(60, 0), clouds(90, 1)
    said = comparison.few_shot_answers(train, test, 4, 0, 3)
    assert (said == answers).mean() > 0.7
    rng = np.random.default_rng([0, 2])
    rows = np.concatenate([rng.permutation(np.flatnonzero(train[1] == c))[:4] for c in range(3)])
    spoilt = np.full_like(train[0], 1e6)
    spoilt[rows] = train[0][rows]
    np.testing.assert_array_equal(
        comparison.few_shot_answers((spoilt, train[1]), test, 4, 0, 3), said
    )
    assert (
        comparison.few_shot_answers(train, test, 4, 1, 3) != said
    ).any()  # another seed, other pictures


def test_a_few_shot_probe_does_not_depend_on_the_scale():
    train, (test, _) = clouds(60, 0), clouds(90, 1)
    scaled = comparison.few_shot_answers((1000 * train[0], train[1]), 1000 * test, 4, 0, 3)
    np.testing.assert_array_equal(scaled, comparison.few_shot_answers(train, test, 4, 0, 3))


def test_too_few_pictures_a_class_are_refused():
    with pytest.raises(ValueError, match="expected 21 pictures in every class"):
        comparison.few_shot_answers(clouds(60, 0), clouds(9, 1)[0], 21, 0, 3)


@pytest.mark.slow  # a whole search
def test_the_full_probe_answers():
    said, penalty = comparison.full_probe(clouds(240, 0), clouds(90, 1)[0], 3)
    assert (said == clouds(90, 1)[1]).mean() > 0.9 and penalty > 0


# The table ----------------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_bootstrap_over_pictures():
    hits = np.random.default_rng(0).random((3, 400)) < np.linspace(0.1, 1, 400)
    by_picture = hits.mean(0)
    rng = np.random.default_rng(7)
    drawn = [rng.choice(by_picture, 400).mean() for _ in range(4000)]
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(interval(by_picture), expected, atol=0.004)
    wider = interval(hits[0].astype(float))  # one seed says less than the mean of three
    assert wider[1] - wider[0] > 1.2 * (expected[1] - expected[0])


@pytest.fixture
def plan(tmp_path: Path) -> comparison.Plan:
    return comparison.Plan(tmp_path, (0, 1), ("vit",), 1.0)


def test_planted_answers_give_exactly_their_table(plan):
    labels = np.arange(100) % 10
    wrong = {("clip", 0): 20, ("clip", 1): 30, ("supervised", 0): 10, ("supervised", 1): 10}
    for (side, seed), count in wrong.items():
        answers = labels.copy()
        answers[:count] = (answers[:count] + 1) % 10
        np.savez(plan.out / f"{side}-vit-{seed}.npz", answers=answers)
    rows = {x.what: x for x in table(plan, FashionMnist, Answers(plan.out, labels))}
    assert set(rows) == {comparison_table.NAMES["zero"], comparison_table.NAMES["supervised"]}
    assert rows[comparison_table.NAMES["zero"]].seeds == (0.8, 0.7)
    assert rows[comparison_table.NAMES["zero"]].mean == pytest.approx(0.75)
    assert rows[comparison_table.NAMES["zero"]].spread == pytest.approx(0.1 / 2**0.5)
    assert rows[comparison_table.NAMES["supervised"]].spread == 0
    (less,) = differences(plan, Answers(plan.out, labels))
    assert less.mean == pytest.approx(-0.15) and less.high < 0
    assert "| 75.0 |" in markdown(list(rows.values()))


def test_a_row_waits_for_all_of_its_seeds(plan):
    np.savez(plan.out / "clip-vit-0.npz", answers=np.zeros(10))
    assert table(plan, FashionMnist, Answers(plan.out, np.zeros(10))) == []
    assert differences(plan, Answers(plan.out, np.zeros(10))) == []


def test_one_seed_has_no_spread():
    assert row("x", "y", np.array([[True, False]])).spread == 0


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Small files and towers in the place of the real ones."""
    registered = idx.write(tmp_path / "files")
    read = fashion_mnist.read
    monkeypatch.setattr(fashion_mnist, "read", lambda a, b: read(a, b, registered))
    monkeypatch.setattr(comparison, "EMOJI_BLOCK", 10)
    monkeypatch.setattr(FashionMnist, "shots", (1, 2))
    monkeypatch.setattr(FashionMnist, "towers", {"vit": VIT, "resnet": RESNET})
    return tmp_path / "files"


def test_the_command_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    given = [str(small), "--out", str(out), "--seeds", "1", "--towers", "vit", "--epochs", "5"]
    labels, told = towers.from_labels, []
    monkeypatch.setattr(towers, "from_labels", lambda *a, **k: (_ for _ in ()).throw(OSError("x")))
    assert compare_supervised.main(given) == 1
    assert sorted(p.name for p in out.glob("*.npz")) == ["clip-vit-0.npz"]
    before = (out / "clip-vit-0.npz").stat().st_mtime_ns
    monkeypatch.setattr(towers, "from_labels", lambda *a, **k: told.append(1) or labels(*a, **k))
    assert compare_supervised.main(given) == 0
    assert told == [1] and (out / "clip-vit-0.npz").stat().st_mtime_ns == before
    record = json.loads((out / "comparison.json").read_text())
    assert len(record["rows"]) == 3 + 2 * 2 + 2 * 2 + 2 and len(record["differences"]) == 1
    assert (out / "few_shot.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text() in capsys.readouterr().out.replace("\n\n\n", "\n\n")
    assert compare_supervised.main([*given[:-1], "6"]) == 1
    assert "another recipe" in capsys.readouterr().err


def test_kept_runs_are_of_the_data_and_the_weights_that_are_there(small, tmp_path, monkeypatch):
    """Two stand-ins: a run that leaves weights, and one that reads them."""
    weights, worked = tmp_path / "w.safetensors", []

    def train(told):
        worked.append("train")
        weights.write_bytes(b"trained")
        return {}

    def probe(told):
        worked.append("probe")
        return {}

    made = [comparison.Run("train", {}, train, (weights,))]
    made.append(comparison.Run("probe", {}, probe, (weights,)))
    monkeypatch.setattr(compare_supervised, "list_runs", lambda plan, data: made)
    plan = comparison.Plan(tmp_path, (0,), ("vit",), 1.0)
    data = FashionMnist(small)
    for _ in range(2):
        compare_supervised.run_missing(plan, data)
    assert worked == ["train", "probe"]
    weights.write_bytes(b"of another")
    compare_supervised.run_missing(plan, data)
    assert worked == ["train", "probe", "train"]  # the same weights again, so the probe stays
    weights.unlink()
    (tmp_path / "train.npz").unlink()
    compare_supervised.run_missing(plan, data)
    assert worked == ["train", "probe", "train", "train"]
    made[1] = dataclasses.replace(made[1], files=(weights, small / "train-images-idx3-ubyte.gz"))
    compare_supervised.run_missing(plan, data)
    assert worked[4:] == ["probe"]
    other = FashionMnist(small)
    other.splits["train"] = (255 - data.splits["train"][0], data.splits["train"][1])
    with pytest.raises(ValueError, match="of other data"):
        compare_supervised.run_missing(plan, other)


def test_runs_name_the_weights_that_they_depend_on(small, tmp_path):
    plan = comparison.Plan(tmp_path, (0,), ("vit",), 1.0)
    found = {
        run.name: [x.name for x in run.files]
        for run in comparison.list_runs(plan, FashionMnist(small))
    }
    assert found["probe-clip-vit-0"] == found["clip-vit-0"] == ["clip-vit-0.safetensors"]
    assert found["emoji"] == ["emoji.safetensors"] and found["pixels-0"] == []


@pytest.mark.parametrize("flags", [["--epochs", "-1"], ["--epochs", "nan"]])
def test_senseless_numbers_fail_in_one_line(flags, small, tmp_path, capsys):
    assert compare_supervised.main([str(small), "--out", str(tmp_path / "o"), *flags]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_seeds_that_are_none_are_a_usage_error(small, tmp_path, capsys):
    flags = ["--out", str(tmp_path / "o"), "--seeds", "0"]
    with pytest.raises(SystemExit, match="2"):
        compare_supervised.main([str(small), *flags])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_without_the_files_fails_in_one_line(tmp_path, capsys):
    assert compare_supervised.main([str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "no such file" in capsys.readouterr().err


# The drawings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawings() -> Emoji:
    return Emoji()


def test_the_drawings_are_those_that_the_embedded_model_is_asked_about(drawings):
    assert len(drawings.labels("train")) == 5881 and len(drawings.labels("test")) == 1556
    assert len(drawings.candidates) == 1556 and len(drawings.classes) == 2013
    names = drawings.splits["test"].names
    assert [drawings.classes[i] for i in drawings.labels("test")] == list(names)


def test_only_candidates_are_answered(drawings):
    scores = np.random.default_rng(0).normal(size=(3, 2013))
    barred = np.setdiff1d(np.arange(2013), drawings.candidates)
    scores[:, barred] += 100
    by_hand = [max(drawings.candidates, key=lambda c, row=row: row[c]) for row in scores]
    assert drawings.answers(scores).tolist() == by_hand


def test_a_drawing_is_asked_about_as_the_safe_policy_sees_it(drawings):
    drawing = drawings.splits["test"].images[5]
    expected = Preprocess(32).safe(Image.fromarray(drawing))
    seen = on_white(drawing, 32)
    np.testing.assert_allclose(towers.pixels(seen[None])[0], expected, atol=1e-6)  # one rounding
    np.testing.assert_array_equal(drawings.at("test", 32).images[5], seen)


def test_a_batch_of_drawings_holds_no_name_twice_and_both_sides_see_the_same(drawings):
    data = drawings.at("train", 32)
    first, second = (
        [next(batches) for _ in range(3)] for batches in (data.batches(64, 1), data.batches(64, 1))
    )
    for (inputs, labels), (again, _) in zip(first, second, strict=True):
        assert len(set(labels)) == 64
        assert inputs["drawings"].shape == (64, 64, 64, 4)
        np.testing.assert_array_equal(inputs["drawings"], again["drawings"])
    for drawing, label in zip(inputs["drawings"], labels, strict=True):
        of_name = data.drawings.images[data.labels == label]
        assert (of_name == drawing).all((1, 2, 3)).any()


def test_the_nearest_drawing_is_the_floor_that_is_told_elsewhere(drawings):
    answers = comparison.nearest_floor(drawings).work(lambda *_: None)["nearest"]
    there = select_names(drawings.splits["train"], drawings.splits["test"].names)
    floor = nearest_pixels(drawings.splits["test"], there)["top1"]
    assert (answers == drawings.labels("test")).mean() == pytest.approx(floor, abs=0.002)


def test_the_command_runs_on_the_drawings(tmp_path, monkeypatch, capsys):
    few, asked = (
        load_emoji("train").select(np.arange(300)),
        load_unseen_artist().select(np.arange(100)),
    )
    monkeypatch.setattr(comparison_data, "load_emoji", lambda split: few)
    monkeypatch.setattr(comparison_data, "load_unseen_artist", lambda: asked)
    monkeypatch.setattr(Emoji, "towers", {"vit": dataclasses.replace(VIT, image_size=14)})
    monkeypatch.setattr(
        comparison, "fixed_penalty_scores", lambda train, test, n: np.eye(n)[[7] * len(test)]
    )
    out = tmp_path / "out"
    given = ["emoji", "--out", str(out), "--seeds", "1", "--towers", "vit", "--epochs", "1"]
    assert compare_supervised.main(given) == 0
    rows = {x["what"]: x["mean"] for x in json.loads((out / "comparison.json").read_text())["rows"]}
    names = ("supervised", "zero", "clip_full", "supervised_full", "nearest")
    assert list(rows) == [comparison_table.NAMES[name] for name in names]
    assert rows[comparison_table.NAMES["zero"]] < 0.1 < rows[comparison_table.NAMES["nearest"]]
    assert not (out / "few_shot.png").exists()
    assert "few_shot" not in capsys.readouterr().out


# The page -----------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["supervised", "supervised_emoji"])
def test_the_numbers_of_the_page_are_the_records(name):
    record = json.loads((DOCS / f"{name}.json").read_text())
    page = (DOCS / "supervised.md").read_text()
    for said in (*record["rows"], *record["differences"]):
        spread = said.pop("spread")
        line = comparison_table.Row(**{**said, "seeds": tuple(said["seeds"])})
        if "a class, features" in line.what:  # the table of few-shot probes has mean and spread
            assert f"{100 * line.mean:.1f} ± {100 * spread:.1f}" in page
            continue
        assert markdown([line]).splitlines()[-1] in page
    assert record["date"][:4] in page and record["versions"]["jax"] in page
