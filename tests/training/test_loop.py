"""The training loop: resumed equals uninterrupted to the bit, and nothing is ever half written."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.training import from_recipe, loop, metrics_log
from jaxclip.training.checkpoints import Checkpoints, Snapshot
from jaxclip.training.input_pipeline import DrawingStream
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from tests.support.pictures import png

pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs")

TINY = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2),
    text=TextConfig(width=16, kind="cbow", context_length=16),
    embed_dim=8,
)
CONFIG = Recipe(
    steps=9,
    batch_size=8,
    save_every=2,
    log_every=1,
    evaluate_every=100,
    warmup=2,
    clip_norm=0.5,
    text_length=16,
    average=0.9,
    model=TINY,
)
# The child trains on real files, has one device, so that its sums run in one order, and tells each
# step and each save as it begins; the parent kills it.
CHILD = """
import sys
from pathlib import Path
from jaxclip.data.pairs import read_caption_folder
from jaxclip.data.stream import Skips
from jaxclip.training import checkpoints, loop
from jaxclip.training.recipe import Recipe
from jaxclip.training.input_pipeline import PairStream
run, pictures = map(Path, sys.argv[1:])
config = Recipe.from_json((run / "config.json").read_text())
save = checkpoints.Checkpoints.save
def told(self, step, snapshot):
    print("saving", step, flush=True)
    save(self, step, snapshot)
checkpoints.Checkpoints.save = told
options = dict(size=16, batch_size=8, seed=3, text_length=16, skips=Skips(99))
pairs = PairStream([read_caption_folder(pictures)], **options)
tell = lambda values: print("step", values["step"], flush=True)
loop.train(config, pairs, run, resume=True, progress=tell)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 pictures with captions; one of them is broken and is skipped again and again."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(21):
        (root / f"{i}.png").write_bytes(png(i, 20, 16) if i != 5 else b"broken")
        (root / f"{i}.txt").write_text(f"picture number {i}\nanother caption of {i}")
    return root


def child(run: Path, pictures: Path, config: Recipe = CONFIG) -> subprocess.Popen[str]:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(config.to_json())
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CHILD, str(run), str(pictures)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def finish(run: Path, pictures: Path, config: Recipe = CONFIG) -> dict[str, np.ndarray]:
    """Go on to the end; all that is then written."""
    with child(run, pictures, config) as process:
        process.communicate()
        assert process.returncode == 0
    arrays: dict[str, np.ndarray] = {}
    for name in (loop.MODEL, loop.AVERAGE):
        loaded, _ = checkpoint.load_arrays(run / name)
        arrays |= {f"{name}:{key}": array for key, array in loaded.items()}
    return arrays


def assert_same(run: Path, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[name], expected[name]) for name in arrays)
    assert any(np.any(array) for array in arrays.values())  # the comparison was not of zeros
    steps = [json.loads(line)["step"] for line in (run / loop.METRICS).read_text().splitlines()]
    assert steps == sorted(set(steps))


def kill(process: subprocess.Popen[str], line: str, delay: float = 0) -> None:
    """SIGKILL as soon as the child has told that line, or some time after it."""
    assert process.stdout is not None
    for told in process.stdout:
        if told.strip() == line:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            return


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, pictures: Path) -> None:
    """Once between two saves, once as one begins."""
    expected = finish(tmp_path / "whole", pictures)
    run = tmp_path / "broken"
    for line in ("step 5", "saving 6"):
        with child(run, pictures) as killed:
            kill(killed, line)
        assert not (run / loop.MODEL).exists()
    assert_same(run, finish(run, pictures), expected)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path, pictures: Path) -> None:
    """Also while a checkpoint is being written: half of the moments lie right behind a save."""
    config = dataclasses.replace(CONFIG, steps=60, save_every=3)
    expected = finish(tmp_path / "whole", pictures, config)
    run, rng = tmp_path / "broken", random.Random(7)
    unfinished = 0
    for moment in range(20):
        with child(run, pictures, config) as killed:
            assert killed.stdout is not None
            kind = "saving" if moment % 2 else "step"
            least = rng.randrange(1, 6)
            seen = 0
            for told in killed.stdout:
                seen += told.startswith(kind)
                if seen >= least:
                    time.sleep(rng.uniform(0, 0.15))
                    killed.send_signal(signal.SIGKILL)
                    break
        state = run / loop.STATE
        # what Orbax was writing has a name of its own until it is whole
        unfinished += any(not p.name.isdigit() for p in state.iterdir()) if state.is_dir() else 0
    assert unfinished  # a save was cut off at least once
    assert_same(run, finish(run, pictures, config), expected)


