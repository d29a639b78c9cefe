"""What a training step needs on TPUs or GPUs, from their compilers alone: nothing runs.

TPUs need libtpu (`pip install 'jaxclip[tpu]'`), GPUs jax's CUDA plugin without NVIDIA's libraries
(`jaxclip[gpu-plan]`), neither a device. The step is the one that training would run there. A plan
shows that it compiles, its memory, its collectives and, on a GPU, the least time it can take; not
whether its numbers are right (the tests show that on CPU devices).
"""

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.config import Remat
from jaxclip.models import clip
from jaxclip.training import from_recipe, hlo, roofline, targets
from jaxclip.training.flops import Product, by_types, float32_share, model_flops, products
from jaxclip.training.pixels import normalize_image
from jaxclip.training.recipe import Execution, LossName, Recipe
from jaxclip.training.sharding import BATCH, data_mesh

GIB = 2**30
Facts = dict[str, Any]
Progress = Callable[[str], contextlib.AbstractContextManager[Any]]

# Cheapest first: attention again, then all but the products with weights again, then everything.
POLICIES: tuple[Remat, ...] = ("none", "products_and_attention", "products", "full")
MOST_FSDP = 8  # devices that share the state: those of one host
LARGE_LOGITS = GIB / 8  # bytes a device from which a loss without all logits is worth compiling


def quiet(what: str) -> contextlib.AbstractContextManager[Any]:
    """Progress that is not shown."""
    return contextlib.nullcontext()


class Job(NamedTuple):
    """One step to compile."""

    recipe: Recipe
    execution: Execution


# One step -----------------------------------------------------------------------------------------


def trace(recipe: Recipe, execution: Execution, mesh: Mesh) -> Any:
    """The whole step, traced for a mesh and ready to be lowered; no array is made."""
    _, state = from_recipe.abstract_state(recipe, mesh)
    step = from_recipe.compiled_step(recipe, execution, mesh, normalize_image)
    sides, length = recipe.model.vision.image_sides, recipe.text_length
    split, replicated = NamedSharding(mesh, BATCH), NamedSharding(mesh, P())
    pairs = recipe.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((pairs, *sides, 3), jnp.uint8, sharding=split),
        "tokens": jax.ShapeDtypeStruct((pairs, length), jnp.int32, sharding=split),
    }
    key = jax.ShapeDtypeStruct(state.key.shape, state.key.dtype, sharding=replicated)
    return step.trace(state, batch, key)


def loss_products(recipe: Recipe, execution: Execution, mesh: Mesh) -> list[Product]:
    """The products of the loss and its gradient, which are float32 on purpose."""
    loss = from_recipe.choose_loss(recipe, execution, mesh)
    split = NamedSharding(mesh, BATCH)
    shape = (recipe.batch_size, recipe.model.embed_dim)
    embeds = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * (2 if recipe.model.logit_bias else 1)
    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    return list(products(jax.make_jaxpr(gradient)(embeds, embeds, *scalars).jaxpr))


def arithmetic(traced: Any, of_loss: list[Product]) -> Facts:
    """FLOPs of the step's products by element type, and the share that is float32.

    The share counts products and convolutions with a float32 side or answer, weighted by FLOPs,
    without those of the loss.
    """
    found = list(products(traced.jaxpr.jaxpr))
    total = sum(product.flops for product in found)
    loss_share = float32_share(of_loss) * sum(product.flops for product in of_loss) / total
    return {
        "TFLOPs by type": by_types(found),
        "loss TFLOPs": round(sum(product.flops for product in of_loss) / 1e12, 4),
        "float32_flops_share": round(max(0.0, float32_share(found) - loss_share), 5),
    }


def usable_memory(target: targets.Target) -> int | None:
    """Bytes of a GPU that jax takes for arrays: three quarters, or as the user's variable says."""
    if target.memory is None:
        return None
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or "0.75"
    try:
        return int(float(share) * target.memory)
    except ValueError:
        raise ValueError(
            f"XLA_PYTHON_CLIENT_MEM_FRACTION: expected a number, got {share!r}"
        ) from None


