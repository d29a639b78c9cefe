"""`jaxclip train` on pictures with captions: every source, stopping, fine-tuning, mistakes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import train as recipes
from jaxclip import checkpoint, cli
from jaxclip.cli import run
from jaxclip.config import RELEASED
from jaxclip.data.emoji.icons import HELD_OUT
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.data.stream import Skips
from jaxclip.evaluation import named_pictures
from jaxclip.training.recipe import Recipe, presets
from jaxclip.training.sharding import data_mesh
from tests.support import icons
from tests.support.command import fails
from tests.support.pictures import png
from tests.support.planted import shard
from tests.support.ports import PATIENCE, free_port
from tests.support.tars import header

pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs", "one_device")
SMALL = ["--model.vision.image-size", "32", "--model.vision.width", "2", "--model.text.width", "8"]
SMALL += ["--model.embed-dim", "8", "--batch-size", "8", "--log-every", "1", "--warmup", "1"]


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight take three times as long to compile for."""
    one = functools.partial(data_mesh, jax.devices()[:1])
    monkeypatch.setattr(run, "data_mesh", one)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same sixteen pictures in a folder, in a table and in a shard."""
    root = tmp_path_factory.mktemp("data")
    (root / "folder").mkdir()
    members: dict[str, bytes] = {}
    lines = ["image,caption"]
    for i in range(16):
        content, caption = png(i, 40, 36), f"picture {i}"
        (root / "folder" / f"{i:02}.png").write_bytes(content)
        (root / "folder" / f"{i:02}.txt").write_text(caption)
        members |= {f"{i:02}.png": content, f"{i:02}.txt": caption.encode()}
        lines.append(f"folder/{i:02}.png,{caption}")
    (root / "table.csv").write_text("\n".join(lines))
    return {
        "folder": root / "folder",
        "table": root / "table.csv",
        "tar": shard(root / "pairs.tar", members),
    }


def train(out: Path, *arguments: str | Path, steps: int = 3) -> int:
    flags = ["--out", str(out), "--steps", str(steps), *SMALL]
    return cli.main(["train", *map(str, arguments), *flags])


def result(out: Path, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    return dict(checkpoint.load(out / name)[0])


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_same_pictures_from_any_place_give_the_same_model(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    models: dict[str, Any] = {}
    for kind, place in data.items():
        assert train(tmp_path / kind, place) == 0
        models[kind] = result(tmp_path / kind)
        assert (tmp_path / kind / "loss.png").is_file()
    for kind in ("table", "tar"):
        assert all(np.array_equal(models[kind][n], models["folder"][n]) for n in models[kind])
    assert train(tmp_path / "mixed", data["folder"], data["tar"], "--weights", "3", "1") == 0
    assert losses(tmp_path / "mixed") != losses(tmp_path / "folder")


def test_a_run_is_stopped_by_sigterm_and_gone_on_with(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    """As a cluster stops it; what comes out is what an undisturbed run makes, to the bit."""
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}

    def command(out: Path, *more: str) -> list[str]:
        flags = ["--out", str(out), "--steps", "40", *SMALL, *more]
        return [sys.executable, "-m", "jaxclip", "train", str(data["tar"]), *flags]

    subprocess.run(command(tmp_path / "whole"), env=env, check=True, capture_output=True)
    out = tmp_path / "stopped"
    pipe = subprocess.PIPE
    with subprocess.Popen(command(out), env=env, stderr=pipe, stdout=pipe, text=True) as process:
        while not (out / "metrics.jsonl").is_file() or not losses(out):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate()
    assert process.returncode == 1, told
    assert f"of 40; to continue: jaxclip train --out {out} --resume\n" in told
    assert "Traceback" not in told and not (out / "model.safetensors").exists()
    again = [sys.executable, "-m", "jaxclip", "train", "--out", str(out), "--resume"]
    subprocess.run(again, env=env, check=True, capture_output=True)
    whole, stopped = result(tmp_path / "whole"), result(out)
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(out)


def process(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`jaxclip train` on one CPU device."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        "-m",
        "jaxclip",
        "train",
        str(data),
        "--out",
        str(out),
        *SMALL,
        *more,
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def pair(data: Path, out: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Two that train together."""
    where = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    return [process(data, out, *more, *where, str(i)) for i in (0, 1)]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Their exit codes and all that they told; none of them stays."""
    try:
        told = [each.communicate(timeout=PATIENCE)[1] for each in processes]
    finally:
        for each in processes:
            each.kill()
    return [each.returncode for each in processes], "\n".join(told)


@pytest.mark.slow  # test_distributed.py has two processes always
def test_two_processes_train_as_one(tmp_path: Path, data: dict[str, Path]) -> None:
    flags = ["--steps", "3", "--retrieval", str(data["tar"]), "--evaluate-every", "2"]
    codes, told = ended(pair(data["folder"], tmp_path / "two", *flags))
    assert codes == [0, 0], told
    assert ended([process(data["folder"], tmp_path / "one", *flags)])[0] == [0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(losses(tmp_path / "two")) == 3  # one process wrote, and not both


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_when_one_is_told(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    out = tmp_path / "run"
    two = pair(data["folder"], out, "--steps", "300")
    while not (out / "metrics.jsonl").is_file() or not losses(out):
        assert [each.poll() for each in two] == [None, None]
    two[1].send_signal(signal.SIGTERM)
    codes, told = ended(two)
    assert codes == [1, 1] and told.count("of 300; to continue") == 2, told
    reached = len(losses(out))
    assert 0 < reached < 300
    codes, told = ended(pair(data["folder"], out, "--steps", "300", "--resume"))
    assert codes == [0, 0], told
    assert len(losses(out)) == 300


def test_fine_tuning_with_locked_parts_average_and_tensorboard(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    assert train(tmp_path / "first", data["folder"]) == 0
    tuning = ["--start", tmp_path / "first", "--rates", r"^visual\.=0", "--average", "0.5"]
    out = tmp_path / "second"
    assert train(out, data["folder"], *tuning, "--tensorboard", "--batch-size", "4") == 0
    before, after = result(tmp_path / "first"), result(out)
    average = result(out, "average.safetensors")
    for name in before:
        locked = name.startswith("visual.") and not name.endswith((".mean", ".var"))
        assert np.array_equal(before[name], after[name]) == locked, name
    moved = "text.token_embedding.embedding"
    low, high = np.minimum(before[moved], after[moved]), np.maximum(before[moved], after[moved])
    assert not np.array_equal(average[moved], after[moved])
    assert (low - 1e-6 <= average[moved]).mean() > 0.9 < (average[moved] <= high + 1e-6).mean()
    assert _tensorboard(out / "tensorboard") == pytest.approx(dict(enumerate(losses(out), 1)))


def _tensorboard(folder: Path) -> dict[int, float]:
    """{step: loss} as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def test_what_is_held_out_is_asked_on_a_schedule(
    tmp_path: Path, data: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(("ant", "bee", "ant", "cow")):
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / name / f"{i}.png").write_bytes(png(i))
    asked = ["--zero-shot", tmp_path / "classes", "--retrieval", data["tar"]]
    assert train(tmp_path / "run", data["folder"], *asked, "--evaluate-every", "2") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    scores = [line for line in map(json.loads, lines) if "top1" in line]
    assert [line["step"] for line in scores] == [2, 3]
    assert all(0 <= line["image_to_text_r10"] <= 1 for line in scores)
    assert "step 2: held out: top-1" in capsys.readouterr().err


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    """Icons of 64 pixels a side, as the emoji have."""
    names = sorted(set(load_emoji("train").names))
    rows = [("painter", f"thing {i}", 0, 0) for i in range(8)]
    rows += [("lines", f"common {i}", 1, i % 2) for i in range(8)]
    rows += [("lines", f"rare {i}", 1, 2 + i % 2) for i in range(4)]
    rows += [(artist, name, 1, 0) for artist in HELD_OUT for name in (*names[:3], "common 1")]
    return icons.write_icons(tmp_path / "icons.zip", rows, size=64)


