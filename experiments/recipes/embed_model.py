"""How a finished run becomes the embedded model.

Question:  which weights travel inside the repository, and how large are they?
Command:   jaxclip train emoji --preset full --out RUN && python -m experiments.embed_model RUN
Result:    jaxclip/data_files/emoji.safetensors, weights in float16.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from experiments.lib.common import run_experiment
from jaxclip import checkpoint

TARGET = Path("jaxclip/data_files/emoji.safetensors")


@dataclasses.dataclass(frozen=True)
class Flags:
    run: Positional[Path]
    """a finished run folder"""


def work(flags: Flags) -> None:
    """Halve the precision, keep the config and the notes, add the run's scores."""
    flat, config, notes = checkpoint.load(flags.run / "model.safetensors")
    half = {name: array.astype(np.float16) for name, array in flat.items()}
    notes["scores"] = json.loads((flags.run / "result.json").read_text())["scores"]["model"]
    checkpoint.save(TARGET, half, config, notes)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.1f} MB")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return run_experiment(work, Flags, given, "embed_model", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
