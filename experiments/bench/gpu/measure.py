"""The child of `bench gpu` that measures jaxclip: a function a part, in jax's default device."""

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxclip
from experiments.bench.batches import arrays
from experiments.bench.gpu import child, trace
from experiments.bench.gpu.attention import attention as measure_attention
from experiments.bench.gpu.gradients import gradients
from experiments.bench.gpu.rows import CONFIGS, PEAKS, STEPS, chip
from experiments.bench.training import Steps, ours
from jaxclip import hardware, parity
from jaxclip.config import ResNetConfig
from jaxclip.hardware.attention import choose
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from jaxclip.training import from_recipe
from jaxclip.training.flops import model_flops
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh

GIB = 2**30
ROOT = Path(__file__).parents[3]
LEAST, MOST, LONG = 3, 20, 3.0  # runs of a measurement, and the seconds after which it ends
TRACED = 3  # steps
Measured = dict[str, Any]


def _median(run: Callable[[], object]) -> float:
    """The median of the seconds of several runs."""
    seconds: list[float] = []
    while len(seconds) < LEAST or (len(seconds) < MOST and sum(seconds) < LONG):
        began = time.monotonic()
        run()
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def _peak() -> Measured:
    """The most memory of the device that arrays of this process held, where the device says it."""
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"peak GiB": round(peak / GIB, 2)} if peak else {}


def device() -> Measured:
    """Which device jax computes on."""
    found = jax.devices()[0]
    memory = (found.memory_stats() or {}).get("bytes_limit")
    return {"platform": found.platform, "card": found.device_kind, "memory": memory}


# Right answers ------------------------------------------------------------------------------------


def find_convert() -> None:
    """Let `jaxclip.convert` be found in a plain copy of the tree, where nothing maps its folder."""
    if find_spec("jaxclip.convert") is None:
        jaxclip.__path__.append(str(ROOT))


def golden(model: str, precision: str) -> Measured:
    """A tiny official model in float32: every stage beside the official code's and the judge's."""
    find_convert()
    folder = ROOT / "tests" / "golden"
    recorded, _ = parity.recorded(folder / f"{model}.ladder.safetensors")
    images, tokens = parity.runnable(recorded)
    module, _ = jaxclip.load(folder / f"{model}.pt", precision=precision)
    got = parity.model_rungs(module, images, tokens)
    double, bounds = parity.judge(parameters.to_flat(module), module.config, images, tokens)
    rungs = [*parity.compare(got, double, bounds), *parity.compare(got, recorded, bounds)]
    departs = parity.first_departure(rungs)
    if departs is not None:
        raise ValueError(
            f"{departs.name}: expected an error of at most {departs.bound:.1e}, "
            f"got {departs.relative:.1e}"
        )
    return {"stages": len(rungs), "largest error": max(rung.relative for rung in rungs)}


# Training -----------------------------------------------------------------------------------------

_made: dict[str, tuple[Steps, float] | None] = {}  # of the newest settings alone


def _compile_step(model: str, batch: int, **settings: str) -> tuple[Steps, float]:
    """(a function that makes steps, seconds of its first call); kept for the next row."""
    key = f"{model}, {batch}, {settings}"
    if key not in _made:
        _made.clear()
        _made[key] = None
        run = ours(CONFIGS[model], batch, "bfloat16", **settings)
        began = time.monotonic()
        run()
        _made[key] = run, time.monotonic() - began
    found = _made[key]
    if found is None:
        raise child.Skip("the step itself fails")
    return found


def step(model: str, batch: int, remat: str, attention: str) -> Measured:
    """A training step in bfloat16 as shipped, its batch on the device."""
    run, first = _compile_step(model, batch, remat=remat, attention=attention)
    run(STEPS)
    seconds = _median(lambda: run(STEPS)) / STEPS
    loss = run()
    if not math.isfinite(loss):
        raise ValueError(f"loss: expected a finite number, got {loss}")
    teraflop = model_flops(CONFIGS[model], batch) / 1e12
    found: Measured = {"ms": round(1e3 * seconds, 2), "images/s": round(batch / seconds, 1)}
    found |= {"TFLOP": round(teraflop, 6), "first s": round(first, 1)}
    if (name := chip(jax.devices()[0].device_kind)) is not None:
        found["MFU %"] = round(100 * teraflop / seconds / PEAKS[name], 1)
    return {**found, "kernels": _chosen(model, attention), **_peak()}


