"""Which rows `bench gpu` measures, at which sizes and in which order: the most important first."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxclip.config import RELEASED, ClipConfig, ResNetConfig, TextConfig, VisionConfig

PARTS = ("golden", "steps", "attention", "gradients", "losses", "inference", "largest", "policies")
POLICIES = ("none", "products_and_attention", "products", "full")  # the least recomputed first
KERNELS = ("einsum", "cudnn", "pallas", "xla")
LOSSES = ("dense", "chunked", "ring")
GOLDEN = ("official-vit", "official-resnet", "official-odd")

CONFIGS: dict[str, ClipConfig] = RELEASED | {
    "tiny": ClipConfig(VisionConfig(16, 8, 64, 1, 1), TextConfig(64, 1, 1, 12, 99), 24),
}

STEPS = 5  # in a row, as in the training loop: none waits until the loss before it was read

# Dense bfloat16 products, TFLOP/s, from NVIDIA's data sheets; a chip's name is part of the card's,
# and the first that fits counts. H100 and H200 are the SXM modules, A100 either form.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H200 NVL": 835, "H100": 989, "H200": 989, "A100": 312}


def chip(card: str) -> str | None:
    """The name in `PEAKS` of a card such as "NVIDIA H100 80GB HBM3"."""
    return next((name for name in PEAKS if name in card), None)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: its part names the function, its settings are the arguments."""

    part: str
    settings: Mapping[str, Any]
    seconds: float
    """About how long it takes on an H100, the start of its process included."""

    def __str__(self) -> str:
        words = (f"{name} {value}" for name, value in self.settings.items() if value is not False)
        return f"{self.part}: {', '.join(words)}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of every row."""

    steps: tuple[tuple[str, int, tuple[str, ...]], ...]
    """(model, batch, kernels of attention)"""
    gradients: tuple[tuple[str, int], ...]
    """(model, batch)"""
    attention: tuple[tuple[int, int, int, bool], ...]
    """(tokens, batch, heads, causal), heads of 64 channels"""
    pairs: tuple[int, ...]
    width: int
    inference: tuple[tuple[str, ...], tuple[int, ...]]
    """(models, batches)"""
    largest: int
    """the largest batch that is tried"""
    policies: tuple[str, ...] = POLICIES
    pace: float = 1.0
    """the seconds of a row are multiplied by it"""


REAL = Sizes(
    steps=(
        ("ViT-L/14", 128, ("auto",)),
        ("ViT-B/32", 1024, ("auto",)),
        ("RN50", 512, ("auto",)),
        ("ViT-B/16", 512, ("auto",)),
        ("ViT-L/14@336px", 48, ("auto",)),
    ),
    gradients=(("ViT-B/32", 8), ("RN50", 8)),
    attention=(
        (257, 128, 16, False),
        (77, 1024, 8, True),
        (50, 1024, 12, False),
        (197, 512, 12, False),
        (577, 48, 16, False),
    ),
    pairs=(32_768, 65_536),
    width=768,
    inference=(("ViT-B/32", "ViT-L/14", "RN50"), (1, 64, 1024)),
    largest=4096,
)
TINY = Sizes(
    steps=(("tiny", 4, ("auto",)),),
    gradients=(("tiny", 4),),
    attention=((17, 2, 1, False), (9, 2, 1, True)),
    pairs=(64,),
    width=24,
    inference=(("tiny",), (1, 3)),
    largest=4,
    policies=("none", "full"),
    pace=0.1,
)

Plan = Iterator[tuple[Row, ...]]
FIRST_STEPS = 2  # models whose steps come before the attention table