ONE_DEVICE = data_mesh(jax.devices()[:1])


def stream(config: Recipe = CONFIG) -> DrawingStream:
    return DrawingStream(
        load_emoji("validation"),
        size=config.model.vision.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        text_length=config.text_length,
    )


def run_here(run: Path, config: Recipe = CONFIG, **options: object) -> object:
    run.mkdir(exist_ok=True)
    options.setdefault("mesh", ONE_DEVICE)  # which compiles in a third of the time of eight
    return loop.train(config, stream(config), run, **options)  # type: ignore[arg-type]


def saved(run: Path, config: Recipe = CONFIG) -> Snapshot:
    _, like = from_recipe.abstract_state(config, ONE_DEVICE)
    shardings = from_recipe.state_shardings(config, ONE_DEVICE)
    found = Checkpoints(run / loop.STATE).restore(like, shardings)
    assert found is not None
    return found


def test_stop_saves_and_says_the_step(tmp_path: Path) -> None:
    with pytest.raises(loop.Stopped, match="step 3 of 9"):
        run_here(tmp_path, should_stop=lambda step: step == 3)
    state = saved(tmp_path)
    assert (state.state.step, state.position) == (3, [3])
    run_here(tmp_path, resume=True)
    assert saved(tmp_path).state.step == 9


def test_not_a_number_stops_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = DrawingStream.__next__

    def poisoned(self: DrawingStream) -> dict[str, np.ndarray]:
        batch = make(self)
        if self.step == 5:
            batch["drawings"] = batch["drawings"].astype(np.float32) * np.nan
        return batch

    monkeypatch.setattr(DrawingStream, "__next__", poisoned)
    with pytest.raises(metrics_log.Diverged, match="step 5"):
        run_here(tmp_path)
    state = saved(tmp_path)
    assert state.state.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.state.params))
    assert not (tmp_path / loop.MODEL).exists()


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices: see conftest.py")
def test_resumed_on_other_devices_executed_otherwise(tmp_path: Path) -> None:
    """Begun on one device, gone on with on two with cut parameters: the same numbers, nearly."""
    whole = run_here(tmp_path / "whole")
    with pytest.raises(loop.Stopped):
        run_here(tmp_path / "moved", should_stop=lambda step: step == 4)
    execution = Execution("ring", fsdp=2)
    mesh = data_mesh(jax.devices()[:2], fsdp=2)
    moved = run_here(tmp_path / "moved", resume=True, execution=execution, mesh=mesh)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(moved), strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < 1e-4


def test_a_damaged_newest_state_is_put_aside_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_here(tmp_path / "whole")
    run = tmp_path / "broken"
    with pytest.raises(loop.Stopped):
        run_here(run, should_stop=lambda step: step == 6)
    for file in (run / loop.STATE / "6").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    again = run_here(run, resume=True)
    assert "checkpoint 6" in caplog.text and (run / "state-damaged" / "6").is_dir()
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        assert np.array_equal(one, other)
    assert saved(run).state.step == 9


