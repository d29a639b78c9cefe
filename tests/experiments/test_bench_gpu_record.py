"""What `bench gpu` keeps and shows: known rows, a profile's kernels, the tables of docs/gpu.md.

What a trace and a record say is made up.
"""

import dataclasses
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.bench.gpu import attention, command, measure, page, record, rows, trace
from experiments.lib import pages
from jaxclip.hardware.attention import MEASURED

ROOT = Path(__file__).parents[2]
H100 = "NVIDIA H100 80GB HBM3"
ORIGIN = record.Origin(H100, {"jax": "0.10.2"}, "abc")
PARTS = ("golden", "step", "kernels", "peer", "attention", "gradients", "loss", "inference")
ROW = rows.Row("loss", {"loss": "ring", "pairs": 64, "width": 24}, 20)


def a_record(path: Path, **changes: Any) -> record.Record:
    return record.Record(path, dict.fromkeys(PARTS, dataclasses.replace(ORIGIN, **changes)))


# What is measured again ---------------------------------------------------------------------------


def test_a_row_is_known_by_all_that_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    a_record(path).keep(ROW, {"measured": {"ms": 1.0}}, 2.0)
    assert a_record(path).outcome(ROW) == "measured" and a_record(path).finished(ROW)
    for change in ({"card": "NVIDIA H200"}, {"versions": {"jax": "0.12"}}, {"code": "abd"}):
        assert a_record(path, **change).outcome(ROW) is None, change
    for settings in ({"loss": "dense"}, {"pairs": 65}, {"width": 25}):
        other = dataclasses.replace(ROW, settings={**ROW.settings, **settings})
        assert a_record(path).outcome(other) is None
    slower = dataclasses.replace(ROW, seconds=99)
    assert a_record(path).finished(slower)  # an estimate changes nothing


def test_newer_code_takes_the_place_of_older_and_a_card_of_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for change in ({}, {"card": "NVIDIA H200"}, {"code": "abd"}):
        a_record(path, **change).keep(ROW, {"measured": {"ms": 1.0}}, 2.0)
    assert [(r["card"], r["code"]) for r in record.read(path)] == [
        ("NVIDIA H200", "abc"),
        (H100, "abd"),
    ]


@pytest.mark.parametrize("why, tries", [("out of memory: 99 GiB", 1), ("exit code -11", 2)])
def test_a_failed_row_is_not_tried_forever(tmp_path: Path, why: str, tries: int) -> None:
    path = tmp_path / "gpu.json"
    for i in range(tries):
        assert not a_record(path).finished(ROW), i
        a_record(path).keep(ROW, {"failed": why}, 2.0)
    assert a_record(path).finished(ROW) and a_record(path).outcome(ROW) == "failed"
    assert len(record.read(path)) == 1


def test_a_wrong_answer_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = a_record(tmp_path / "gpu.json")
    kept.keep(ROW, {"failed": "out of memory: 99 GiB"}, 2.0)
    assert command.verdict(kept, tiny=False) == 0  # a result as well
    assert command.verdict(kept, tiny=True) == 1
    kept.keep(rows.golden()[0], {"failed": "image.stem: expected ..."}, 2.0)
    assert command.verdict(kept, tiny=False) == 1
    assert "golden: model official-vit" in capsys.readouterr().err


def test_another_file_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected a record of bench gpu"):
        record.read(path)


def test_the_digest_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("x = 1\n")
    first = record.digest("a")
    assert record.digest("a") == first
    (tmp_path / "a" / "b.py").write_text("x = 2\n")
    assert record.digest("a") != first


# A profile ----------------------------------------------------------------------------------------


def a_profile() -> list[dict[str, Any]]:
    """Two steps on a GPU as jax.profiler writes them: kernels, and lines derived from them."""
    names = {
        (1, 10): "Stream #20(Compute)",
        (1, 11): "XLA Ops",
        (1, 12): "Steps",
        (2, 10): "python",
    }
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "/host:CPU"}},
    ]
    for (pid, tid), name in names.items():
        event = {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}
        events.append(event)
    for name, dur in (
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", 400.0),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", 100.0),
        ("loop_convert_fusion_12", 30.0),
        ("loop_convert_fusion_7", 10.0),
        ("MemcpyD2D", 8.0),
        ("void cutlass::Kernel2<cutlass_80_wmma>(int)", 2.0),
    ):
        for tid in (10, 11):
            for _ in range(2):
                ran = {"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": 0.0, "dur": dur}
                events.append({**ran, "args": {"hlo_op": "x"}})
    events.append({"ph": "X", "pid": 2, "tid": 10, "name": "PjitFunction", "ts": 0.0, "dur": 9e3})
    return events


def test_the_kernels_of_a_gpu_are_those_of_its_streams() -> None:
    found = trace.summary(trace.kernels(a_profile()), steps=2)
    assert found["ms"] == pytest.approx(0.55)
    assert found["kinds"] == {"products": 0.402, "attention": 0.1, "fusions": 0.04, "copies": 0.008}
    assert found["top"][2] == ["loop_convert_fusion", "fusions", 0.04, 2.0]
    assert found["top"][-1][0] == "cutlass::Kernel2"


