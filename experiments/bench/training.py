"""Suite `training`: one step (forward, loss, gradient, AdamW), beside open_clip on PyTorch.

Both draw their own random weights of the same shapes; data wait on the device. On a GPU open_clip
is compiled and runs under autocast; `--largest` looks for the largest batch of each loss.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from experiments.bench import open_clip_training
from experiments.bench.batches import arrays
from experiments.bench.open_clip_training import DECAY, RATE
from experiments.bench.pairs import SuiteFlags, compared, in_turn, peak_memory, say
from jaxclip.cli.usage import Positive
from jaxclip.config import RELEASED, ClipConfig, Remat, ResNetConfig, TextConfig, VisionConfig
from jaxclip.training import from_recipe
from jaxclip.training.flops import model_flops
from jaxclip.training.pixels import as_given
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh

SMALL = {  # for a CPU
    "small ViT": ClipConfig(VisionConfig(96, 16, 192, 4, 3), TextConfig(128, 4, 2, 32, 4096), 128),
    "small ResNet": ClipConfig(
        ResNetConfig(96, 32, (1, 1, 2, 1)), TextConfig(128, 4, 2, 32, 4096), 128
    ),
}
MODELS = {**SMALL, **RELEASED}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LOSSES = ("dense", "ring", "chunked")
Step = Callable[[], object]


class Steps(Protocol):
    """Makes so many steps, none of which waits for the one before, and returns the last loss."""

    def __call__(self, steps: int = 1) -> float: ...


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    models: tuple[Literal[*MODELS], ...] = tuple(SMALL)
    batches: tuple[Positive, ...] = (16,)
    precision: Literal[*DTYPES] = "float32"
    remat: Remat = "none"
    peak: float | None = None
    """of the chip, TFLOP/s: gives the utilisation"""
    largest: bool = False
    """the largest batch of each loss"""


def ours(
    config: ClipConfig,
    batch: int,
    precision: str,
    remat: str,
    loss: str = "dense",
    attention: str = "auto",
) -> Steps:
    """A function that makes steps; state donated, batch on the device."""
    mesh = data_mesh(jax.devices()[:1])
    recipe = Recipe(
        steps=1000,
        batch_size=batch,
        learning_rate=RATE,
        warmup=10,
        weight_decay=DECAY,
        dtype=precision,  # type: ignore[arg-type]
        remat=remat,  # type: ignore[arg-type]
        text_length=config.text.context_length,
        model=config,
    )
    execution = Execution(loss, attention=attention)  # type: ignore[arg-type]
    step = from_recipe.compiled_step(recipe, execution, mesh, as_given)
    state = from_recipe.first_state(recipe, mesh)
    images, tokens = arrays(config, batch)
    data = {"image": jnp.asarray(images), "tokens": jnp.asarray(tokens)}
    key = jax.random.key(0)

    def run(steps: int = 1) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, data, key)
        return float(metrics["loss"])

    return run


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row a model and batch, and with `--largest` one a loss."""
    import torch

    torch.set_num_threads(flags.threads)
    for name in flags.models:
        config = MODELS[name]
        for batch in flags.batches:
            say(f"{name}, batch {batch}")
            sides: dict[str, Step] = {
                "jaxclip": ours(config, batch, flags.precision, flags.remat),
                "open_clip": open_clip_training.step(config, batch, flags.precision),
            }
            for run in sides.values():
                run()
                run()
            what = {"model": name, "batch": batch, "precision": flags.precision}
            what |= {"threads": flags.threads, "remat": flags.remat}
            row = compared(what, in_turn(sides, flags.pairs))
            row["measured"] = _measured(config, batch, row["wall s"], flags.peak)
            yield row
        if flags.largest:
            for loss in LOSSES:
                make = functools.partial(
                    ours, config, precision=flags.precision, remat=flags.remat, loss=loss
                )
                found = largest_batch(lambda batch, make=make: make(batch)())  # type: ignore[misc]
                what = {"model": name, "loss": loss, "precision": flags.precision}
                yield {**what, "measured": {"largest batch": found}}


def _measured(
    config: ClipConfig, batch: int, wall: dict[str, float], peak: float | None
) -> dict[str, Any]:
    """Images a second and TFLOP/s of the model's own arithmetic; memory where it is known."""
    flops = model_flops(config, batch)
    found: dict[str, Any] = {f"images/s, {side}": round(batch / s, 1) for side, s in wall.items()}
    reached = flops / wall["jaxclip"] / 1e12
    found["model TFLOP/s"] = round(reached, 3)
    if peak:
        found["utilisation"] = round(reached / peak, 3)
    memory = jax.devices()[0].memory_stats() or {}
    bytes_used = memory.get("peak_bytes_in_use")
    found["peak MiB, device" if bytes_used else "peak MiB, both sides"] = round(
        bytes_used / 2**20 if bytes_used else peak_memory()
    )
    return found


def largest_batch(step: Callable[[int], object], start: int = 8, most: int = 1 << 20) -> int:
    """The largest batch that `step` does not run out of memory with, to an eighth; 0 if none."""

    def fits(batch: int) -> bool:
        try:
            step(batch)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                return False
            raise
        return True

    good, bad = 0, start
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    while good and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