def test_emoji_and_icons_train_together_and_resume(
    tmp_path: Path, zipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    few = named_pictures.load_unseen_artist().select(np.arange(20))
    monkeypatch.setattr(named_pictures, "load_unseen_artist", lambda: few)
    monkeypatch.setattr(named_pictures, "nearest_pixels", lambda *_: {"top1": 0.0, "top5": 0.0})
    mixed = [*SMALL, "--batch-size", "24", "--save-every", "1", "--evaluate-every", "2"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    data = ["train", "emoji", str(zipped)]
    assert cli.main([*data, *mixed, "--steps", "3", "--out", str(whole)]) == 0
    assert len(json.loads((whole / "data.json").read_text())["listings"]) == 2  # emoji, the zip
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"top1", *(f"{artist}_top1" for artist in HELD_OUT)} <= set(lines[-1])
    assert "unseen artist, 20 names" in capsys.readouterr().out
    monkeypatch.setattr(run, "stoppable", lambda: contextlib.nullcontext(lambda step: step == 2))
    assert cli.main([*data, *mixed, "--steps", "3", "--out", str(halved)]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(named_pictures, "load_unseen_artist", lambda: few)
    one = functools.partial(data_mesh, jax.devices()[:1])
    monkeypatch.setattr(run, "data_mesh", one)
    assert cli.main(["train", "--resume", "--out", str(halved)]) == 0
    first, second = (checkpoint.load(x / "model.safetensors")[0] for x in (whole, halved))
    assert all((first[name] == second[name]).all() for name in first)


def test_mistakes_take_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: dict[str, Path]
) -> None:
    folder, out = str(data["folder"]), ["--out", str(tmp_path / "run")]
    assert "nothing is there" in fails(capsys, 2, "train", "photos", *out)
    assert "beside one zip of icons" in fails(capsys, 2, "train", "emoji", folder, *out)
    assert "--weights" in fails(capsys, 2, "train", folder, "--weights", "1", "2", *out)
    assert "ViT-B/33" in fails(capsys, 2, "train", folder, "--preset", "ViT-B/33", *out)
    assert "tfds:NAME:SPLIT" in fails(capsys, 2, "train", "tfds:mnist", *out)
    assert "no_such_set" in fails(capsys, 1, "train", "tfds:no_such_set:train", *out)
    assert "--process: expected a whole number from 0 to 0" in fails(
        capsys, 2, "train", folder, "--coordinator", "localhost:1", "--process", "2", *out
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    assert "no pictures" in fails(capsys, 1, "train", str(tmp_path / "empty"), *out)
    (tmp_path / "broken").mkdir()
    for i in range(9):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"no picture")
        (tmp_path / "broken" / f"{i}.txt").write_text("a caption")
    assert train(tmp_path / "run", tmp_path / "broken", "--skip-limit", "5") == 1
    assert "more than 5 pairs skipped" in capsys.readouterr().err


def test_bad_records_of_any_data_are_skipped_counted_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: dict[str, Path]
) -> None:
    """Each was a traceback: a caption that is a number, an open quote, an impossible tar entry."""
    pictures = data["folder"]
    lines = [f'{{"image": "{pictures}/{i:02}.png", "caption": "{i}"}}' for i in range(8)]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, '{"image": "x.png", "caption": 5}']))
    rows = [f"{pictures}/{i:02}.png,caption {i}" for i in range(8)]
    text = "\n".join(["image,caption", 'x.png,"open', *rows, "y.png," + "x" * 200_000])
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "s.tar").write_bytes(header("evil.png", 2**50) + data["tar"].read_bytes())
    told = {"t.jsonl": ["line 9"], "t.csv": ["line 2", "line 11"], "s.tar": ["evil.png"]}
    for name, places in told.items():
        assert train(tmp_path / "run", tmp_path / name, "--force") == 0
        err = capsys.readouterr().err
        assert all(f"{name}, {place}: expected" in err or f"{place}: " in err for place in places)
        assert err.count("skipped, ") >= len(places) and "Traceback" not in err
        assert train(tmp_path / "run", tmp_path / name, "--force", "--skip-limit", "0") == 1
        assert "more than 0 pairs skipped" in capsys.readouterr().err.splitlines()[-1]