def test_the_helpers_of_attention_are_attention() -> None:
    for name in ("compute_dot_do_o_specialized", "convert_dq_to_16bits"):
        assert trace.kind(f"cudnn::fusion::{name}") == "attention"
    assert trace.kind("_attention_backward_keys_") == "attention"
    assert trace.kind("gemm_fusion_dot_general") == "products"


def test_a_profile_is_read_from_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        trace.read(tmp_path)
    file = tmp_path / "plugins" / "profile" / "now" / "host.trace.json.gz"
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt") as opened:
        json.dump({"traceEvents": a_profile()}, opened)
    assert trace.read(tmp_path) == a_profile()
    with pytest.raises(ValueError, match="expected kernels"):
        trace.kernels([event for event in a_profile() if event["pid"] == 2])


# The page -----------------------------------------------------------------------------------------


def a_row(part: str, settings: Mapping[str, Any], **measured: Any) -> dict[str, Any]:
    about = {"part": part, "settings": dict(settings), **dataclasses.asdict(ORIGIN)}
    return {**about, "date": "2026-11-27", "tries": 1, "measured": measured}


def attention_rows(**changes: float) -> list[dict[str, Any]]:
    found = []
    for kernel, ms in (("einsum", 9.0), ("cudnn", 2.0), ("xla", 3.0)):
        settings = {"tokens": 257, "batch": 128, "heads": 16, "causal": False, "kernel": kernel}
        numbers = {"forward ms": 1.0, "forward and backward ms": ms}
        error = changes.get(kernel, 0.004)
        found.append(
            a_row("attention", settings, **numbers, error=0.004, **{"gradient error": error})
        )
    return found


def measured_table(found: page.Rows) -> dict[tuple[str, int], tuple[str, ...]]:
    """What the printed lines define."""
    names: dict[str, Any] = {"Kernel": str}
    exec(page.attention_table(found), names)
    return dict(names["MEASURED"])


def test_the_attention_table_orders_the_kernels_that_are_right() -> None:
    lines = page.attention_table(attention_rows()).splitlines()
    assert lines[1] == '    ("H100", 257): ("cudnn", "xla", "einsum"),  # ms: 2.000, 3.000, 9.000'
    wrong = measured_table(attention_rows(cudnn=0.4))
    assert wrong == {("H100", 257): ("xla", "einsum")}
    alone = measured_table(attention_rows(cudnn=0.4, xla=0.4))
    assert alone == {("H100", 257): ("einsum",)}


def test_the_kernels_in_the_code_are_those_of_the_record() -> None:
    recorded = measured_table(record.read(command.OUT))
    assert recorded and recorded.items() <= MEASURED.items()


@pytest.mark.parametrize(
    ("model", "kernels"),
    [
        ("ViT-L/14", "pallas and pallas"),
        ("tiny", "einsum and einsum"),  # its lengths were not measured
        ("RN50", "pallas"),  # of its text
    ],
)
def test_a_step_names_the_kernels_that_it_ran(
    model: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(device_kind="NVIDIA H200")
    monkeypatch.setattr(measure.jax, "devices", lambda: [card])
    assert measure._chosen(model, "auto") == kernels
    assert measure._chosen(model, "cudnn") == "cudnn"


def test_an_error_that_is_no_number_fails() -> None:
    ones = np.ones(3, np.float32)
    assert attention._error(ones * 1.5, ones) == 0.5
    with pytest.raises(ValueError, match="got NaN"):
        attention._error(np.array([1, np.nan, 1], np.float32), ones)


def test_a_step_stands_beside_the_peer_with_its_utilisation() -> None:
    model = {"model": "ViT-L/14", "batch": 128}
    ours = {"ms": 160.0, "images/s": 800.0, "TFLOP": 67.3, "MFU %": 42.5, "kernels": "cudnn"}
    found = [
        a_row("step", {**model, "remat": "none", "attention": "auto"}, **ours),
        a_row("peer", model, ms=177.5, **{"images/s": 721.0}),
    ]
    lines = page.tables(found).splitlines()
    assert "| **1.11** | 160 | 800 | 42.5 |" in lines[2]
    assert "| open_clip, compiled |  | 177.5 | 721 | 38.3 |" in lines[3]


def test_the_largest_batch_of_each_policy_is_shown() -> None:
    found = []
    for batch, rate in ((128, 800.0), (512, 840.0), (256, 820.0)):
        settings = {"model": "ViT-L/14", "batch": batch, "remat": "full", "attention": "auto"}
        numbers = {"ms": 1.0, "images/s": rate, "kernels": "cudnn"}
        found.append(a_row("step", settings, **numbers))
    assert "| full | 512 | 840 |  | 1 |" in page.tables(found)
    assert "largest batch" not in page.tables(found[:1])  # no larger one was tried


def test_rows_that_failed_are_named() -> None:
    row = a_row("loss", ROW.settings) | {"failed": "out of memory: 99 GiB"}
    del row["measured"]
    assert "failed: out of memory: 99 GiB" in page.tables([row])
    assert page.tables([]) == page.NOTHING


def test_the_tables_are_what_the_record_says() -> None:
    page_of = ROOT / "docs" / "gpu.md"
    assert pages.table_in(page_of, page.COMMAND) == page.tables(record.read(command.OUT))
