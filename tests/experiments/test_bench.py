"""The benchmarks run from end to end on tiny models, and a ratio is that of two neighbours in time.

Nothing here is timed: the clocks are made up, or only their presence is looked at.
"""

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import growth as bench_growth
from experiments.bench import pairs as bench_pairs
from experiments.bench import pictures as bench_pictures
from experiments.bench import pipeline as bench_pipeline
from experiments.bench import search as bench_search
from experiments.bench import tables as bench_tables
from experiments.bench import training
from experiments.lib import pages
from jaxclip.config import ClipConfig, TextConfig, VisionConfig

ROOT = Path(__file__).parents[2]
TINY = ClipConfig(VisionConfig(16, 8, 24, 2, 3), TextConfig(16, 2, 2, 8, 64), 12)


def made_up(calls: list[str]) -> Callable[[Callable[[], object]], bench_pairs.Seconds]:
    """A clock by which every run takes a second more than the run before, whatever it does."""

    def clock(run: Callable[[], object]) -> bench_pairs.Seconds:
        run()
        return bench_pairs.Seconds(float(len(calls)), 2.0 * len(calls))

    return clock


def test_sides_run_in_turn_and_every_other_turn_backwards() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = bench_pairs.in_turn(sides, 3, made_up(calls))
    assert "".join(calls) == "abccbaabc"
    assert [s.wall for s in seconds["a"]] == [1, 6, 7]


def test_a_ratio_is_that_of_one_turn_and_the_result_their_median() -> None:
    """A machine that is ten times slower in one turn changes no ratio."""
    turns = [(1.0, 2.0), (10.0, 20.0), (1.0, 2.2), (2.0, 4.0), (1.0, 1.9)]
    seconds = {
        side: [bench_pairs.Seconds(t[i], t[i]) for t in turns] for i, side in enumerate("ab")
    }
    seconds["c"] = [bench_pairs.Seconds(3.0, 9.0)] * 5
    row = bench_pairs.compared({"model": "m"}, seconds)
    assert row["wall ratio"]["b"]["median"] == 2.0
    assert row["wall best peer"] == "b" and row["pairs"] == 5
    assert row["wall ratio"]["b"]["low"] < 2.0 < row["wall ratio"]["b"]["high"]


def test_a_program_is_measured_alone_and_its_failure_is_told() -> None:
    small = bench_pairs.program(["-c", "print(1)"], str(ROOT), {})
    large = bench_pairs.program(["-c", 'x = b"x" * (200 << 20); print(1)'], str(ROOT), {})
    again = bench_pairs.program(["-c", "print(1)"], str(ROOT), {})
    assert small.printed == "1\n" and large.peak > small.peak + 150
    assert again.peak < large.peak - 150  # not the largest child so far
    with pytest.raises(OSError, match="of no use"):
        bench_pairs.program(["-c", "raise SystemExit('of no use')"], str(ROOT), {})


def test_a_row_takes_the_place_of_an_older_one_of_its_machine(tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    here, there = ({"machine": m, "date": "2026-01-01", "versions": "x 1"} for m in "ab")
    old = {"model": "a", "batch": 1, "pairs": 3, "measured": {"x": 1}, "where": here}
    bench.keep("growth", [old, {**old, "batch": 2}, {**old, "where": there}], record)
    kept = bench.keep("growth", [{**old, "pairs": 9, "measured": {"x": 2}}], record)
    rows = [(row["batch"], row["where"]["machine"], row["measured"]["x"]) for row in kept["growth"]]
    assert rows == [(2, "a", 1), (1, "b", 1), (1, "a", 2)]
    assert json.loads(record.read_text()) == kept


def test_every_row_says_where_it_was_measured() -> None:
    ratio = {"median": 1.0, "low": 0.9, "high": 1.1}
    row: dict[str, Any] = {"model": "a", "cpu best peer": "b", "wall best peer": "b"}
    for clock in ("cpu", "wall"):
        row |= {f"{clock} s": {"jaxclip": 1.0, "b": 1.0}, f"{clock} ratio": {"b": ratio}}
    places = [{"machine": m, "date": "2026-01-01", "versions": "x 1"} for m in "pq"]
    rows = [row | {"where": place} for place in places]
    page = bench_tables.page({"inference": rows}).splitlines()
    shown = [line for line in page if line.startswith("| a |")]
    assert [line.split(" | ")[4] for line in shown] == ["1", "2"]
    assert page[-2:] == ["1. 2026-01-01, p; x 1", "2. 2026-01-01, q; x 1"]


def test_the_tables_are_what_the_record_says() -> None:
    record = json.loads(bench.RECORD.read_text())
    page = ROOT / "docs" / "performance.md"
    assert pages.table_in(page, bench_tables.COMMAND) == bench_tables.page(record)


@pytest.mark.slow  # four programs are compiled
def test_training_steps_on_a_tiny_model_and_every_loss_agrees() -> None:
    found = {loss: training.ours(TINY, 8, "float32", "none", loss)() for loss in training.LOSSES}
    assert max(found.values()) - min(found.values()) < 1e-5 * found["dense"]
    run = training.ours(TINY, 8, "bfloat16", "full")
    first = [run() for _ in range(12)]
    assert first[-1] < first[0]


@pytest.mark.parametrize("limit", [0, 7, 8, 100, 1000])
def test_the_largest_batch_is_found_to_an_eighth(limit: int) -> None:
    def step(batch: int) -> None:
        if batch > limit:
            raise MemoryError

    found = training.largest_batch(step)
    assert found <= limit
    assert found == 0 if limit < 8 else found > limit - max(2, limit // 8 + 1)


@pytest.mark.slow  # one program is compiled for each size and number of devices
def test_growth_runs_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_growth, "SMALL", {"small ViT": TINY})
    options = types.SimpleNamespace(
        batches=[8], sizes=[16, 24], devices=[1, 2], pairs=1, write=False
    )
    rows = list(bench_growth.rows(options))
    assert [(row["image size"], row["devices"]) for row in rows] == [
        (16, 1),
        (16, 1),
        (24, 1),
        (16, 1),
        (16, 2),
    ]
    assert all(row["measured"]["temporaries, MiB a device"] >= 0 for row in rows)


def test_batches_alone_by_every_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_pipeline, "PHOTOS", ((90, 70),))
    flags = bench_pipeline.Flags(
        pairs=2, pictures=40, sizes=(16,), decoders=("reduced",), readers=2, alone=True
    )
    full, reduced = bench_pipeline.rows(flags)
    assert (full["decoder"], reduced["decoder"]) == ("full", "reduced")
    assert full["measured"]["times the full decode"] == 1
    errors = "mean error, of 255", "greatest error"
    assert [full["measured"][name] for name in errors] == [0, 0]
    assert all(reduced["measured"][name] > 0 for name in errors)


