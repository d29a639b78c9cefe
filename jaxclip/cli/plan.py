"""The command that compiles a training step for TPUs or GPUs that are not there: plan."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxclip.cli.shared import (
    FAILED,
    AsJson,
    UsageError,
    flag_error,
    print_table,
    require_whole_flag,
    stderr,
)
from jaxclip.config import RELEASED, Remat
from jaxclip.training.recipe import AttentionName, Execution, LossName, presets

PAIRS_A_GPU = 128  # of the default batch


def plan(
    model: str = "ViT-B/32",
    topology: str = "v5e:16x16",
    batch: int | None = None,
    loss: LossName | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    remat: Remat | None = None,
    microbatches: int = 1,
    attention: AttentionName = "auto",
    buffers: int = 0,
    as_json: AsJson = False,
) -> int:
    """Compile a training step for TPUs or GPUs without having them: does it fit, how fast at most.

    If it does not fit, steps that need less memory are compiled, cheapest first, until one does.
    TPUs need libtpu (pip install 'jaxclip[tpu]'), GPUs jax's CUDA plugin without NVIDIA's libraries
    (pip install 'jaxclip[gpu-plan]'). Nothing is run and no accelerator is used. A compilation
    takes one to three minutes.

    Args:
        model: One of the released models.
        topology: Such as h100, h200:8, a100:16, v4:2x2x4, v5e:16x16, v5p:2x2x2 or v6e:4x4.
        batch: Pairs a step, over all devices. [TPUs: 32768; GPUs: 128 each]
        loss: How the loss is spread over the devices. [ring; one GPU: dense]
        fsdp: Devices that share parameters and moments.
        tensor: Devices that share a matrix product.
        remat: What the backward pass computes again. [TPUs: full; GPUs: none]
        microbatches: Of a batch, for gradient caching.
        attention: The kernel of attention; "auto" is the one that training would take.
        buffers: List so many of the largest buffers.
        as_json: Print one JSON object instead of a table.
    """
    if model not in RELEASED:
        raise UsageError(f"--model: expected one of {', '.join(RELEASED)}, got {model!r}")
    if batch is not None:
        require_whole_flag("--batch", batch, 2, 2**20)
    for name, value in (("fsdp", fsdp), ("tensor", tensor), ("microbatches", microbatches)):
        require_whole_flag(f"--{name}", value, 1, 2**20)
    require_whole_flag("--buffers", buffers, 0, 1000)
    from jaxclip.training import targets
    from jaxclip.training.plan import report

    targets.use_no_accelerator()
    target = targets.find(topology)
    gpus = len(target.devices) if target.is_gpu else 0
    try:
        recipe = dataclasses.replace(
            presets[model],
            batch_size=batch or (PAIRS_A_GPU * gpus if gpus else 32768),
            remat=remat or ("none" if gpus else "full"),
            microbatches=microbatches,
        )
        execution = Execution(loss or ("dense" if gpus == 1 else "ring"), fsdp, tensor, attention)
    except ValueError as error:
        raise flag_error(error) from None
    found = report(recipe, execution, topology, buffers=buffers, progress=show_compiling)
    found = {"model": model, **found}
    if as_json:
        print(json.dumps(found))
    else:
        table = Table("", f"{model} on {topology}")
        for name, value in found.items():
            table.add_row(name, _plain(name, value))
        print_table(table)
    return 0 if found["fits"] else FAILED


@contextlib.contextmanager
def show_compiling(what: str) -> Iterator[None]:
    """A line on stderr with the seconds that have passed; where it is no terminal, a first line."""
    if not stderr.is_terminal:
        stderr.print(what, soft_wrap=True)
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=stderr, transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def _plain(name: str, value: Any) -> Text:
    if name == "collectives":
        lines = (f"{v['count']} {k}, {v['bytes'] / 2**20:.1f} MiB" for k, v in value.items())
        return Text("\n".join(lines) or "none")
    if name == "attention kernels":
        lines = (f"{k}: {v['forward']} forward, {v['backward']} backward" for k, v in value.items())
        return Text("\n".join(lines) or "none: einsum")
    if isinstance(value, dict):
        return Text("\n".join(f"{k}: {_plain(k, v)}" for k, v in value.items()))
    if isinstance(value, list):
        separator = "\n" if name in ("largest buffers", "also tried") else ", "
        return Text(separator.join(str(_plain("", item)) for item in value) or "none")
    return Text(str(value))
