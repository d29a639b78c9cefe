"""How long a GPU takes at least for a compiled step: each kernel's products or its traffic.

A product takes its FLOPs at the rate that large products reach, or its bytes at the bandwidth that
kernels reach, whichever is longer; so does an attention kernel, at its own rates; everything else
takes its bytes. Collectives between GPUs are not in the sum: they run beside the rest in part.

Held against a step that was measured (H100, ViT-L/14, 128 pairs: 184.6 ms) by a test. What is not
in it: about 5 ms of such a step, from one kernel to the next.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxclip.training.hlo import COLLECTIVES, Array, Run, runs, size

# Of a card's bfloat16 rate. cuDNN's attention in that step, at 257 tokens with heads of 64: forward
# 0.87 TFLOP in 6.5 ms, backward and its helpers 2.2 in 19.
CUDNN = {"forward": 0.135, "backward": 0.115}
# Pallas' attention by Triton on an H200 (2026-11-27), 34.6 GFLOP at 257 tokens: 0.175 ms forward,
# 0.561 backward alone, and 1.09 times that in a step of ViT-L/14. Its two backward kernels have 3.5
# times the forward's FLOPs: both compute the weights.
TRITON = {"forward": 0.183, "backward": 0.200}
FLOAT32 = 0.5  # of the bfloat16 rate, in TensorFloat-32


@dataclasses.dataclass(frozen=True)
class Card:
    """Peaks of a GPU, from its data sheet, and the shares of them that kernels reach."""

    flops: float
    """bfloat16 products, dense, a second."""
    bandwidth: float
    """Bytes a second from and to its memory."""
    of_flops: float = 0.83
    """By large products; an H100's: 64.7 TFLOP in 79 ms of that step."""
    of_bandwidth: float = 0.776
    """An H100's: 2.6 of 3.35 TB/s."""


# H200 (2026-11-27): the same products, by cuBLAS with biases and residuals, took 91.1 ms; kernels
# that move 76.9 GB took 25.6. An A100's shares are assumed.
CARDS = {
    "a100": Card(312e12, 2.039e12),  # A100 80 GB SXM: NVIDIA's data sheet, June 2021
    "h100": Card(989e12, 3.35e12),  # H100 SXM: NVIDIA's data sheet (1,979 with sparsity)
    "h200": Card(989e12, 4.8e12, 0.72, 0.626),  # H200 SXM: NVIDIA's data sheet
}

ATTENTION = {"__cudnn$fmha": "cudnn", "triton": "triton", "mosaic": "mosaic"}
ATTENTION |= {"tpu_custom_call": "mosaic"}


class Kernel(NamedTuple):
    """What one kernel does in one of its runs."""

    kind: str  # product, attention forward, attention backward, collective or other
    by: str  # the library, or the operator
    flops: float
    float32: bool  # of the factors of a product
    bytes: int
    times: int


def kernels(text: str) -> list[Kernel]:
    """Every kernel of an optimised program."""
    return [_kernel(run) for run in runs(text)]


def _kernel(run: Run) -> Kernel:
    op, rest = run.instruction.op, run.instruction.rest
    target = re.search(r'custom_call_target="([^"]+)"', rest)
    name = target[1] if target else op
    if name.startswith("__"):  # a library's workspace, its last result, holds nothing
        run = run._replace(results=_without_workspace(run.results))
    wide = any(kind in ("f32", "f64") for given in run.operands[:2] for kind, _ in given)
    if "matmul" in name or "gemm" in name:
        return Kernel("product", name, _product_flops(run), wide, run.bytes, run.times)
    if name.startswith("__cudnn$conv"):
        return Kernel("product", name, _convolution_flops(run, name), wide, run.bytes, run.times)
    by = next((short for part, short in ATTENTION.items() if part in name), None)
    if target and by and (forward := _attention_flops(run)):
        back = _is_backward(name, rest)
        kind, flops = ("backward", _backward_share(run) * forward) if back else ("forward", forward)
        moved = _attention_bytes(run, back)
        return Kernel(f"attention {kind}", by, flops, False, moved, run.times)
    kind = "collective" if re.match(COLLECTIVES, op) else "other"
    return Kernel(kind, name, 0.0, False, run.bytes, run.times)


def _without_workspace(results: list[Array]) -> list[Array]:
    return results[:-1] if len(results) > 1 and results[-1][0] in ("s8", "u8") else results


def _product_flops(run: Run) -> float:
    """2 x the numbers of the answer x the length that is summed over."""
    contracted = re.search(r'"lhs_contracting_dimensions":\["([\d",]+)"\]', run.instruction.rest)
    left = run.operands[0][0][1] if run.operands and run.operands[0] else ()
    axes = [int(axis) for axis in contracted[1].split('","')] if contracted else []
    return 2.0 * math.prod(run.results[0][1]) * math.prod(left[axis] for axis in axes)


def _convolution_flops(run: Run, name: str) -> float:
    """2 x output positions x the numbers of the kernel, forward and in both gradients."""
    first, second, result = run.operands[0][0][1], run.operands[1][0][1], run.results[0][1]
    if "BackwardFilter" in name:
        output, kernel = second, result
    elif "BackwardInput" in name:
        output, kernel = first, second
    else:
        output, kernel = result, second
    labels = re.search(r"dim_labels=\w+_(\w+)->", run.instruction.rest)
    outputs = kernel[labels[1].index("o")] if labels else 1
    return 2.0 * math.prod(output) * math.prod(kernel) / outputs