def test_one_missing_picture_of_twenty_never_ends_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: dict[str, Path]
) -> None:
    rows = [f"{data['folder']}/{i:02}.png,caption {i}" for i in range(16)]
    rows += [f"{data['folder']}/{i:02}.png,again {i}" for i in range(4)] + ["gone.png,missing"]
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", *rows]))
    assert train(tmp_path / "run", tmp_path / "t.csv", "--skip-limit", "1", steps=50) == 0
    assert capsys.readouterr().err.count("gone.png") == 1


def test_pictures_without_captions_take_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for i in range(25):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    out = ["--out", str(tmp_path / "run")]
    said = fails(capsys, 1, "train", f"captions:{tmp_path}", *out)
    assert "25 of 25 pictures have no caption file beside them: expected x.txt beside x.jpg" in said
    os.mkfifo(tmp_path / "p.csv")
    assert "got a named pipe" in fails(capsys, 2, "train", str(tmp_path / "p.csv"), *out)


def test_a_run_goes_on_with_its_own_data_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: dict[str, Path]
) -> None:
    assert train(tmp_path / "run", data["folder"]) == 0
    capsys.readouterr()
    assert train(tmp_path / "run", data["tar"], "--resume") == 2
    assert f"data: the run has {data['folder']}, got {data['tar']}" in capsys.readouterr().err
    assert train(tmp_path / "run", data["folder"], "--resume", steps=4) == 2
    assert "--steps: the run has 3, got 4; the run in" in capsys.readouterr().err
    assert train(tmp_path / "run", data["folder"], "--force", steps=2) == 0
    assert len(losses(tmp_path / "run")) == 2


