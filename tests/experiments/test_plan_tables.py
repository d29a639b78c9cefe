"""The command that plans the paper's models: resumed, chosen rows, and the tables it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.proofs import plan

BASE = {"devices": 1, "of them state and batch": 4.8, "float32_flops_share": 0.0}
BASE |= {"GB moved": {"other": 100.4, "product": 30.2}, "roofline": {"step ms": 150.1, "MFU": 0.45}}
BASE |= {"collectives": {"all-reduce": {"count": 8, "bytes": 2**20}}}
KERNELS = {"cudnn": {"forward": 36, "backward": 36}}


def planned(row: plan.Row, **more) -> dict:
    facts = {**dataclasses.asdict(row), **BASE, "fits": True, "GiB a device": 22.99}
    return {**facts, "temporaries GiB": 18.2, "attention kernels": KERNELS, **more}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plan.Table:
    rows = [plan.Row("RN50", "h100", 512, "dense", remat) for remat in ("none", "full")]
    versions = {"jax": "1", "jax-cuda13-plugin": "1"}
    monkeypatch.setattr(plan.Table, "versions", lambda self: versions)
    monkeypatch.setattr(plan.Row, "plan", lambda self: MADE.append(self) or planned(self))
    MADE.clear()
    return plan.Table(tmp_path / "rows.json", rows, "jax-cuda13-plugin")


MADE: list[plan.Row] = []


def test_rows_are_written_as_they_are_made_and_made_once(table, monkeypatch):
    def interrupt(self):
        if self.remat == "full":
            raise KeyboardInterrupt
        return planned(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plan.Row, "plan", interrupt)
        table.make(plan.Flags())
    assert [row["remat"] for row in table.record()["rows"]] == ["none"]
    table.make(plan.Flags())
    assert [row.remat for row in MADE] == ["full"] and len(table.record()["rows"]) == 2
    table.make(plan.Flags())
    assert len(MADE) == 1
    table.make(plan.Flags(again=True, remat=("none",)))
    assert [row.remat for row in MADE] == ["full", "none"] and len(table.record()["rows"]) == 2


def test_rows_of_other_versions_are_made_again_and_what_was_before_stays(table, monkeypatch):
    before = {"temporaries GiB": {"RN50 on h100": 1.0}}
    table.make(plan.Flags())
    table.file.write_text(json.dumps({**table.record(), "before": before}))
    monkeypatch.setattr(plan.Table, "versions", lambda self: {"jax": "2"})
    table.make(plan.Flags(remat=("full",)))
    record = table.record()
    assert [row["remat"] for row in record["rows"]] == ["full"] and record["before"] == before
    assert record["versions"] == {"jax": "2"} and record["command"] == plan.COMMAND


def test_only_the_chosen_rows_are_made(table):
    for flags in (plan.Flags(models=("ViT-L/14",)), plan.Flags(topologies=("v5e:16x16",))):
        table.make(flags)
    assert MADE == [] and not table.file.exists()
    table.make(plan.Flags(models=("RN50",), topologies=("h100",), remat=("full",)))
    assert [row.remat for row in MADE] == ["full"]


def test_without_the_compiler_a_table_is_left_as_it_is(table, monkeypatch, capsys):
    monkeypatch.setattr(plan.Table, "versions", lambda self: None)
    table.make(plan.Flags())
    assert MADE == [] and "is not installed" in capsys.readouterr().out


def test_every_model_is_planned_with_every_policy():
    for rows, topologies in ((plan.GPU_ROWS, {"h100"}), (plan.TPU_ROWS, set(plan.TPUS))):
        found = {(r.model, r.topology, r.remat) for r in rows if r.topology in topologies}
        wanted = {(m, t, p) for m in plan.GPU_BATCHES for t in topologies for p in plan.POLICIES}
        assert found == wanted
    assert all(row.batch == 32768 and row.loss == "ring" for row in plan.TPU_ROWS)


def test_the_gpus_table_says_what_does_not_fit_and_which_attention():
    row = plan.Row("ViT-L/14", "h100", 128, "dense", "products_and_attention")
    fits = planned(row)
    not_fused = planned(row, fits=False, **{"attention kernels": {}})
    lines = plan.gpu_table({"rows": [fits, not_fused]}).splitlines()
    assert lines[2] == (
        "| ViT-L/14, 128 | h100, 1 | products and attention | 22.99 | 18.2 | 36 + 36 cudnn "
        "| 0.00 % | 131 | 150.1 | 45 % |"
    )
    assert "22.99, too much" in lines[3] and "einsum" in lines[3]


def test_the_tpus_table_has_a_line_for_each_chip_and_a_column_for_each_policy():
    full, none, products = (
        plan.Row("ViT-L/14", "v5e:16x16", 32768, "ring", remat)
        for remat in ("full", "none", "products")
    )
    rows = [
        planned(full),
        planned(none, fits=False, because="needs 41.97 GiB, the chip has 15.75 GiB"),
    ]
    rows += [planned(products, fits=False, because="RESOURCE_EXHAUSTED")]
    record = {"rows": rows, "before": {"temporaries GiB": {"ViT-L/14 on v5e:16x16": 9.08}}}
    other, cut = dataclasses.replace(full, model="RN50"), dataclasses.replace(full, fsdp=8)
    rows = [
        planned(cut, **{"at most": True}),
        planned(other),
        *rows,
    ]  # the table has an order of its own
    own, of_other, with_fsdp = plan.tpu_table({**record, "rows": rows}).splitlines()[2:]
    assert own == (
        "| ViT-L/14 | v5e:16x16, 1, 1 | 4.8 | (41.97) | - | (too much) | 18.2 | 9.08 "
        "| 0, 0.0 MiB | 8, 1.0 MiB | 0, 0.0 MiB |"
    )
    assert of_other.startswith("| RN50 | v5e:16x16, 1, 1 | 4.8 | - | - | - | 18.2 | - |")
    assert with_fsdp.startswith("| ViT-L/14 | v5e:16x16, 1, 8 | 4.8 | - | - | - | at most 18.2 |")


def test_the_largest_buffers_are_of_the_row_that_the_page_names():
    def planned_with(arrays: str, **of_row) -> dict:
        row = plan.Row("ViT-L/14", "v5e:16x16", 32768, "ring", **{"remat": "full", **of_row})
        return planned(row, **{"largest buffers": [{"MiB": 1546.2, "arrays": arrays}]})

    rows = [planned_with("f32[1]", fsdp=8), planned_with("f32[2]", remat="none")]
    table = plan.buffers_table({"rows": [*rows, planned_with("5xbf16[24,128,257,1024]")]})
    assert table.splitlines()[2:] == ["| 1546.2 | `5xbf16[24,128,257,1024]` |"]
