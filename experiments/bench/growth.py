"""Suite `growth`: how time and memory grow with batch, resolution and devices.

Of one training step, compiled: seconds of the processor, and the memory that XLA plans for
temporaries and state on each device. `experiments/proofs/loss_memory.py` has the loss alone.
"""

import dataclasses
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.batches import arrays
from experiments.bench.open_clip_training import DECAY, RATE
from experiments.bench.pairs import SuiteFlags, say, timed
from experiments.bench.training import SMALL
from jaxclip.cli.usage import Positive
from jaxclip.config import ClipConfig
from jaxclip.models import clip
from jaxclip.training.optimizer import adamw
from jaxclip.training.sharding import data_mesh
from jaxclip.training.state import TrainState
from jaxclip.training.step import clip_loss_fn, sharded_step

PLOT = Path(__file__).parents[2] / "docs" / "growth.png"


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    batches: tuple[Positive, ...] = (8, 16, 32, 64)
    sizes: tuple[Positive, ...] = (64, 96, 128, 192)
    devices: tuple[Positive, ...] = (1, 2, 4)


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """One quantity grows, the others stay at their first values; with `--write` also a plot."""
    of_xla = os.environ.get("XLA_FLAGS", "")
    most = max([1, *flags.devices])
    os.environ["XLA_FLAGS"] = f"{of_xla} --xla_force_host_platform_device_count={most}"
    base = SMALL["small ViT"]
    cases = [("batch", base, batch, 1) for batch in flags.batches]
    for size in flags.sizes:
        config = replace(base, vision=replace(base.vision, image_size=size))
        cases.append(("image size", config, flags.batches[0], 1))
    cases += [("devices", base, max(flags.batches), count) for count in flags.devices]
    made: dict[str, list[dict[str, Any]]] = {"batch": [], "image size": [], "devices": []}
    for grows, config, batch, count in cases:
        row = _row(config, batch, count, flags.pairs)
        made[grows].append(row)
        yield {"what": f"{grows} grows", **row}
    if flags.write:
        _plot({grows: each for grows, each in made.items() if each})


def _row(config: ClipConfig, batch: int, devices: int, runs: int) -> dict[str, Any]:
    say(f"batch {batch}, {config.vision.image_size} pixels, {devices} devices")
    mesh = data_mesh(jax.devices()[:devices])
    optimizer = adamw(RATE, 10, 1000, DECAY)
    graphdef, state = TrainState.create(clip.create(config), optimizer, jax.random.key(0))
    step = sharded_step(mesh, clip_loss_fn(graphdef), optimizer)
    images, tokens = arrays(config, batch)
    data = {"image": jnp.asarray(images), "tokens": jnp.asarray(tokens)}
    whole = (state, data, jax.random.key(0))
    compiled = step.lower(*whole).compile()
    memory = compiled.memory_analysis()
    state, data, key = jax.device_put(whole, compiled.input_shardings[0])

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, data, key)
        jax.block_until_ready(metrics)

    run()
    cpu = statistics.median(timed(run).cpu for _ in range(runs))
    measured = {
        "processor s": round(cpu, 4),
        "temporaries, MiB a device": round(memory.temp_size_in_bytes / 2**20, 1),
        "state and batch, MiB a device": round(memory.argument_size_in_bytes / 2**20, 1),
    }
    what = {"batch": batch, "image size": config.vision.image_size, "devices": devices}
    return {**what, "measured": measured}


def _plot(made: dict[str, list[dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(made), figsize=(3 * len(made), 5), layout="constrained")
    for column, (grows, each) in zip(panels.T, made.items(), strict=True):
        x = [row[grows] for row in each]
        for axes, what in zip(column, ("processor s", "temporaries, MiB a device"), strict=True):
            axes.plot(x, [row["measured"][what] for row in each], marker="o")
            axes.set(xlabel=grows, ylabel=what, ylim=(0, None))
            axes.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=110)
