"""Does the training step of the paper's models compile for TPUs, and what does it take?

    python -m experiments.plan             # writes docs/tpu.json; an environment with libtpu
    python -m experiments.plan --small     # two topologies, a small model, and what must hold

Nothing is run on a TPU: jax asks the compiler that TPUs use (libtpu).
"""

import argparse
import dataclasses
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.training.plan import report
from jaxclip.training.recipe import PRESETS, Layout, TrainConfig

OUT = Path(__file__).parents[1] / "docs" / "tpu.json"
# No width of it is 2048, the batch, or 2048 over the number of devices.
SMALL = ClipConfig(VisionConfig(64, 16, 128, 2, 2), TextConfig(128, 2, 2, 33, 1009), 96)
SMALL_RECIPE = TrainConfig(
    batch_size=2048, text_length=33, dtype="bfloat16", remat="full", model=SMALL
)
SMALL_TOPOLOGIES = ("v5e:2x4", "v4:2x2x1")
TOPOLOGIES = ("v5e:16x16", "v4:4x4x4", "v5p:4x4x4", "v6e:8x8")


def small() -> None:
    """What continuous integration asks: it compiles, as a ring, and holds a block of logits."""
    for topology in SMALL_TOPOLOGIES:
        told = report(SMALL_RECIPE, Layout("ring"), topology)
        print(json.dumps(told), flush=True)
        assert told["fits"], told
        assert told["collectives"]["collective-permute"]["count"] >= 1, told
        assert told["logits held"] == [], told
    # the check can fail
    told = report(SMALL_RECIPE, Layout("gathered"), SMALL_TOPOLOGIES[0])
    print(json.dumps(told), flush=True)
    assert told["logits held"] == [(256, 2048)], told
    # what does not fit is told, with what to change
    tight = dataclasses.replace(SMALL_RECIPE, batch_size=2**17, remat="none")
    told = report(tight, Layout("ring"), "v5e:2x2")
    print(json.dumps(told), flush=True)
    assert not told["fits"] and told["try"][0] == "--remat full", told


def main() -> list[dict[str, Any]]:
    """The full-size table, a line as soon as it is there; what does not compile is told as well."""
    rows = []
    for topology in TOPOLOGIES:
        for name in ("ViT-B/32", "ViT-L/14", "RN50"):
            began = time.monotonic()
            row = {"model": name, **report(PRESETS[name], Layout("ring"), topology)}
            rows.append({**row, "compile seconds": round(time.monotonic() - began)})
            print(json.dumps(rows[-1]), flush=True)
            versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
            versions["python"] = platform.python_version()
            OUT.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true")
    small() if parser.parse_args().small else main()