def check(job: Job, target: targets.Target, *, buffers: int = 0) -> Facts:
    """What one step needs on a target, compiled; `fits` says whether that is there.

    Args:
      job: the step.
      target: of `targets.find`.
      buffers: how many of the largest buffers to list.
    """
    recipe, execution = job
    mesh = data_mesh(target.devices, fsdp=execution.fsdp, tensor=execution.tensor)
    with targets.compiling_for(target) as options, tempfile.TemporaryDirectory() as folder:
        if buffers or not target.is_gpu:
            options = {**options, "xla_dump_to": folder}
        facts: Facts = {}
        try:
            traced = trace(recipe, execution, mesh)
            facts = arithmetic(traced, loss_products(recipe, execution, mesh))
            compiled = traced.lower().compile(compiler_options=options or None)
        except RuntimeError as error:  # of the compiler, and of kernels that refuse a shape
            return {"fits": False, "because": targets.out_of_memory(error, target), **facts}
        facts |= _program_facts(targets.program_text(compiled, target), job, target)
        usage = _memory_usage_report(Path(folder))
        if buffers:
            facts["largest buffers"] = hlo.largest_buffers(usage, buffers)
    return {**_memory_facts(compiled.memory_analysis(), usage, target), **facts}


def _memory_facts(memory: Any, usage: str, target: targets.Target) -> Facts:
    """What a step holds, by the compiler's own report where that is needed.

    Of a TPU's program `temp_size_in_bytes` is no size that the chip has to have: 35.2 GiB of a step
    that holds 30.3 in all, and fits into 31.25.
    """
    arguments, used = memory.argument_size_in_bytes, hlo.allocated(usage)
    at_most = not target.is_gpu and used is None
    if target.is_gpu or used is None:
        used = arguments + memory.temp_size_in_bytes
        used += memory.output_size_in_bytes - memory.alias_size_in_bytes
    limit = usable_memory(target)
    return {
        "fits": limit is None or used <= limit,
        "GiB a device": round(used / GIB, 2),
        "of them state and batch": round(arguments / GIB, 2),
        "temporaries GiB": round((used - arguments) / GIB, 2),
        **({"at most": True} if at_most else {}),
        **({} if limit is None else {"usable GiB": round(limit / GIB, 2)}),
    }


