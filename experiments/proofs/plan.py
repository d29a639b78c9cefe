"""What does the training step of the paper's models take on TPUs and on one H100?

    python -m experiments.plan             # what is missing of docs/gpu_plan.json and docs/tpu.json
    python -m experiments.plan --small     # a small model, and what must hold; what CI runs

Nothing is run on a TPU or GPU: jax uses their compilers (extras `tpu` and `gpu-plan`), whichever
are installed. Each row is written as soon as it is made, and the same command goes on from there;
rows of other versions of jax and of the compilers are made again. One to three minutes a row.
"""

import dataclasses
import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.lib import pages
from experiments.lib.common import run_experiment
from jaxclip.checkpoint import replacing
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.models import clip
from jaxclip.models.parameters import count_parameters
from jaxclip.training import targets
from jaxclip.training.plan import POLICIES, report
from jaxclip.training.recipe import Execution, Recipe, presets

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
COMMAND = "python -m experiments.plan"
# No width of it is 2048, the batch, or 2048 over the number of devices.
SMALL = ClipConfig(VisionConfig(64, 16, 128, 2, 2), TextConfig(128, 2, 2, 33, 1009), 96)
SMALL_RECIPE = Recipe(batch_size=2048, text_length=33, dtype="bfloat16", remat="full", model=SMALL)

GPU_BATCHES = {  # of the card's bench: `experiments.bench gpu`
    "ViT-L/14": 128,
    "ViT-B/32": 1024,
    "ViT-B/16": 512,
    "ViT-L/14@336px": 48,
    "RN50": 512,
}
TPUS = ("v5e:16x16", "v4:4x4x4", "v5p:4x4x4", "v6e:8x8")
TPU_BATCH = 32768
SENT = ("all-gather", "all-reduce", "collective-permute")  # collectives in the TPUs' table
BUFFERS = 12  # the largest, listed for ViT-L/14 on the smallest chip


@dataclasses.dataclass(frozen=True)
class Row:
    """One step to plan."""

    model: str
    topology: str
    batch: int
    loss: Any
    remat: Any
    fsdp: int = 1

    def plan(self) -> dict[str, Any]:
        """What it takes, with what it is."""
        recipe = dataclasses.replace(presets[self.model], batch_size=self.batch, remat=self.remat)
        execution = Execution(self.loss, self.fsdp)
        buffers = BUFFERS if (self.model, self.topology) == ("ViT-L/14", "v5e:16x16") else 0
        began = time.monotonic()
        found = report(recipe, execution, self.topology, search=False, buffers=buffers)
        seconds = round(time.monotonic() - began)
        return {**dataclasses.asdict(self), **found, "compile seconds": seconds}

    def stands_in(self, rows: list[dict[str, Any]]) -> bool:
        own = dataclasses.asdict(self)
        return any(all(row.get(name) == value for name, value in own.items()) for row in rows)


