"""The table of faults: the order of the blocks, and whole checkpoints."""

import itertools
from collections.abc import Iterable

from jaxclip.doctor.faults_blocks import TOWERS, TRANSFORMERS
from jaxclip.doctor.pitfall import Member, Pitfall, Place


def _swaps(place: Place) -> Iterable[Member]:
    layers = len(place.right.order)
    by_name = tuple(sorted(range(layers), key=str))
    if by_name != place.right.order:
        yield Member(
            {"order": by_name},
            "",
            "the blocks are in the order of their names: 0, 1, 10, 11, 2",
        )
    far = layers if layers <= 6 else 2  # of many blocks only near ones, for time
    for i, j in sorted(itertools.combinations(range(layers), 2), key=lambda p: p[1] - p[0]):
        if j - i > far:
            continue
        order = list(range(layers))
        order[i], order[j] = j, i
        if i + j != layers - 1 or layers > 3:  # else it is the reversal
            yield Member({"order": tuple(order)}, "", f"blocks {i} and {j} are swapped")


def _missing(place: Place) -> Iterable[Member]:
    layers = len(place.right.order)
    for k in range(layers - 1):
        order = (*range(k), *range(k + 1, layers))
        yield Member({"order": order}, "", f"block {k} of {layers} is missing")


def _missing_last(place: Place) -> Iterable[Member]:
    layers = len(place.right.order)
    return [Member({"order": tuple(range(layers - 1))})] if layers > 1 else []


def _reversed(place: Place) -> Iterable[Member]:
    backwards = tuple(reversed(place.right.order))
    return [Member({"order": backwards})] if backwards != place.right.order else []


FAULTS = (
    Pitfall(
        "layers-reversed",
        TRANSFORMERS,
        "the blocks run in reverse order",
        _reversed,
        sees="Features of a normal size without any meaning.",
        why="A stack is popped from its end.",
        fix="Run block 0 first.",
        test="Hidden states after the first block.",
    ),
    Pitfall(
        "missing-last-layer",
        TRANSFORMERS,
        "the last block is missing",
        _missing_last,
        sees="Features that resemble the right ones.",
        why="`hidden_states[-2]`, as diffusion models use it, or `range(layers - 1)`.",
        fix="Run all blocks.",
        test="Count the hidden states: one more than blocks.",
    ),
    Pitfall(
        "missing-layer",
        TRANSFORMERS,
        "a block is missing",
        _missing,
        sees="Features that resemble the right ones.",
        why="A name that no rule of a conversion matches leaves a block with fresh weights.",
        fix="Refuse missing and unexpected names on loading.",
        test="Count parameters and blocks.",
    ),
    Pitfall(
        "layers-swapped",
        TRANSFORMERS,
        "blocks are in the wrong order",
        _swaps,
        sees="Features that resemble the right ones.",
        why="Sorted as text, `10` and `11` come before `2`; a dict of blocks loses the order.",
        fix="Sort by number.",
        test="Twelve blocks or more, each with weights of its own.",
    ),
    Pitfall(
        "other-weights",
        TOWERS,
        "the weights are those of another model",
        (),
        sees="Everything departs from the first stage on, and nothing explains it.",
        why="Fresh weights, another checkpoint of the same shape, or a loader that skips names.",
        fix="Compare the weights themselves: `jaxclip convert`, then the digest of a tensor.",
        test="Refuse missing and unexpected names; hold one tensor's sum.",
    ),
    Pitfall(
        "float16",
        TOWERS,
        "the model computes in float16",
        (),
        sees="Features right to three digits. This is rounding and no fault.",
        why="The released code computes in float16 on a GPU.",
        fix="None needed; compare in float32 to see anything smaller.",
        test="Cosines of at least 0.999.",
    ),
    Pitfall(
        "bfloat16",
        TOWERS,
        "the model computes in bfloat16",
        (),
        sees="Features right to two digits. This is rounding and no fault.",
        why="TPUs multiply in bfloat16 unless asked (`jax.default_matmul_precision`).",
        fix="None needed; compare in float32 to see anything smaller.",
        test="Cosines of at least 0.99.",
    ),
)
