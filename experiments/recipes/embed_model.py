"""How a finished run becomes the embedded model.

Question:  which weights travel inside the repository, and how large are they?
Command:   jaxclip train emoji --preset full --out RUN && python -m experiments.embed_model RUN
Result:    jaxclip/data_files/emoji.safetensors, weights in float16.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from jaxclip import checkpoint

TARGET = Path("jaxclip/data_files/emoji.safetensors")


def main() -> None:
    """Halve the precision, keep the config and the notes, add the run's scores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    run = parser.parse_args().run
    flat, config, notes = checkpoint.load(run / "model.safetensors")
    half = {name: array.astype(np.float16) for name, array in flat.items()}
    notes["scores"] = json.loads((run / "result.json").read_text())["scores"]["model"]
    checkpoint.save(TARGET, half, config, notes)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
