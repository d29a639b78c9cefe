"""How far apart two results may lie: one table, with what was measured for every line of it.

A value is about three times the largest departure that was measured; its reason says which, and
how large the smallest deliberate mistake is (the negative twins in the tests commit it). Measured
with jax 0.10.2 on CPU, on `tests.support.tiny` with seeds 0 to 2 and all three activations, against
`jaxclip/reference.py` in float64, unless the reason says something else.

`departure` is the measure: the largest difference, over the largest expected value of the array.
It depends on no single small value, and 1e-7 of it is one rounding in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCES: dict[str, tuple[float, str]] = {
    # float32 against float64, stage by stage, twelve blocks
    "patches": (5e-7, "one product over 75 values: 1.5e-7; a picture moved by one pixel: 1.4"),
    "stem": (7e-7, "patches, positions and ln_pre: 2.1e-7; epsilon 1e-6: 3.6e-3"),
    "block": (
        2.3e-6,
        "worst of 24 blocks: 7.4e-7; gelu_tanh for gelu, in the first block: 5.7e-5; "
        "epsilon 1e-6: 3.2e-3; q and k swapped in the last block only: 6.4e-2",
    ),
    "pooled": (1.8e-6, "after the last layer norm: 5.7e-7; gelu_tanh for gelu: 1.1e-4"),
    "features": (2e-6, "after the projection: 6.6e-7; gelu_tanh for gelu: 9.1e-5"),
    "embeds": (2e-6, "of length one: 6.6e-7; gelu_tanh for gelu: 1.0e-4"),
    "logits": (4e-6, "1.2e-6; gelu_tanh for gelu: 1.0e-4"),
    "loss": (1e-6, "3.2e-7; gelu_tanh for gelu: 5.2e-6, epsilon 1e-6: 3e-4"),
    "cbow": (4e-7, "a mean and one product: 1.2e-7; end or start or padding miscounted: 0.74"),
    "jit": (
        2e-5,
        "logits compiled against op by op, true shapes, random weights: ViT-B/32 7.3e-7; larger "
        "ones, which run with --slow, were not measured and get parity.FLOOR; "
        "a picture one pixel lower: 1.1e-2",
    ),
    "jit, ResNet": (
        1.5e-4,
        "the same, not measured at full size; twice what a wide one's logits lost",
    ),
    "attention": (1e-6, "row sums of a float32 softmax: 3.0e-7; sums of columns: 0.1 and more"),
    # tiny models of the official code, tests/golden, and live ones
    "golden": (
        1e-5,
        "every stage against the official code in float64, worst of three models: 6.9e-7; of six "
        "more seeds of the ResNet on a processor without AVX-512 3.5e-6 (logits, where cosines "
        "cancel), torch's float32 1.5e-6; gelu for quick_gelu: 1.1e-2; blocks in the order of "
        "their names: 0.6",
    ),
    "golden, float64": (
        2e-7,
        "the reference against stages that are kept in float32, which rounds by up to 6e-8: 5.7e-8",
    ),
    "float32 twice": (
        5e-6,
        "logits, both sides in float32, against open_clip and transformers: 1.7e-6; one bias of "
        "one block off by 0.1: 8.3e-3; another model of the same shapes: 0.64",
    ),
    "planted faults": (
        2e-5,
        "the exam's PyTorch code in float32 against ours, three tiny models: 1.5e-6, and against "
        "its own outputs on another machine; the smallest planted fault, epsilon 1e-6: 8.9e-5",
    ),
    "positions": (
        2e-6,
        "resized grids against Pillow 2.0e-7, torch in float64 5e-8, open_clip in float32 5.9e-7; "
        "the other convention: 7.5e-2",
    ),
    "winograd": (
        6e-7,
        "one convolution of 5 channels against the plain sum in float64: 1.8e-7; the kernel "
        "upside down: above 1",
    ),
    "winograd bfloat16": (
        1.5e-2,
        "one convolution of 64 channels in bfloat16, by Winograd's way and by one product, against "
        "the plain sum of the rounded numbers in float64: 5.3e-3 and 3.0e-3; mirrored: above 0.5",
    ),
    "flat tokens float64": (
        1e-14,
        "stages and gradient of a model with tokens as one matrix: 0 and 1.1e-15; the images in "
        "another order: above 0.1",
    ),
    "fused attention": (
        2e-6,
        "jax.nn's kernel, whose softmax is in float32, in a model in float64, stages and gradient: "
        "3.0e-7 and 6.5e-7; padding seen, a mask shifted by one, another scale: above 1e-2",
    ),
    "pallas attention": (
        3e-6,
        "result and gradients in float32, 17 to 257 tokens: 7.6e-7; an empty place seen or in the "
        "bias's sum, a mask shifted by one, another scale: above 1e-2",
    ),
    "pallas attention bfloat16": (
        2.2e-2,
        "the same in bfloat16, rounded inputs included: 8.8e-3",
    ),
    "norm kernel": (
        4e-6,
        "gradients in float32 of rows some six standard deviations from zero, and sums over the "
        "rows in bfloat16 and float16, against float64, 12 seeds: 1.3e-6; epsilon 1e-6: 1.5e-3; "
        "the residual left out: 2.0e-2; the last rows missed: 6.9e-2; rows behind the end: NaN",
    ),
    "activation kernel": (
        2e-6,
        "quick_gelu of a sum and its gradients in float32, and the bias's gradient in bfloat16 and "
        "float16, against float64, 12 seeds: 4.7e-7; the bias's with a slope of 1.7: 6.8e-5; the "
        "last rows missed: 0.11; the bias left out: 0.39",
    ),
    "block kernels": (
        1.5e-5,
        "gradient of a model of four blocks in float32 against float64: 2.8e-6, of blocks' outputs "
        "4.8e-6, the plain model 2.1e-6; a bias or a residual left out, a bias twice: above 0.1",
    ),
    "lean layer norm": (
        1e-9,
        "gradient against JAX's own in float64: 7.2e-16; rows 1,000 from zero: 3.1e-13; rows of "
        "one number: 2.4e-10; rows in another order: above 0.1",
    ),
    "arranged gradients float64": (
        1e-9,
        "kernels of a ViT and a ResNet, sums in another order: not above; the images in another "
        "order: above 0.1",
    ),
    # the ResNet tower, tests/models/test_resnet.py
    "resnet stage": (
        2e-6,
        "worst of the stages of three towers: 6.1e-7; the smallest of 35 mistakes: 1.6e-3",
    ),
    "resnet features": (
        2e-6,
        "against the reference and the official tower: 6.1e-7; epsilon 1e-3 in one batch norm: "
        "1.7e-4",
    ),
    "resnet training": (
        5e-6,
        "embeddings by the batch's statistics, also in the official tower's second step: 1.4e-6; "
        "running statistics moved by 0.1, which training must not see: 0.4",
    ),
    "running statistics": (
        6e-7,
        "worst array, also after two steps of the official tower: 1.6e-7; a biased variance: "
        "2.9e-4; momentum 0.9: 0.56",
    ),
    "resnet devices float64": (
        7e-14,
        "gradients and statistics on 8 devices, worst array: 2.1e-14; statistics of one device "
        "only: 4.8e-6 in the best array",
    ),
    "resnet three steps float64": (
        2e-10,
        "parameters and statistics after three AdamW updates on 8 devices, worst array: 6.5e-11, "
        "by the amplification of `three steps float64` below; a step left out: 4.6e-3",
    ),
    "official float64": (
        1e-14,
        "the reference against the official tower, both in float64: 1.2e-15; epsilon 1e-3 in one "
        "batch norm: 1.7e-4",
    ),
    # the gradient
    "loss gradient": (
        1.5e-6,
        "with respect to embeddings and log temperature, worst array, at temperatures from 1 to "
        "100: 4.8e-7; one of the two directions only: 0.22",
    ),
    "gradient": (
        5e-6,
        "with respect to every parameter of a model of three blocks, worst array: 1.6e-6 (of "
        "twelve blocks 1.6e-5); gelu for quick_gelu: 5.2e-2",
    ),
    "remat": (
        1e-5,
        "gradients with and without jax.checkpoint, worst array: 3.1e-6, as XLA fuses the two "
        "programs differently; gelu for quick_gelu: 5.2e-2",
    ),
    "gradient float64": (
        2e-14,
        "Flax model and reference both in float64, worst array: 4.3e-15; the same model in "
        "float32: 1.6e-6",
    ),
    # other numerics
    "bfloat16": (
        0.05,
        "embeddings: 1.4e-2, eight bits of mantissa through twelve blocks; permuted layers: 0.24; "
        "epsilon and activation lie below it, which is why parity is asked of float32",
    ),
    "bfloat16 twice": (
        5e-2,
        "two programs of one bfloat16 model, random weights: 0 where both round alike; float32 "
        "departs by 1.6e-2; weights 1.3 times as large are noticed",
    ),
    "mesh gradient": (
        1e-3,
        "float32 on eight devices against one, worst array: 3.4e-4 (an attention pool of two "
        "positions, where the softmax cancels), 1.8e-6 elsewhere; summed over devices: 7",
    ),
    "bfloat16 gradient": (
        0.12,
        "every parameter's gradient of two blocks against float64, worst array: 4.1e-2; "
        "accumulated naively over four parts: more than 0.1 in every array",
    ),
    # the loss computed in other ways than the pseudocode's
    "spread loss": (
        1e-14,
        "gathered, ring and chunked, float64, 1 to 8 devices, value and worst gradient: 5.5e-16, "
        "at a factor of 100 on the cosines 3.2e-15; negatives from one's own device only: 0.18; "
        "psum for pmean: n - 1",
    ),
    # one step on many devices against the same step on one
    "devices float64": (
        4e-14,
        "gradients on 2, 4, 8 devices, in all three ways, worst array: 1.3e-14; negatives from "
        "one's own device only: 0.46 in the best array; reduced by psum: n - 1",
    ),
    "devices float32": (
        2e-5,
        "the gradient on 8 devices in float32 against that on one in float64, worst array: 6.4e-6",
    ),
    "three steps float64": (
        4e-12,
        "parameters after three AdamW updates on 8 devices, worst array: 1.3e-12. Adam divides a "
        "gradient by its size, so rounding of 1e-17 in a gradient that is zero (a key's bias) "
        "becomes 1e-17 / epsilon = 1e-11 of the learning rate, 1e-2 here; a step left out: 0.34",
    ),
    "three steps float32": (
        3e-3,
        "the same in float32: 9.3e-4, by the same amplification; a step left out: 0.34",
    ),
    # the page that trains in the browser: float32 JavaScript against the project
    "playground operation": (
        6e-7,
        "value and gradients of every operation against JAX in float64, worst of all: 2.0e-7; "
        "layer norm with epsilon 1e-6: more than 1e-6",
    ),
    "playground losses": (
        1e-5,
        "losses of 100 steps, absolute, three seeds: 1.3e-6; every loss and tower: 4.2e-6; layer "
        "norm's epsilon 1e-7: 3.4e-5, Adam's: 6.7e-5; no weight decay: 1.3e-2",
    ),
    "cosines of float16": (
        2e-6,
        "absolute; the same float16 vectors, up to 512 terms, float32 sums in another order: 4e-7",
    ),
    "pictures": (1e-6, "augmented pictures in 0..1, on one device and on eight: 0"),
    # evaluation/relevance.py
    "relevance": (
        1e-5,
        "maps of a batch in another order, and the features of a tower that is cut in two, four "
        "kinds of towers: 0; a neighbour's map: 0.83 and more; a rollout from the last block to "
        "the first: more than 1e-3",
    ),
}


def within(name: str) -> float:
    """The tolerance of that name."""
    return TOLERANCES[name][0]


def departure(got: Any, expected: Any) -> float:
    """max |got - expected| / max |expected|; shapes must be equal, anything not finite is infinite.

    >>> departure([1.0, 2.0], [1.0, 4.0])
    0.5
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, f"expected {expected.shape}, got {got.shape}"
    value = np.abs(got - expected).max() / np.abs(expected).max()
    return float(value) if np.isfinite(value) else np.inf


def worst(got: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest departure over two dicts of arrays with the same names."""
    assert got.keys() == expected.keys()
    return max(departure(got[name], expected[name]) for name in expected)
