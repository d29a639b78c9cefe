"""The command that compiles a training step for a TPU topology: plan."""

import dataclasses
import json
from typing import Literal

from rich.table import Table
from rich.text import Text

from jaxclip.cli.shared import (
    FAILED,
    AsJson,
    UsageError,
    flag_error,
    print_table,
    require_whole_flag,
)
from jaxclip.config import RELEASED, Remat
from jaxclip.training.recipe import Execution, presets


def plan(
    model: str = "ViT-B/32",
    topology: str = "v5e:16x16",
    batch: int = 32768,
    loss: Literal["dense", "gathered", "ring"] = "ring",
    fsdp: int = 1,
    tensor: int = 1,
    remat: Remat = "full",
    microbatches: int = 1,
    as_json: AsJson = False,
) -> int:
    """Compile a training step for TPUs without having them: memory and collectives.

    Needs libtpu (pip install 'jaxclip[tpu]'). Nothing is run, so no speed is known. Takes minutes.

    Args:
        model: One of the released models.
        topology: Such as v4:2x2x4, v5e:16x16, v5p:2x2x2 or v6e:4x4.
        batch: Pairs a step, over all devices.
        loss: How the loss is spread over the devices.
        fsdp: Devices that share parameters and moments.
        tensor: Devices that share a matrix product.
        remat: What the backward pass computes again.
        microbatches: Of a batch, for gradient caching.
        as_json: Print one JSON object instead of a table.
    """
    if model not in RELEASED:
        raise UsageError(f"--model: expected one of {', '.join(RELEASED)}, got {model!r}")
    require_whole_flag("--batch", batch, 2, 2**20)
    try:
        recipe = dataclasses.replace(
            presets[model], batch_size=batch, remat=remat, microbatches=microbatches
        )
        execution = Execution(loss, fsdp, tensor)
    except ValueError as error:
        raise flag_error(error) from None
    from jaxclip.training.tpu_plan import report

    found = {"model": model, **report(recipe, execution, topology)}
    if as_json:
        print(json.dumps(found))
    else:
        table = Table("", f"{model} on {topology}")
        for name, value in found.items():
            table.add_row(name, _plain(value))
        print_table(table)
    return 0 if found["fits"] else FAILED


def _plain(value: object) -> Text:
    if isinstance(value, dict):
        lines = (f"{v['count']} {k}, {v['bytes'] / 2**20:.1f} MiB" for k, v in value.items())
        return Text("\n".join(lines))
    return Text(", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value))