def test_state_of_another_config_is_refused(tmp_path: Path) -> None:
    run_here(tmp_path)
    wider = dataclasses.replace(TINY, embed_dim=12)
    with pytest.raises(ValueError, match="proj"):
        run_here(tmp_path, dataclasses.replace(CONFIG, model=wider), resume=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_log() -> None:
    with (
        open("/dev/full", "ab", buffering=0) as log,
        pytest.raises(OSError, match="cannot write /dev/full: No space left"),
    ):
        metrics_log.append(log, {"step": 1})


# Orbax's thread and its coroutines complain a second time, of what `Checkpoints` has raised
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_state_that_cannot_be_written_is_told_and_the_one_before_it_stays(tmp_path: Path) -> None:
    """The system refuses files of more than 20,000 bytes, as a full disk would."""
    with pytest.raises(loop.Stopped):
        run_here(tmp_path, should_stop=lambda step: step == 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot save to .*state: .*untouched"):
            run_here(tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        gc.collect()
    assert saved(tmp_path).state.step == 2
    assert not (tmp_path / loop.MODEL).exists()


def test_metrics_hold_what_the_progress_bar_shows(tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    sunk: list[dict[str, float]] = []
    scores = {"top1": 0.5}
    config = dataclasses.replace(CONFIG, evaluate_every=4, log_every=3)
    run_here(
        tmp_path,
        config,
        progress=lambda values: told.append(dict(values)),
        sinks=[sunk.append],
        evaluate=lambda model: scores,
    )
    lines = [json.loads(line) for line in (tmp_path / loop.METRICS).read_text().splitlines()]
    assert lines == json.loads(json.dumps(sunk))
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9]
    assert [line["step"] for line in lines if "top1" in line] == [4, 8, 9]
    assert [values["step"] for values in told if "loss" in values] == list(range(1, 10))
    names = {"loss", "grad_norm", "image_spread", "text_spread", "logit_scale", "step"}
    assert names <= lines[0].keys()
    assert told[0]["logit_scale"] == pytest.approx(1 / 0.07, rel=0.01)  # hardly moved after a step
    assert 0 < told[0]["image_spread"] < 1 and 0 < told[0]["text_spread"] < 1


def test_waiting_for_data_is_told_apart_from_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a batch takes 2 s, and telling a step 5."""
    clock = [0.0]

    def reading(stream: DrawingStream, steps: int, place: Callable) -> Iterator[tuple[Any, int]]:
        for _ in range(steps):
            clock[0] += 2
            yield place(next(stream)), stream.position

    def show(_: object) -> None:
        clock[0] += 5

    monkeypatch.setattr(loop, "prefetch", reading)
    monkeypatch.setattr(metrics_log, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run_here(tmp_path, dataclasses.replace(CONFIG, save_every=100), progress=show)
    lines = [json.loads(line) for line in (tmp_path / loop.METRICS).read_text().splitlines()]
    # a step is told once the next batch has come, or before a save
    assert [line["seconds_for_data"] for line in lines] == [4, 6, 8, 10, 12, 14, 16, 18, 18]
    assert [line["seconds"] for line in lines] == [4, 11, 18, 25, 32, 39, 46, 53, 58]


def test_a_trace_is_written(tmp_path: Path) -> None:
    run_here(tmp_path, profile=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_fine_tuning_begins_with_the_weights_that_it_is_given(tmp_path: Path) -> None:
    """Locked throughout, they come out as they went in; what was drawn at random would not."""
    run_here(tmp_path / "first")
    flat, config, _ = checkpoint.load(tmp_path / "first" / loop.MODEL)
    locked = dataclasses.replace(CONFIG, seed=5, steps=3, rates=("^visual=0", "=1"), average=0)
    run_here(tmp_path / "second", locked, start=flat)
    after = checkpoint.load(tmp_path / "second" / loop.MODEL)[0]
    same = {name for name in flat if np.array_equal(flat[name], after[name])}
    assert {name for name in flat if name.startswith("visual.")} <= same
    assert "text.token_embedding.embedding" not in same
    assert config == TINY


def test_an_interrupted_reader_ends_its_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        run_here(tmp_path, progress=lambda values: 1 // 0)  # type: ignore[arg-type, return-value]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