def add_a_pair(data: dict[str, Path]) -> None:
    (data["folder"] / "16.png").write_bytes(png(16))
    (data["folder"] / "16.txt").write_text("one more")


def change_a_caption(data: dict[str, Path]) -> None:
    (data["folder"] / "03.txt").write_text("another")


def change_a_line(data: dict[str, Path]) -> None:
    data["table"].write_text(data["table"].read_text().replace("picture 3", "another"))


def replace_the_shard(data: dict[str, Path]) -> None:
    members = {f"{i:02}.png": png(i, 40, 36) for i in range(9, 25)}
    shard(data["tar"], members | {f"{i:02}.txt": b"a caption" for i in range(9, 25)})


@pytest.mark.parametrize(
    ("kind", "change", "pairs"),
    [
        ("folder", add_a_pair, 17),
        ("folder", change_a_caption, 16),
        ("table", change_a_line, 16),
        ("tar", replace_the_shard, 16),
    ],
)
def test_a_run_that_goes_on_with_changed_data_says_so(
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    data: dict[str, Path],
    kind: str,
    change: Callable[[dict[str, Path]], None],
    pairs: int,
) -> None:
    shutil.copytree(data["folder"].parent, tmp_path / "data")
    own = {each: tmp_path / "data" / place.name for each, place in data.items()}
    assert train(tmp_path / "run", own[kind]) == 0
    assert train(tmp_path / "run", "--resume") == 0
    assert "the run began with" not in caplog.text
    change(own)
    assert train(tmp_path / "run", "--resume") == 0
    (said,) = [line for line in caplog.messages if "the run began with" in line]
    assert said.startswith(f"{own[kind]}: expected the data that the run began with (16 pairs, ")
    assert f"got others ({pairs} pairs, " in said


def test_a_run_without_listings_goes_on_without_a_word(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, data: dict[str, Path]
) -> None:
    assert train(tmp_path / "run", data["folder"]) == 0
    kept = json.loads((tmp_path / "run" / "data.json").read_text())
    assert kept.pop("listings")[0].startswith("16 pairs, ")
    (tmp_path / "run" / "data.json").write_text(json.dumps(kept))
    assert train(tmp_path / "run", "--resume") == 0
    assert "the run began with" not in caplog.text


def test_every_released_model_has_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main([]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in RELEASED)
    assert str(presets["RN50x64"].learning_rate) in told
    assert recipes.main(["ViT-B/33"]) == 2
    capsys.readouterr()


@pytest.mark.slow
def test_the_recipe_of_a_released_model_runs_at_its_full_size(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    """Recipe of the paper, ViT-B/32 whole; only the batch and the number of steps are small."""
    out = tmp_path / "run"
    flags = ["--batch-size", "2", "--steps", "1", "--out", str(out)]
    assert recipes.main(["ViT-B/32", str(data["folder"]), *flags]) == 0
    config = Recipe.from_json((out / "config.json").read_text())
    assert config.model == RELEASED["ViT-B/32"] and config.dtype == "bfloat16"
    assert checkpoint.load(out / "model.safetensors")[1] == RELEASED["ViT-B/32"]
    assert np.isfinite(losses(out)).all() and len(losses(out)) == 1


@pytest.mark.parametrize(("waited", "told"), [(0.01, False), (0.5, True)])
def test_the_progress_line_tells_when_a_run_waits_for_data(
    waited: float, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every 2 s of a step."""
    with run.progress_bar(Recipe(steps=3, batch_size=8), Skips(0)) as show:
        for step in (1, 2, 3):
            values = {"step": step, "loss": 1.0, "logit_scale": 14.3}
            show(values | {"seconds": 2.0 * step, "seconds_for_data": waited * step})
    line = " ".join(capsys.readouterr().err.split())
    assert "4 images/s" in line
    assert ("(25 % waiting)" in line) is told