def _chosen(model: str, attention: str) -> str:
    """The kernels of attention in the image and the text tower; a ResNet's pool has none."""
    if attention != "auto":
        return attention
    config, kind = CONFIGS[model], jax.devices()[0].device_kind
    towers = [(config.text.context_length, config.text)]
    if not isinstance(config.vision, ResNetConfig):
        towers = [(config.vision.tokens, config.vision), *towers]
    return " and ".join(
        choose(kind, tokens, jnp.bfloat16, head=t.width // t.heads, training_devices=1)
        for tokens, t in towers
    )


def kernels(model: str, batch: int, remat: str, attention: str) -> Measured:
    """What the kernels of that step take, from a profile."""
    run, _ = _compile_step(model, batch, remat=remat, attention=attention)
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                run()
        return trace.summary(trace.kernels(trace.read(Path(folder))), TRACED)


def loss(loss: str, pairs: int, width: int) -> Measured:
    """The loss and its gradient for `pairs` embeddings of each kind, float32, on one device."""
    mesh = data_mesh(jax.devices()[:1])
    execution = Execution(loss)  # type: ignore[arg-type]
    function = from_recipe.choose_loss(Recipe(batch_size=pairs), execution, mesh)
    keys = jax.random.split(jax.random.key(0), 2)
    embeds = [jax.random.normal(key, (pairs, width)) for key in keys]
    embeds = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in embeds]
    program = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))
    inputs = (*embeds, jnp.log(jnp.float32(14)))
    compiled = program.lower(*inputs).compile()
    value = float(compiled(*inputs)[0])
    if not math.isfinite(value):
        raise ValueError(f"loss: expected a finite number, got {value}")
    seconds = _median(lambda: jax.block_until_ready(compiled(*inputs)))
    temporaries = compiled.memory_analysis().temp_size_in_bytes / GIB
    found = {"ms": round(1e3 * seconds, 2), "value": value}
    return {**found, "temporaries GiB": round(temporaries, 3), **_peak()}


def attention(**settings: Any) -> Measured:
    """One kernel at one length."""
    if settings["kernel"] == "cudnn" and jax.default_backend() != "gpu":
        raise child.Skip("cudnn needs a GPU")
    return measure_attention(**settings)


# Inference ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _model(name: str, dtype: str) -> clip.Clip:
    """A model arranged for this device; its kernels in `dtype`, as `jaxclip.load` keeps them."""
    numerics = Numerics(jnp.dtype(dtype))
    model = clip.create(CONFIGS[name], numerics=numerics)
    like = parameters.with_kernels(clip.abstract(CONFIGS[name], numerics=numerics), dtype)
    model = jax.tree.map(lambda x, shape: x.astype(shape.dtype), model, like)
    return hardware.arrange(model)


def inference(model: str, dtype: str, batch: int) -> Measured:
    """Images a second of the image tower; float32 with the default precision of the device."""
    module = _model(model, dtype)
    images = jnp.asarray(arrays(CONFIGS[model], batch)[0])
    jax.block_until_ready(module.encode_image(images))
    seconds = _median(lambda: jax.block_until_ready(module.encode_image(images)))
    return {"ms": round(1e3 * seconds, 3), "images/s": round(batch / seconds, 1)}


MEASURES = {
    "device": device,
    "golden": golden,
    "gradients": gradients,
    "step": step,
    "kernels": kernels,
    "attention": attention,
    "loss": loss,
    "inference": inference,
}

if __name__ == "__main__":
    child.serve(MEASURES)
