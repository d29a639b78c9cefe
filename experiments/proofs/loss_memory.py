"""How much memory the loss takes as the batch grows, and whether it is exact at 32,768 pairs.

    python -m experiments.loss_memory    # writes docs/loss_memory.json and .png

Every number comes from a process of its own: the most memory that it ever held (`ru_maxrss`) while
it computed the loss and its gradient, less what it held before. Eight virtual CPU devices for ring
and gathered, one for the others; embeddings of width 8, float32. The judge at 32,768 pairs is NumPy
in float64, which goes over the logits row by row; the ways are asked in float64 as well.
"""

import dataclasses
import functools
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.common import run_experiment

SIZES = (4096, 8192, 16384, 32768, 65536)
LARGEST = {"dense": 16384, "gathered": 16384}  # beyond these the logits take too much
WAYS = ("dense", "gathered", "ring", "chunked")
WIDTH, CHUNK, EXACT = 8, 256, 32768
OUT = Path(__file__).parents[2] / "docs" / "loss_memory"


def embeddings(n: int) -> list[np.ndarray]:
    """Two times [n, e], rows of length one, float64; the texts lie near their images."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, WIDTH))
    both = (images, images + 0.5 * rng.normal(size=(n, WIDTH)))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in both]


def loss_of(way: str) -> Any:
    """(images, texts, t) -> scalar, over all devices of this process."""
    import jax
    from jax.sharding import PartitionSpec as P

    from jaxclip.losses import contrastive_loss
    from jaxclip.training import global_losses as losses
    from jaxclip.training.sharding import data_mesh

    if way == "dense":
        return contrastive_loss
    if way == "chunked":
        return functools.partial(losses.chunked_contrastive_loss, chunk=CHUNK)
    local = {
        "gathered": losses.gathered_contrastive_loss,
        "ring": functools.partial(losses.ring_contrastive_loss, chunk=CHUNK),
    }[way]
    specs = (P("data"), P("data"), P())
    inner = functools.partial(local, axis="data")
    return jax.shard_map(inner, mesh=data_mesh(), in_specs=specs, out_specs=P())


def measure(way: str, n: int, exact: bool) -> None:
    """In a process of its own: one JSON line with the memory taken, or the arrays saved."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", exact)
    dtype = jnp.float64 if exact else jnp.float32
    values = [jnp.asarray(x, dtype) for x in (*embeddings(n), np.log(20.0))]
    compiled = jax.jit(jax.value_and_grad(loss_of(way), argnums=(0, 1, 2))).lower(*values).compile()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value, gradient = jax.block_until_ready(compiled(*values))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row: dict[str, Any] = {"way": way, "pairs": n, "mib": round((after - before) / 1024, 1)}
    if exact:
        expected = by_rows(*embeddings(n), 20.0)
        row["departure"] = max(
            float(np.abs(np.asarray(g) - e).max() / np.abs(e).max())
            for g, e in zip((value, *gradient), expected, strict=True)
        )
    print(json.dumps(row))


def by_rows(images: np.ndarray, texts: np.ndarray, scale: float, rows: int = 256) -> list[Any]:
    """Loss and gradient by Figure 3, in NumPy and float64, `rows` rows of logits at a time."""
    n = len(images)
    over_texts, total = np.empty(n), np.zeros(n)  # no maximum is needed: |logits| <= 20
    for i in range(0, n, rows):
        powers = np.exp(scale * images[i : i + rows] @ texts.T)
        over_texts[i : i + rows] = powers.sum(1)
        total += powers.sum(0)
    own = scale * (images * texts).sum(1)
    loss = (np.log(over_texts).mean() + np.log(total).mean()) / 2 - own.mean()
    d_images, d_texts, d_t = np.empty_like(images), np.zeros_like(texts), 0.0
    for i in range(0, n, rows):
        logits = scale * images[i : i + rows] @ texts.T
        powers = np.exp(logits)
        d_logits = (powers / over_texts[i : i + rows, None] + powers / total) / (2 * n)
        d_logits[np.arange(rows), np.arange(i, i + rows)] -= 1 / n
        d_images[i : i + rows] = scale * d_logits @ texts
        d_texts += scale * d_logits.T @ images[i : i + rows]
        d_t += (d_logits * logits).sum()
    return [loss, d_images, d_texts, np.array(d_t)]


def in_a_process(way: str, n: int, exact: bool = False) -> dict[str, Any]:
    """`measure` in a fresh interpreter."""
    devices = 8 if way in ("gathered", "ring") else 1
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "experiments.loss_memory", way, str(n), str(int(exact))]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def plot(rows: list[dict[str, Any]]) -> None:
    """Memory over pairs, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for way in WAYS:
        line = [(row["pairs"], row["mib"]) for row in rows if row["way"] == way]
        axes.plot(*zip(*line, strict=True), marker="o", label=way)
    axes.set(xscale="log", yscale="log", xlabel="pairs", ylabel="memory of loss and gradient, MiB")
    axes.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def main() -> dict[str, Any]:
    """Measure everything, print it, write the numbers and the plot."""
    import jax

    rows = []
    for way in WAYS:
        for n in SIZES:
            if n <= LARGEST.get(way, SIZES[-1]):
                rows.append(in_a_process(way, n))
                print(rows[-1], flush=True)
    exact = [in_a_process(way, EXACT, exact=True) for way in ("ring", "chunked")]
    print(*exact, sep="\n")
    result = {
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "chunk": CHUNK,
        "memory float32": rows,
        "exact float64": exact,
    }
    OUT.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows)
    return result


@dataclasses.dataclass(frozen=True)
class Flags:
    """None: everything is measured."""


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in WAYS:  # of `in_a_process`
        measure(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])))
    else:
        raise SystemExit(
            run_experiment(lambda _: main(), Flags, sys.argv[1:], "loss_memory", __doc__)
        )
