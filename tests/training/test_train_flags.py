"""What `jaxclip train` makes of its flags: checked against the model and data that are trained."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import checkpoint, cli
from jaxclip.cli import begin, run
from jaxclip.cli.train_flags import TrainFlags
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.models import clip, parameters
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from tests.support.command import fails
from tests.support.pictures import png

pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs", "one_device")
SMALL = ["--model.vision.image-size", "32", "--model.vision.width", "2", "--model.text.width", "8"]
SMALL += ["--model.embed-dim", "8"]
SHORT = ["--steps", "3", "--batch-size", "8", "--log-every", "1", "--warmup", "1"]
TWENTY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
TWENTY += " sixteen seventeen eighteen nineteen twenty"
ENDS = ("ant", "bee", "cow", "dog", "eel", "fox", "goat", "hen", "ibis", "jay")
VISION = VisionConfig(32, patch_size=16, width=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def one_device() -> Any:
    """Eight take three times as long to compile for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "data_mesh", functools.partial(data_mesh, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten pictures whose captions differ after the twentieth word only."""
    root = tmp_path_factory.mktemp("late")
    for i, end in enumerate(ENDS):
        (root / f"{i}.png").write_bytes(png(i, 32, 32))
        (root / f"{i}.txt").write_text(f"{TWENTY} {end}")
    return str(root)


def written(path: Path, text: TextConfig) -> str:
    config = ClipConfig(VISION, text, embed_dim=16)
    checkpoint.save(path, parameters.to_flat(clip.create(config, 0)), config, {})
    return str(path)


@pytest.fixture(scope="module")
def of_77(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model that takes 77 tokens."""
    path = tmp_path_factory.mktemp("start") / "77.safetensors"
    return written(path, TextConfig(16, 1, 2, 77, kind="cbow"))


def recipe(out: Path) -> Recipe:
    return Recipe.from_json((out / "config.json").read_text())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# The model that is trained ------------------------------------------------------------------------


def test_a_run_from_a_checkpoint_reads_texts_of_its_length(
    tmp_path: Path, late: str, of_77: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut at the preset's 20 tokens all captions were one: loss ln 10 = 2.3026, R@1 10 %."""
    out = tmp_path / "run"
    flags = ["--start", of_77, "--batch-size", "10", "--steps", "150", "--warmup", "5"]
    flags += ["--learning-rate", "0.03", "--weight-decay", "0", "--log-every", "1"]
    flags += ["--retrieval", late, "--evaluate-every", "150", "--out", str(out)]
    assert cli.main(["train", late, *flags]) == 0
    assert "were cut" not in capsys.readouterr().err
    assert recipe(out).text_length == 77
    *_, last, scores = lines(out)
    assert last["loss"] < 0.1
    assert scores["image_to_text_r1"] == scores["text_to_image_r1"] == 1


def test_how_many_captions_are_cut_is_told(
    tmp_path: Path, late: str, of_77: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--batch-size", "10", "--steps", "3", "--log-every", "1"]
    ways = {"start": ["--start", of_77, "--text-length", "20"], "preset": SMALL}
    for name, more in ways.items():
        assert cli.main(["train", late, *more, *flags, "--out", str(tmp_path / name)]) == 0
        err = " ".join(capsys.readouterr().err.split())
        assert err.count("10 captions of more than 20 tokens were cut") == 1
        losses = [line["loss"] for line in lines(tmp_path / name)]
        assert min(losses) > math.log(10) - 1e-3  # ten equal captions: no better than chance


def test_text_length_is_checked_against_the_model_that_is_trained(
    tmp_path: Path, late: str, of_77: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ["train", late, "--batch-size", "10", "--steps", "1", "--out", str(tmp_path / "a")]
    told = fails(capsys, 2, *begun, "--start", of_77, "--text-length", "78")
    assert "--text-length: expected 3 to 77, the model's context length, got 78" in told
    assert "expected 3 to 32" in fails(capsys, 2, *begun, "--text-length", "77")
    assert not (tmp_path / "a").exists()
    assert cli.main([*begun, "--start", of_77, "--text-length", "77"]) == 0
    longer = [*begun[:-1], str(tmp_path / "b"), *SMALL, "--model.text.context-length", "40"]
    assert cli.main(longer) == 0
    assert recipe(tmp_path / "b").text_length == 40


def test_model_flags_that_a_checkpoint_contradicts_are_refused(
    tmp_path: Path, late: str, of_77: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ["train", late, "--batch-size", "10", "--steps", "1", "--start", of_77]
    begun += ["--out", str(tmp_path / "run")]
    told = fails(capsys, 2, *begun, "--model.text.width", "8", "--model.embed_dim=16")
    assert "--model.text.width: the checkpoint has 16, got 8" in told and "embed" not in told
    assert "image-size" in fails(capsys, 2, *begun, "--model.vision.image-size", "40")
    same = ["--model.text.width", "16", "--model.vision.image-size", "64"]
    assert cli.main([*begun, *same]) == 0
    assert recipe(tmp_path / "run").model.vision.image_size == 64


@pytest.mark.parametrize("from_checkpoint", [True, False])
def test_a_model_of_another_vocabulary_is_not_trained(
    tmp_path: Path, late: str, from_checkpoint: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids from 1,000 on would all take the last embedding."""
    few = TextConfig(16, 1, 2, 77, vocab_size=1000, kind="cbow")
    start = written(tmp_path / "few.safetensors", few)
    how = ["--start", start] if from_checkpoint else ["--model.text.vocab-size", "1000"]
    out = ["--out", str(tmp_path / "run"), "--batch-size", "10"]
    told = fails(capsys, 2, "train", late, *how, *out)
    assert "49408" in told and "1000" in told and not (tmp_path / "run").exists()


# Ranges -------------------------------------------------------------------------------------------


def test_a_batch_that_the_data_cannot_fill_is_refused(
    tmp_path: Path, late: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 pairs at batch 64 stopped at loss 1.17, each pair its own wrong answer twice."""
    out = ["--out", str(tmp_path / "run")]
    told = fails(capsys, 2, "train", late, "--batch-size", "64", *out)
    assert "--batch-size: expected at most 10" in told and "got 64" in told
    told = fails(capsys, 2, "train", late, late, "--batch-size", "64", *out)
    assert "--batch-size: expected at most 20" in told
    told = fails(capsys, 2, "train", "emoji", "--batch-size", "8192", *out)
    assert "--batch-size: expected 2 to" in told and "got 8192" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--seed", ["-1", str(2**70)]),
        ("--steps", ["0", "-1", str(10**12)]),
        ("--batch-size", ["0", "1", str(10**12)]),
        ("--learning-rate", ["nan", "inf", "0", "-1"]),
        ("--weight-decay", ["nan", "inf", "-1"]),
        ("--warmup", ["-1", str(10**12)]),
        ("--average", ["nan", "1", "-0.1"]),
        ("--text-length", ["2", "33", "77"]),
        ("--log-every", ["0"]),
        ("--evaluate-every", ["0"]),
        ("--save-every", ["-5"]),
        ("--microbatches", ["0", "3", str(10**12)]),
        ("--rates", ["visual", "(=1", "visual=nan", "a{9999999999}=1"]),
        ("--fsdp", ["0", str(10**12)]),
        ("--tensor", ["-1"]),
        ("--threads", ["0", str(10**9)]),
        ("--keep", ["0", str(10**12)]),
        ("--skip-limit", ["-1"]),
        ("--weights", ["nan", "inf", "0", "-1"]),
        ("--processes", ["0"]),
        ("--model.text.width", ["0", "-8", str(10**9)]),
        ("--model.vision.image-size", ["0", "1600000000"]),
    ],
)
def test_every_flag_has_a_range(
    flag: str, values: list[str], tmp_path: Path, late: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        told = fails(capsys, 2, "train", late, f"{flag}={value}", "--out", str(tmp_path / "run"))
        assert (flag if not flag.startswith("--model") else "--model") in told, told
        assert not (tmp_path / "run").exists()


def test_numbers_of_other_commands_have_a_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed = ["embed", str(tmp_path / "x.png"), "--out", str(tmp_path / "x.npz")]
    for value in ("0", "-1", str(10**12)):
        assert "--batch-size" in fails(capsys, 2, *embed, "--batch-size", value)
        assert "--batch" in fails(capsys, 2, "plan", "--batch", value)
        assert "--microbatches" in fails(capsys, 2, "plan", "--microbatches", value)
        assert "--fsdp" in fails(capsys, 2, "plan", "--fsdp", value)
    assert "--skip-limit" in fails(capsys, 2, *embed, "--skip-limit", "-1")
    for value in ("nan", "inf", "-0.1", "1.5"):
        mix = ["interpolate", "a", "b", "--out", "c.safetensors", "--share", value]
        assert "--share: expected a number from 0 to 1" in fails(capsys, 2, *mix)


# Resuming -----------------------------------------------------------------------------------------


@pytest.fixture
def copy(
    late: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, one_device: None
) -> Path:
    """A finished run of three steps, with its state."""
    kept = tmp_path_factory.getbasetemp() / "finished"
    if not kept.exists():
        flags = [*SMALL, *SHORT, "--weights", "2", "--out", str(kept)]
        assert cli.main(["train", late, *flags]) == 0
    return Path(shutil.copytree(kept, tmp_path / "run"))


def result(out: Path) -> dict[str, np.ndarray]:
    return dict(checkpoint.load(out / "model.safetensors")[0])


def test_a_run_goes_on_without_its_flags(
    copy: Path, late: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = result(copy)
    for more in ([], [late], ["--batch-size", "8", "--threads", "2", "--keep", "1"]):
        (copy / "model.safetensors").unlink()
        assert cli.main(["train", *more, "--out", str(copy), "--resume"]) == 0
        assert all(np.array_equal(before[name], array) for name, array in result(copy).items())
    capsys.readouterr()
    asked = ["--batch-size", "4", "--model.text.width", "9", "--weights", "3"]
    told = fails(capsys, 2, "train", "--out", str(copy), "--resume", *asked)
    for said in ("--batch-size: the run has 8, got 4", "--model.text.width: the run has 8, got 9"):
        assert said in told
    assert "--weights: the run has 2.0, got 3.0" in told and "--steps" not in told
    told = fails(capsys, 2, "train", "--out", str(copy), "--resume", "--preset", "full")
    assert "--steps: the run has 3, got 2400" in told
    assert "data: the run has" in fails(capsys, 2, "train", "x", "--out", str(copy), "--resume")
    assert "--out" in fails(capsys, 2, "train", "--resume")
    assert "got both" in fails(capsys, 2, "train", "--resume", "--force", "--out", str(copy))


def test_a_preset_may_be_named_again(
    tmp_path: Path, late: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [late, "--preset", "quick", *SMALL, *SHORT, "--out", str(tmp_path / "run")]
    assert cli.main(["train", *flags]) == 0
    assert cli.main(["train", *flags, "--resume"]) == 0


def changed(text: str, **values: Any) -> str:
    return json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda text: ""),
        ("config.json", lambda text: "[1]"),
        ("config.json", lambda text: text[: len(text) // 2]),
        ("config.json", lambda text: "[" * 100_000),
        ("config.json", lambda text: changed(text, rates=[5])),
        ("config.json", lambda text: changed(text, rates=5)),
        ("config.json", lambda text: changed(text, steps="three")),
        ("config.json", lambda text: changed(text, seed=2**70)),
        ("config.json", lambda text: changed(text, batch_size=1e3)),
        ("config.json", lambda text: changed(text, learning_rate=None)),
        ("config.json", lambda text: changed(text, model=[])),
        ("config.json", lambda text: changed(text, colour="red")),
        ("data.json", lambda text: ""),
        ("data.json", lambda text: "7"),
        ("data.json", lambda text: "{}"),
        ("data.json", lambda text: changed(text, data=5)),
        ("data.json", lambda text: changed(text, data=[])),
        ("data.json", lambda text: changed(text, data=[5])),
        ("data.json", lambda text: changed(text, weights=["a"])),
        ("data.json", lambda text: changed(text, start=5)),
        ("data.json", lambda text: changed(text, skip_limit=None)),
        ("metrics.jsonl", lambda text: "no json\n" + text),
        ("metrics.jsonl", lambda text: "[]\n" + text),
        ("metrics.jsonl", lambda text: '{"loss": 1}\n' + text),
        ("metrics.jsonl", lambda text: '{"step": "a"}\n' + text),
    ],
)
def test_damaged_files_of_a_run_take_one_line(
    name: str, damage: Any, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / name).write_text(damage((copy / name).read_text()))
    assert cli.main(["train", "--out", str(copy), "--resume"]) in (1, 2)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("jaxclip: ") and name in last


def test_files_that_are_no_files_take_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "data.json", "metrics.jsonl"):
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        os.mkfifo(copy / name)
        assert cli.main(["train", "--out", str(copy), "--resume"]) in (1, 2)
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("jaxclip: ")
        (copy / name).unlink()
        (copy / name).write_bytes(content)
    (copy / "data.json").write_bytes(b"\xff\xfe\xff")
    assert "data.json" in fails(capsys, 1, "train", "--out", str(copy), "--resume")


def test_a_damaged_state_takes_one_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (copy / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"{}")
    assert cli.main(["train", "--out", str(copy), "--resume"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("jaxclip: ") and "state" in last
    shutil.rmtree(copy / "state")
    (copy / "state").write_text("no folder")
    assert cli.main(["train", "--out", str(copy), "--resume"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "state: expected a folder of checkpoints, got a file" in last


def test_the_command_that_resumes_names_the_execution_only() -> None:
    flags = TrainFlags(
        execution=Execution(loss="ring", threads=2), coordinator="host:1", processes=2, process=1
    )
    assert begin.resume_command(flags, Path("my runs")) == (
        "jaxclip train --out 'my runs' --resume --loss ring --threads 2 "
        "--coordinator host:1 --processes 2 --process 1"
    )
    assert begin.resume_command(TrainFlags(), Path("r")) == "jaxclip train --out r --resume"
