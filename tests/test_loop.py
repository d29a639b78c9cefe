"""The training loop: resumed equals uninterrupted to the bit, and nothing is ever half written."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, TextConfig, TrainConfig, VisionConfig
from jaxclip.data.sources import emoji
from jaxclip.training import loop, state

TINY = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2),
    text=TextConfig(width=16, kind="cbow", context_length=16),
    embed_dim=8,
)
CONFIG = TrainConfig(
    steps=9,
    batch_size=8,
    save_every=2,
    log_every=1,
    evaluate_every=100,
    warmup=2,
    text_length=16,
    model=TINY,
)
# The child has one device, so that its sums run in one order; it is killed by the parent.
CHILD = """
import sys
from pathlib import Path
from jaxclip.config import TrainConfig
from jaxclip.data.sources import emoji
from jaxclip.training import loop
run = Path(sys.argv[1])
config = TrainConfig.from_json((run / "config.json").read_text())
tell = lambda values: print(values["step"], flush=True)
loop.train(config, emoji("validation"), run, resume=True, progress=tell)
"""


def child(run: Path) -> "subprocess.Popen[str]":
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(CONFIG.to_json())
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CHILD, str(run)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with child(whole) as process:
        process.communicate()
        assert process.returncode == 0
    with child(broken) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if int(line) == 5:  # saved after 4, one update is lost
                killed.send_signal(signal.SIGKILL)
                break
    assert not (broken / loop.MODEL).exists()
    with child(broken) as process:
        process.communicate()
        assert process.returncode == 0
    one, _ = checkpoint.load_arrays(whole / loop.STATE)
    two, _ = checkpoint.load_arrays(broken / loop.STATE)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (broken / loop.METRICS).read_text().splitlines()]
    assert steps == list(range(1, CONFIG.steps + 1))
    other, _ = checkpoint.load_arrays(whole / loop.MODEL)
    moved = [n for n in other if not np.array_equal(other[n], np.zeros_like(other[n]))]
    assert moved  # the comparison above was not of empty arrays


def run_here(run: Path, config: TrainConfig = CONFIG, **options: object) -> object:
    run.mkdir(exist_ok=True)
    return loop.train(config, emoji("validation"), run, **options)  # type: ignore[arg-type]


def test_stop_saves_and_says_the_step(tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(loop.Stopped, match="step 3 of 9"):
        run_here(
            tmp_path,
            progress=lambda v: seen.append(v["step"]),
            should_stop=lambda: len(seen) == 3,
        )
    _, metadata = checkpoint.load_arrays(tmp_path / loop.STATE)
    assert metadata["step"] == "3"


def test_not_a_number_stops_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loop.host_batch

    def poisoned(batches: object, step: int, length: int) -> dict[str, np.ndarray]:
        batch = make(batches, step, length)  # type: ignore[arg-type]
        if step == 4:
            batch["drawings"] = batch["drawings"].astype(np.float32) * np.nan
        return batch

    monkeypatch.setattr(loop, "host_batch", poisoned)
    with pytest.raises(loop.Diverged, match="step 5"):
        run_here(tmp_path)
    arrays, metadata = checkpoint.load_arrays(tmp_path / loop.STATE)
    assert metadata["step"] == "4"
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert not (tmp_path / loop.MODEL).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_log() -> None:
    with (
        open("/dev/full", "ab", buffering=0) as log,
        pytest.raises(OSError, match="cannot write /dev/full: No space left"),
    ):
        loop.append(log, {"step": 1})


def test_state_of_another_config_or_version_is_refused(tmp_path: Path) -> None:
    run_here(tmp_path)
    wider = dataclasses.replace(TINY, embed_dim=12)
    with pytest.raises(ValueError, match="proj"):
        run_here(tmp_path, dataclasses.replace(CONFIG, model=wider), resume=True)
    arrays, _ = checkpoint.load_arrays(tmp_path / loop.STATE)
    checkpoint.save_arrays(tmp_path / loop.STATE, arrays, {"format": "jaxclip-state-0"})
    with pytest.raises(ValueError, match="jaxclip-state-0"):
        state.load(tmp_path / loop.STATE, (None, None))


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    assert list(loop.prefetch(lambda i: i * i, 2, 6)) == [4, 9, 16, 25]

    def broken(i: int) -> int:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(loop.prefetch(broken, 0, 3))


def test_abandoned_prefetch_ends_its_thread() -> None:
    import threading

    before = threading.active_count()
    results = loop.prefetch(lambda i: i, 0, 1000)
    next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_metrics_hold_what_the_progress_bar_shows(tmp_path: Path) -> None:
    run_here(tmp_path)
    line = json.loads((tmp_path / loop.METRICS).read_text().splitlines()[0])
    names = {"loss", "grad_norm", "image_spread", "text_spread", "logit_scale", "step"}
    assert names <= line.keys()
    assert line["logit_scale"] == pytest.approx(1 / 0.07, rel=0.01)  # hardly moved after one step
    assert 0 < line["image_spread"] < 1 and 0 < line["text_spread"] < 1
