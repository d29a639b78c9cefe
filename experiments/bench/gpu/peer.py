"""The child of `bench gpu` that measures open_clip: torch and open_clip, no jax.

`python -m experiments.bench.gpu.peer '[["peer", {"model": "ViT-B/32", "batch": 1024}]]'`
"""

import statistics
import time
from typing import Any

from experiments.bench.gpu import child
from experiments.bench.gpu.rows import CONFIGS, STEPS

RUNS = 5


def peer(model: str, batch: int) -> dict[str, Any]:
    """The same step of open_clip: compiled, autocast to bfloat16, fused AdamW."""
    import torch

    from experiments.bench import open_clip_training

    run = open_clip_training.step(CONFIGS[model], batch, "bfloat16")
    began = time.monotonic()
    run()
    first = time.monotonic() - began
    seconds = []
    for _ in range(1 + RUNS):
        began = time.monotonic()
        run(STEPS)
        seconds.append((time.monotonic() - began) / STEPS)
    median = statistics.median(seconds[1:])
    found = {"ms": round(1e3 * median, 2), "images/s": round(batch / median, 1)}
    found["first s"] = round(first, 1)
    if torch.cuda.is_available():
        found["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


if __name__ == "__main__":
    child.serve({"versions": child.versions, "peer": peer})
