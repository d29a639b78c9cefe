"""Blocks in a loop or one after the other: what ViT-L/14's image tower costs to compile and run.

Question:  when is `jaxclip.load(..., unroll=True)` worth it?
Command:   python -m experiments.unrolled [--model NAME] [--repeats N] [--batches 1 16]
Result:    docs/timings.md holds what was measured, with the machine and the versions.

The same weights in both programs, run in turn.
"""

import argparse
import json
import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxclip.config import RELEASED
from jaxclip.models import clip
from jaxclip.models.layers import Numerics

WAYS = {"scanned": Numerics(), "unrolled": Numerics(unroll=True)}


def clocks() -> np.ndarray:
    """[wall, processor] in seconds; other work on the machine hardly moves the second."""
    return np.array([time.monotonic(), time.process_time()])


def main(name: str, batches: Sequence[int], repeats: int) -> None:
    """Print one line a batch size and way: seconds to compile, median seconds to run."""
    jax.config.update("jax_enable_compilation_cache", False)
    config = RELEASED[name]
    size = config.vision.image_size
    leaves = jax.tree.leaves(clip.create(config, remat="none"))
    trees = {
        way: jax.tree.unflatten(
            jax.tree.structure(clip.abstract(config, remat="none", numerics=numerics)), leaves
        )
        for way, numerics in WAYS.items()
    }
    for batch in batches:
        shape = (batch, size, size, 3)
        images = jax.numpy.asarray(np.random.default_rng(0).normal(size=shape), np.float32)
        programs, compiled = {}, {}
        for way, model in trees.items():
            began = clocks()
            programs[way] = jax.jit(lambda m, x: m.encode_image(x)).lower(model, images).compile()
            compiled[way] = clocks() - began
        seconds: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way, model in trees.items():
                began = clocks()
                jax.block_until_ready(programs[way](model, images))
                seconds[way].append(clocks() - began)
        ratios = np.array(seconds["unrolled"]) / np.array(seconds["scanned"])  # [repeats, clocks]
        for way in WAYS:
            row: dict[str, object] = {"model": name, "batch": batch, "way": way}
            row["compile s (wall, processor)"] = compiled[way].round(2).tolist()
            row["run s, median"] = np.median(seconds[way], axis=0).round(3).tolist()
            row["unrolled / scanned, median"] = np.median(ratios, axis=0).round(2).tolist()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(RELEASED), default="ViT-L/14")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.model, arguments.batches, arguments.repeats)