@pytest.mark.slow  # one program is compiled for the step alone and one for the run
def test_a_run_beside_its_pipeline_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_pipeline, "MODELS", {"tiny": TINY})
    options: dict[str, Any] = {"models": ["tiny"], "batches": [4, 8], "steps": 6, "pairs": 1}
    options |= {"precision": "float32", "remat": "none", "readers": 2, "pictures": 10}
    monkeypatch.setattr(bench_pipeline, "batches_alone", lambda flags: ())
    rows = list(bench_pipeline.rows(bench_pipeline.Flags(**options)))
    assert [row["batch"] for row in rows] == [4, 8]
    for row in rows:
        found = row["measured"]
        assert all(rate > 0 for name, rate in found.items() if name.startswith("images/s"))
        assert 0 <= found["waiting for data, % of the run"] <= 100


def test_search_equals_brute_force_and_its_commands_run() -> None:
    flags = bench_search.Flags(pairs=1, vectors=3000, width=16, files=3)
    rows = list(bench_search.rows(flags))
    names = [f"nearest {bench_search.TOP}", "index, the first", "embed", "index, nothing new"]
    assert [row["what"] for row in rows] == [*names, "search"]
    assert all("wall s" in row["measured"] and "cpu s" in row["measured"] for row in rows)
    rows = [row | {"where": bench_pairs.where()} for row in rows]
    assert "| index, nothing new, files 3, runs 1 | " in bench_tables.suite_tables(rows)


def test_a_search_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_search, "brute_force", lambda *_: np.zeros(bench_search.TOP))
    with pytest.raises(ValueError, match="expected the cosines of brute force"):
        next(bench_search.rows(bench_search.Flags(pairs=1, vectors=3000, width=16, files=3)))


def test_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (bench_pictures.make(tmp_path / name, 3) for name in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


@pytest.mark.parametrize("arguments", [["speed"], ["growth", "--pairs", "0"], []])
def test_nonsense_is_refused(arguments: list[str]) -> None:
    try:
        assert bench.main(arguments) == 2
    except SystemExit as stop:
        assert stop.code == 2


@pytest.mark.parity
def test_inference_and_training_beside_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.bench import inference as bench_inference

    config = ClipConfig(VisionConfig(32, 8, 64, 2, 1), TextConfig(64, 2, 1, 12, 99), 24)
    monkeypatch.setattr(bench_inference, "RELEASED", {"ViT-B/32": config})
    options: dict[str, Any] = {"threads": 1, "pairs": 2, "compiled": False, "batches": [1, 9]}
    options |= {"models": ["ViT-B/32", "text"], "precision": "float32"}
    rows = list(bench_inference.rows(types.SimpleNamespace(**options)))
    assert len(rows) == 4
    assert set(rows[0]["cpu ratio"]) == {"official", "open_clip", "transformers"}
    monkeypatch.setattr(training, "MODELS", {"tiny": config})
    options |= {"models": ["tiny"], "batches": [8], "remat": "none", "peak": 1.0, "largest": False}
    (row,) = training.rows(types.SimpleNamespace(**options))
    assert row["measured"]["images/s, jaxclip"] > 0 and row["measured"]["utilisation"] >= 0
