"""Blocks in a loop or one after the other: what ViT-L/14's image tower costs to compile and run.

Question:  when is `jaxclip.load(..., unroll=True)` worth it?
Command:   python -m experiments.unrolled [--model NAME] [--repeats N] [--batches 1 16]
Result:    docs/timings.md holds what was measured, with the machine and the versions.

The same weights in both programs, run in turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np

from jaxclip.config import RELEASED
from jaxclip.models import clip
from jaxclip.models.layers import Numerics

WAYS = {"scanned": Numerics(), "unrolled": Numerics(unroll=True)}


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
        images = jax.numpy.asarray(np.random.default_rng(0).normal(size=(batch, size, size, 3)))
        images = images.astype(np.float32)
        programs, compiled = {}, {}
        for way, model in trees.items():
            began = time.monotonic()
            programs[way] = jax.jit(lambda m, x: m.encode_image(x)).lower(model, images).compile()
            compiled[way] = time.monotonic() - began
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way, model in trees.items():
                began = time.monotonic()
                jax.block_until_ready(programs[way](model, images))
                seconds[way].append(time.monotonic() - began)
        pairs = zip(seconds["unrolled"], seconds["scanned"], strict=True)
        ratio = statistics.median(unrolled / scanned for unrolled, scanned in pairs)
        for way in WAYS:
            row = {"model": name, "batch": batch, "way": way, "compile s": round(compiled[way], 2)}
            row |= {"run s, median": round(statistics.median(seconds[way]), 3)}
            print(json.dumps({**row, "unrolled / scanned": round(ratio, 2)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(RELEASED), default="ViT-L/14")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.model, arguments.batches, arguments.repeats)
