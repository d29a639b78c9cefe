"""Does the training step of the paper's models compile for TPUs, and what does it take?

    python -m experiments.plan             # writes docs/tpu.json; an environment with libtpu
    python -m experiments.plan --small     # two topologies, a small model, and what must hold

Nothing is run on a TPU: jax asks the compiler that TPUs use (libtpu).
"""

import dataclasses
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.lib import pages
from experiments.lib.common import run_experiment
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.training.recipe import Execution, Recipe, presets
from jaxclip.training.tpu_plan import report

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "tpu.json"
PAGE = ROOT / "docs" / "scaling.md"
COMMAND = "python -m experiments.plan"
# No width of it is 2048, the batch, or 2048 over the number of devices.
SMALL = ClipConfig(VisionConfig(64, 16, 128, 2, 2), TextConfig(128, 2, 2, 33, 1009), 96)
SMALL_RECIPE = Recipe(batch_size=2048, text_length=33, dtype="bfloat16", remat="full", model=SMALL)
SMALL_TOPOLOGIES = ("v5e:2x4", "v4:2x2x1")
TOPOLOGIES = ("v5e:16x16", "v4:4x4x4", "v5p:4x4x4", "v6e:8x8")


def small() -> None:
    """What continuous integration asks: it compiles, as a ring, and holds a block of logits."""
    for topology in SMALL_TOPOLOGIES:
        told = report(SMALL_RECIPE, Execution("ring"), topology)
        print(json.dumps(told), flush=True)
        assert told["fits"], told
        assert told["collectives"]["collective-permute"]["count"] >= 1, told
        assert told["logits held"] == [], told
    # the check can fail
    told = report(SMALL_RECIPE, Execution("gathered"), SMALL_TOPOLOGIES[0])
    print(json.dumps(told), flush=True)
    assert told["logits held"] == [(256, 2048)], told
    # what does not fit is told, with what to change
    tight = dataclasses.replace(SMALL_RECIPE, batch_size=2**17, remat="none")
    told = report(tight, Execution("ring"), "v5e:2x2")
    print(json.dumps(told), flush=True)
    assert not told["fits"] and told["try"][0] == "--remat full", told


def table(record: dict[str, Any]) -> str:
    """The record as a table."""
    lines = [
        "| model | TPU, chips | GiB a chip, state and batch of it | TFLOPs a chip and step | "
        "all-reduce | collective-permute |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        flops = row["model TFLOPs a step"] / row["devices"]
        told = [row["model"], f"{row['topology']}, {row['devices']}"]
        told += [f"{row['GiB a device']}, {row['of them state and batch']}", f"{flops:.1f}"]
        for kind in ("all-reduce", "collective-permute"):
            sent = row["collectives"].get(kind, {"count": 0, "bytes": 0})
            told.append(f"{sent['count']}, {sent['bytes'] / 2**20:.1f} MiB")
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> list[dict[str, Any]]:
    """The full-size table, a line as soon as it is there."""
    rows = []
    for topology in TOPOLOGIES:
        for name in ("ViT-B/32", "ViT-L/14", "RN50"):
            began = time.monotonic()
            row = {"model": name, **report(presets[name], Execution("ring"), topology)}
            assert not row.get("logits held"), row  # the ring holds a block of logits and no more
            rows.append({**row, "compile seconds": round(time.monotonic() - began)})
            print(json.dumps(rows[-1]), flush=True)
            versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
            versions["python"] = platform.python_version()
            OUT.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    rewrite()
    return rows


def rewrite() -> None:
    """Write the table of docs/scaling.md from the record."""
    pages.write_table(PAGE, COMMAND, table(json.loads(OUT.read_text())))


@dataclasses.dataclass(frozen=True)
class Flags:
    small: bool = False
    """what CI runs"""
    rewrite: bool = False
    """compile nothing, write the table"""


def work(flags: Flags) -> None:
    """Compile the small step or the full-size ones, or write the table."""
    small() if flags.small else rewrite() if flags.rewrite else main()


if __name__ == "__main__":
    raise SystemExit(run_experiment(work, Flags, sys.argv[1:], "plan", __doc__))