GPU_ROWS = [Row(m, "h100", n, "dense", remat) for m, n in GPU_BATCHES.items() for remat in POLICIES]
GPU_ROWS += [Row("ViT-L/14", "h100:8", 1024, "ring", "products", fsdp) for fsdp in (1, 8)]
TPU_ROWS = [
    Row(model, topology, TPU_BATCH, "ring", remat)
    for remat in reversed(POLICIES)  # what fits most often first
    for topology in TPUS
    for model in GPU_BATCHES
]
TPU_ROWS += [Row("ViT-L/14", "v5e:16x16", TPU_BATCH, "ring", "full", fsdp) for fsdp in (8,)]


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of rows, and the compiler that makes them."""

    file: Path
    rows: list[Row]
    package: str  # of the compiler

    def versions(self) -> dict[str, str] | None:
        """What the rows depend on; None without the compiler."""
        try:
            found = {name: version(name) for name in ("jax", "jaxlib", self.package)}
        except PackageNotFoundError:
            return None
        return {**found, "python": platform.python_version()}

    def record(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def make(self, wanted: "Flags") -> None:
        """Plan the rows that are not there yet."""
        if (versions := self.versions()) is None:
            print(f"{self.file.name}: left as it is, {self.package} is not installed")
            return
        kept = self.record()
        rows = kept.get("rows", []) if kept.get("versions") == versions else []
        for row in self.rows:
            if not wanted.names(row) or (row.stands_in(rows) and not wanted.again):
                continue
            rows = [other for other in rows if not row.stands_in([other])] + [row.plan()]
            print(json.dumps(rows[-1]), flush=True)
            record = {**kept, "command": COMMAND, "versions": versions, "rows": rows}
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")


GPU = Table(ROOT / "docs" / "gpu_plan.json", GPU_ROWS, targets.CUDA_PLUGIN)
TPU = Table(ROOT / "docs" / "tpu.json", TPU_ROWS, "libtpu")


# What CI runs -------------------------------------------------------------------------------------


def small() -> None:
    """Check a small step on the compilers that are installed: it compiles, with the right parts."""
    if TPU.versions():
        small_tpu()
    if GPU.versions():
        small_gpu()
    if not (TPU.versions() or GPU.versions()):
        raise ValueError(f"expected a compiler; {targets.TPU_EXTRA} or {targets.GPU_EXTRA}")


def _small_report(recipe: Recipe, loss: Any, topology: str, fsdp: int = 1) -> dict[str, Any]:
    found = report(recipe, Execution(loss, fsdp), topology)
    print(json.dumps(found), flush=True)
    return found


def small_tpu() -> None:
    """A ring holds one block of logits; what does not fit is followed by what does."""
    for topology in ("v5e:2x4", "v4:2x2x1"):
        found = _small_report(SMALL_RECIPE, "ring", topology)
        assert found["fits"], found
        assert found["collectives"]["collective-permute"]["count"] >= 1, found
        assert found["logits held"] == [], found
        assert found["float32_flops_share"] <= 0.001, found
    # the check can fail
    found = _small_report(SMALL_RECIPE, "gathered", "v5e:2x4")
    assert found["logits held"] == [(256, 2048)], found
    tight = dataclasses.replace(SMALL_RECIPE, batch_size=2**17, remat="none")
    found = _small_report(tight, "ring", "v5e:2x2")
    assert not found["fits"] and found["fits with"]["fits"], found
    assert found["fits with"]["flags"][0].startswith("--remat"), found


def small_gpu() -> None:
    """The step compiles for one GPU and for four: bfloat16, a roofline, what fsdp sends."""
    one = dataclasses.replace(SMALL_RECIPE, batch_size=256)
    found = _small_report(one, "dense", "h100")
    assert found["fits"] and found["roofline"]["step ms"] > 0, found
    assert found["float32_flops_share"] <= 0.001 and found["collectives"] == {}, found
    found = _small_report(one, "ring", "a100:4")
    assert found["fits"] and found["collectives"]["collective-permute"]["count"] >= 1, found
    # fsdp: kernels are gathered in bfloat16, and gradients summed into the parts of the devices
    whole = _small_report(SMALL_RECIPE, "ring", "h100:4")["collectives"]
    found = _small_report(SMALL_RECIPE, "ring", "h100:4", fsdp=4)["collectives"]
    numbers = count_parameters(clip.abstract(SMALL))
    assert "reduce-scatter" not in whole and found["reduce-scatter"]["count"] >= 1, found
    assert found["all-reduce"]["bytes"] < whole["all-reduce"]["bytes"] / 4, (found, whole)
    assert 2 * numbers < found["all-gather"]["bytes"] < 3 * numbers, (found, numbers)


# The tables ---------------------------------------------------------------------------------------


def _row_line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def gpu_table(record: dict[str, Any]) -> str:
    """The rows of docs/gpu_plan.json."""
    lines = [
        "| model, pairs | GPUs, fsdp | remat | GiB a GPU | temporaries | attention kernels "
        "| float32 FLOPs | GB moved | roofline, ms | MFU it allows |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record.get("rows", []):
        calls = row["attention kernels"].items()
        kernels = ", ".join(f"{v['forward']} + {v['backward']} {k}" for k, v in calls)
        bound, moved = row["roofline"], sum(row["GB moved"].values())
        cells = [f"{row['model']}, {row['batch']}", f"{row['topology']}, {row['fsdp']}"]
        cells += [row["remat"].replace("_", " ")]
        cells += [f"{row['GiB a device']}{'' if row['fits'] else ', too much'}"]
        cells += [row["temporaries GiB"], kernels or "einsum"]
        cells += [f"{100 * row['float32_flops_share']:.2f} %", f"{moved:.0f}"]
        lines.append(_row_line(*cells, bound["step ms"], f"{100 * bound['MFU']:.0f} %"))
    return "\n".join(lines)


def _temporaries(rows: list[dict[str, Any]], remat: str) -> str:
    """Of the row with that policy; in brackets where it is more than the chip has.

    "at most" where it is `temp_size_in_bytes` of a TPU's program (`training.plan`).
    """
    row = next((row for row in rows if row["remat"] == remat), None)
    if row is None:
        return "-"
    if row["fits"]:
        return f"{'at most ' if row.get('at most') else ''}{row['temporaries GiB']}"
    words = row["because"].split()
    return f"({words[1]})" if words[0] == "needs" else "(too much)"


def tpu_table(record: dict[str, Any]) -> str:
    """The rows of docs/tpu.json, one line for a model and topology."""
    lines = [
        "| model | TPU, chips, fsdp | state and batch | "
        + " | ".join(policy.replace("_", " ") for policy in POLICIES)
        + " | full, before | "
        + " | ".join(SENT)
        + " |",
        "|---|---|---|" + "---|" * (len(POLICIES) + 1 + len(SENT)),
    ]
    before = record.get("before", {}).get("temporaries GiB", {})
    rows = record.get("rows", [])
    keys = dict.fromkeys((row.model, row.topology, row.fsdp) for row in TPU_ROWS)
    for model, topology, fsdp in keys:
        own = [
            row
            for row in rows
            if (row["model"], row["topology"], row.get("fsdp", 1)) == (model, topology, fsdp)
        ]
        if not own:
            continue
        fitting = [row for row in own if row["fits"]]
        last = fitting[0] if fitting else None
        cells = [model, f"{topology}, {own[0]['devices']}, {fsdp}"]
        cells += [last["of them state and batch"] if last else "-"]
        cells += [_temporaries(own, policy) for policy in POLICIES]
        cells += [before.get(f"{model} on {topology}", "-") if fsdp == 1 else "-"]
        for kind in SENT:
            sent = (last or {}).get("collectives", {}).get(kind, {"count": 0, "bytes": 0})
            cells.append(f"{sent['count']}, {sent['bytes'] / 2**20:.1f} MiB")
        lines.append(_row_line(*cells))
    return "\n".join(lines)


def buffers_table(record: dict[str, Any]) -> str:
    """The largest buffers of ViT-L/14 on the smallest chip, with everything computed again."""
    rows = [
        row
        for row in record.get("rows", [])
        if row.get("largest buffers") and (row["remat"], row.get("fsdp", 1)) == ("full", 1)
    ]
    lines = ["| MiB | arrays that share it, one after the other |", "|---|---|"]
    if rows:
        lines += [_row_line(b["MiB"], f"`{b['arrays']}`") for b in rows[0]["largest buffers"]]
    return "\n".join(lines)


def rewrite(page: Path = PAGE) -> None:
    """Write the tables of docs/scaling.md from the records."""
    pages.write_table(page, COMMAND, tpu_table(TPU.record()))
    pages.write_table(page, f"{COMMAND}: buffers", buffers_table(TPU.record()))
    pages.write_table(page, f"{COMMAND}: GPUs", gpu_table(GPU.record()))


@dataclasses.dataclass(frozen=True)
class Flags:
    small: bool = False
    """what CI runs"""
    rewrite: bool = False
    """compile nothing, write the tables"""
    models: tuple[str, ...] = ()
    """only these"""
    topologies: tuple[str, ...] = ()
    """only these"""
    remat: tuple[str, ...] = ()
    """only these policies"""
    again: bool = False
    """make rows that are there already"""

    def names(self, row: Row) -> bool:
        """Whether a row is wanted."""
        chosen = (self.models, row.model), (self.topologies, row.topology), (self.remat, row.remat)
        return all(not names or value in names for names, value in chosen)


def work(flags: Flags) -> None:
    """Plan the small step or the missing rows, or write the tables."""
    if not flags.rewrite:
        targets.use_no_accelerator()
    if flags.small:
        small()
        return
    try:
        if not flags.rewrite:
            GPU.make(flags)
            TPU.make(flags)
    finally:  # after Ctrl-C as well the page shows the rows that are there
        rewrite()


if __name__ == "__main__":
    raise SystemExit(run_experiment(work, Flags, sys.argv[1:], "plan", __doc__))