def _attention_flops(run: Run) -> float:
    """Of the forward pass, from [n, l, 3, a, k] or the queries; else 0.

    Those are [n, l, a, k], [n, a, l, k] or [n a, l, k]. Of two middle axes the longer is the
    tokens: CLIP has 16 heads at most. A causal mask is not taken off.
    """
    shapes = [given[0][1] for given in run.operands[:3] if len(given) == 1]
    if shapes and _is_packed(shapes[0]):
        return 4.0 * math.prod(shapes[0]) / 3 * shapes[0][1]
    if len(shapes) < 3 or len({(len(shape), shape[-1:]) for shape in shapes}) > 1:
        return 0.0
    query = shapes[0]
    return 4.0 * math.prod(query) * max(query[1:-1]) if len(query) in (3, 4) else 0.0


def _is_packed(shape: tuple[int, ...]) -> bool:
    """Whether it is queries, keys and values in one array [n, l, 3, a, k]."""
    return len(shape) == 5 and shape[2] == 3


def _packed_operands(run: Run) -> int:
    """How many operands are [n, l, 3, a, k]: a kernel that is given the gradient's buffer has 2."""
    return sum(len(given) == 1 and _is_packed(given[0][1]) for given in run.operands)


def _backward_share(run: Run) -> float:
    """The FLOPs of a kernel that computes gradients, over those of the forward pass.

    Each of two products takes half of the latter. All three gradients take five (scores, gradient
    of the weights, dq, dk, dv); dq in a kernel of its own three; dk and dv four.
    """
    if packed := _packed_operands(run):
        return {1: 1.5, 2: 2.0}[packed]  # the second writes dk and dv beside dq
    query = run.operands[0][0][1]
    return {1: 1.5, 2: 2.0}.get(sum(shape == query for _, shape in run.results), 2.5)


def _attention_bytes(run: Run, back: bool) -> int:
    """Read and written: of a gradient [n, l, 3, a, k] each kernel writes its own parts alone."""
    packed = _packed_operands(run) if back else 0
    if not packed:
        return run.bytes
    parts = size(run.operands[0][0], run.trips) // 3
    return run.bytes - {1: 2, 2: 1 + 3}[packed] * parts  # the second does not read it either


def _is_backward(name: str, rest: str) -> bool:
    """Whether an attention kernel computes gradients; one computed again does not."""
    if name.startswith("__cudnn"):
        return "Backward" in name
    scope = re.search(r'op_name="([^"]+)"', rest)
    return bool(scope) and "transpose(" in scope[1] and "rematted" not in scope[1]  # type: ignore[index]


# The sum ------------------------------------------------------------------------------------------


def attention_calls(found: Iterable[Kernel]) -> dict[str, dict[str, int]]:
    """{library: runs of its attention kernels, forward and backward}; empty with einsum alone."""
    counts: Counter[tuple[str, str]] = Counter()
    for kernel in found:
        if kernel.kind.startswith("attention"):
            counts[kernel.by, kernel.kind.removeprefix("attention ")] += kernel.times
    return {
        by: {way: counts[by, way] for way in ("forward", "backward")}
        for by in sorted({by for by, _ in counts})
    }


def float32_share(found: Iterable[Kernel]) -> float:
    """Share of the FLOPs of product kernels that take float32, whatever the program said."""
    total = wide = 0.0
    for kernel in found:
        if kernel.kind == "product":
            total += kernel.times * kernel.flops
            wide += kernel.times * kernel.flops * kernel.float32
    return wide / total if total else 0.0


def seconds(kernel: Kernel, card: Card) -> float:
    """All runs of a kernel in one step."""
    rate = card.of_flops * (FLOAT32 if kernel.float32 else 1.0)
    if kernel.kind.startswith("attention"):
        rates = TRITON if kernel.by == "triton" else CUDNN
        rate = rates[kernel.kind.removeprefix("attention ")]
    computing = kernel.flops / (rate * card.flops)
    return kernel.times * max(computing, kernel.bytes / (card.of_bandwidth * card.bandwidth))


def _digits(number: float) -> float:
    """Four digits of a number; more would claim too much."""
    return float(f"{number:.4g}")


def estimate(found: list[Kernel], card: Card, model_flops: float) -> dict[str, Any]:
    """The parts of a step's time in ms, its sum, and the utilisation that this allows.

    Args:
      found: of `kernels`, what one device runs.
      card: which device.
      model_flops: of one device's share of the step (`flops.model_flops`).
    """
    spent: dict[str, float] = defaultdict(float)
    for kernel in found:
        if kernel.kind != "collective":
            spent[kernel.kind.partition(" ")[0]] += 1e3 * seconds(kernel, card)
    total = sum(spent.values())
    return {
        "products ms": _digits(spent["product"]),
        "attention ms": _digits(spent["attention"]),
        "other kernels ms": _digits(spent["other"]),
        "step ms": _digits(total),
        "MFU": round(model_flops / (total / 1e3) / card.flops, 3),
    }


def moved(found: Iterable[Kernel]) -> dict[str, float]:
    """GB that kernels read and write in one step, by kind."""
    total: dict[str, float] = defaultdict(float)
    for kernel in found:
        total[kernel.kind.partition(" ")[0]] += kernel.times * kernel.bytes
    return {kind: _digits(total[kind] / 1e9) for kind in sorted(total)}