def _program_facts(text: str, job: Job, target: targets.Target) -> Facts:
    recipe, devices = job.recipe, len(target.devices)
    kernels = roofline.kernels(text)
    facts: Facts = {
        "attention kernels": roofline.attention_calls(kernels),
        "collectives": hlo.collective_results(text),
    }
    if devices > 1 and not _is_a_size(recipe):
        held = hlo.logits_held(text, recipe.batch_size, devices // job.execution.tensor)
        facts["logits held"] = sorted(held)
    if target.is_gpu:
        flops = model_flops(recipe.model, recipe.batch_size) / devices
        facts["float32 share of kernels"] = round(roofline.float32_share(kernels), 5)
        facts["GB moved"] = roofline.moved(kernels)
        facts["roofline"] = roofline.estimate(kernels, roofline.CARDS[target.kind], flops)
    return facts


def _is_a_size(recipe: Recipe) -> bool:
    """Whether some weight has as many rows or columns as the batch, and could pass for logits."""
    weights = jax.tree.leaves(clip.abstract(recipe.model))
    return any(recipe.batch_size in weight.shape for weight in weights)


def _memory_usage_report(folder: Path) -> str:
    """What XLA wrote about the step's memory; "" where it wrote nothing."""
    reports = sorted(folder.glob("*jit_step*memory-usage-report.txt"))
    return reports[-1].read_text() if reports else ""


# What does fit ------------------------------------------------------------------------------------


def alternatives(job: Job, devices: int) -> Iterator[Job]:
    """Steps with the same result that need less memory, each less than the one before it.

    In the order of what they cost: the loss block by block, more computed again, the state shared
    by several devices, and the batch in microbatches (the forward pass twice).
    """
    recipe, execution = job
    logits = 4 * recipe.batch_size**2 / devices
    if execution.loss in ("dense", "gathered") and logits > LARGE_LOGITS:
        blocks: LossName = "ring" if devices > 1 or recipe.model.logit_bias else "chunked"
        execution = dataclasses.replace(execution, loss=blocks)
        yield Job(recipe, execution)
    for policy in POLICIES[POLICIES.index(recipe.remat) + 1 :]:
        recipe = dataclasses.replace(recipe, remat=policy)
        yield Job(recipe, execution)
    shared = math.gcd(devices // execution.tensor, MOST_FSDP)
    if shared > execution.fsdp:
        execution = dataclasses.replace(execution, fsdp=shared)
        yield Job(recipe, execution)
    microbatches, rows = 2 * recipe.microbatches, devices // execution.tensor
    while recipe.batch_size % (microbatches * rows) == 0:
        yield Job(dataclasses.replace(recipe, microbatches=microbatches), execution)
        microbatches *= 2


def changed_flags(job: Job, first: Job) -> list[str]:
    """The flags that lead from the first step to this one."""
    flags = []
    for field in ("remat", "microbatches"):
        if (value := getattr(job.recipe, field)) != getattr(first.recipe, field):
            flags.append(f"--{field} {value}")
    for field in ("loss", "fsdp"):
        if (value := getattr(job.execution, field)) != getattr(first.execution, field):
            flags.append(f"--{field} {value}")
    return flags


def _too_small(job: Job, facts: Facts) -> bool:
    """Whether that many microbatches cannot be enough, had they all the temporaries of a share."""
    if "usable GiB" not in facts:
        return False
    left = facts["usable GiB"] - (facts["GiB a device"] - facts["temporaries GiB"])
    return left < facts["temporaries GiB"] / job.recipe.microbatches


def find_fitting(job: Job, target: targets.Target, progress: Progress = quiet) -> list[Facts]:
    """The alternatives that were compiled, with their flags; the last one fits, if any does."""
    tried: list[Facts] = []
    whole: Facts = {}  # without microbatches
    for other in alternatives(job, len(target.devices)):
        if other.recipe.microbatches > job.recipe.microbatches and _too_small(other, whole):
            continue
        flags = changed_flags(other, job)
        with progress(f"does not fit; compiling {' '.join(flags)}"):
            facts = check(other, target)
        tried.append({"flags": flags, **facts})
        if facts["fits"]:
            break
        whole = facts if other.recipe.microbatches == job.recipe.microbatches else whole
    return tried


def report(
    recipe: Recipe,
    execution: Execution,
    topology: str,
    *,
    search: bool = True,
    buffers: int = 0,
    progress: Progress = quiet,
) -> Facts:
    """What a step needs on a topology and, where it does not fit, what to change until it does.

    Args:
      recipe, execution: of the step.
      topology: as `targets.find` takes it.
      search: compile alternatives where it does not fit.
      buffers: how many of the largest buffers to list.
      progress: a context for as long as one compilation takes.
    """
    target = targets.find(topology)
    job = Job(recipe, execution)
    devices = len(target.devices)
    rows = devices // execution.tensor
    if recipe.batch_size % max(rows, 1):
        raise ValueError(
            f"batch_size: expected a multiple of {rows} devices, got {recipe.batch_size}"
        )
    facts: Facts = {
        "topology": topology,
        "devices": devices,
        "kind": target.devices[0].device_kind,
        "batch": recipe.batch_size,
        "pairs a device": recipe.batch_size // max(rows, 1),
        "remat": recipe.remat,
        "loss": execution.loss,
        "model TFLOPs a step": float(f"{model_flops(recipe.model, recipe.batch_size) / 1e12:.6g}"),
    }
    with progress(f"compiling for {topology}"):
        facts |= check(job, target, buffers=buffers)
    if facts["fits"] or not search:
        return facts
    tried = find_fitting(job, target, progress)
    facts["also tried"] = [_tried(other) for other in tried if not other["fits"]]
    facts["fits with"] = tried[-1] if tried and tried[-1]["fits"] else None
    return facts


def _tried(facts: Facts) -> str:
    needs = facts.get("because") or f"needs {facts['GiB a device']} GiB"
    return f"{' '.join(facts['flags'])}: {needs}"