def plan(sizes: Sizes, parts: tuple[str, ...], outcome: Callable[[Row], str | None]) -> Plan:
    """Groups of rows, each for one process.

    What is yielded depends on `outcome(row)` of the rows before: "measured", "failed", "skipped" or
    None. A row that was measured before is yielded all the same.
    """
    early, late = sizes.steps[:FIRST_STEPS], sizes.steps[FIRST_STEPS:]
    sections: tuple[tuple[str, Callable[[], Plan]], ...] = (
        ("golden", lambda: iter([golden()])),
        ("steps", lambda: _steps(early, sizes, outcome)),
        ("attention", lambda: _attention(sizes)),
        ("gradients", lambda: iter([gradients(sizes)])),
        ("steps", lambda: _steps(late, sizes, outcome)),
        ("losses", lambda: _losses(sizes)),
        ("inference", lambda: _inference(sizes)),
        ("largest", lambda: _largest(sizes, outcome)),
        ("policies", lambda: _policies(sizes)),
    )
    for part, groups in sections:
        for group in groups() if part in parts else ():
            yield tuple(dataclasses.replace(row, seconds=row.seconds * sizes.pace) for row in group)


def golden() -> tuple[Row, ...]:
    """The rows of the golden ladder."""
    return tuple(Row("golden", {"model": name, "precision": "highest"}, 8) for name in GOLDEN)


def gradients(sizes: Sizes) -> tuple[Row, ...]:
    """The rows that compare gradients with the CPU's."""
    kinds = [(*each, dtype) for each in sizes.gradients for dtype in ("float32", "bfloat16")]
    names = ("model", "batch", "dtype")
    return tuple(Row("gradients", dict(zip(names, kind, strict=True)), 30) for kind in kinds)


def _step(model: str, batch: int, remat: str, attention: str = "auto") -> Row:
    settings = {"model": model, "batch": batch, "remat": remat, "attention": attention}
    return Row("step", settings, 60)


def _steps(models: tuple[Any, ...], sizes: Sizes, outcome: Callable[[Row], str | None]) -> Plan:
    """Each model as shipped: with the first policy that fits; then the peer."""
    for model, batch, kernels in models:
        for attention in kernels:
            for remat in sizes.policies:
                row = _step(model, batch, remat, attention)
                yield (row, _kernels(row)) if model == sizes.steps[0][0] else (row,)
                if outcome(row) != "failed":
                    break
        yield (Row("peer", {"model": model, "batch": batch}, 100),)


def _kernels(step: Row) -> Row:
    """The kernels of a step; in the step's own process its program is there already."""
    return Row("kernels", step.settings, 10)


def _attention(sizes: Sizes) -> Plan:
    for tokens, batch, heads, causal in sizes.attention:
        shape = {"tokens": tokens, "batch": batch, "heads": heads, "causal": causal}
        yield tuple(Row("attention", {**shape, "kernel": kernel}, 6) for kernel in KERNELS)


def _losses(sizes: Sizes) -> Plan:
    for pairs in sizes.pairs:
        for loss in LOSSES:  # a process each: its peak of memory is one of the numbers
            yield (Row("loss", {"loss": loss, "pairs": pairs, "width": sizes.width}, 20),)


def _inference(sizes: Sizes) -> Plan:
    models, batches = sizes.inference
    for model in models:
        for dtype in ("bfloat16", "float32"):
            settings = {"model": model, "dtype": dtype}
            yield tuple(Row("inference", {**settings, "batch": batch}, 10) for batch in batches)


def _largest(sizes: Sizes, outcome: Callable[[Row], str | None]) -> Plan:
    """The first model's step with each policy: twice the batch until it fails, then one between."""
    model, start, _ = sizes.steps[0]
    for remat in sizes.policies:
        batch = start
        while batch <= sizes.largest:
            row = _step(model, batch, remat)
            yield (row,)
            if outcome(row) != "measured":
                break
            batch *= 2
        if batch > start and outcome(row) == "failed":
            yield (_step(model, batch * 3 // 4, remat),)


def _policies(sizes: Sizes) -> Plan:
    for model, batch, _ in sizes.steps:
        if not isinstance(CONFIGS[model].vision, ResNetConfig):
            for remat in sizes.policies:
                yield (_step(model, batch, remat),)
