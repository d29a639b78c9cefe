"""The table of faults, whole: the detector tries its rows, docs/pitfalls.md prints its words."""

from jaxclip.doctor import faults_blocks, faults_ends, faults_inputs, faults_logits, faults_order
from jaxclip.doctor.pitfall import Pitfall

FAULTS: tuple[Pitfall, ...] = (  # among faults that explain the same, the first is named
    *faults_blocks.FAULTS,
    *faults_order.FAULTS,
    *faults_ends.FAULTS,
    *faults_logits.FAULTS,
    *faults_inputs.FAULTS,
)
BY_NAME = {pitfall.name: pitfall for pitfall in FAULTS}


def pitfall_of(name: str) -> Pitfall:
    """The row of a fault by its name, also of a family's member such as heads-3."""
    if name in BY_NAME:
        return BY_NAME[name]
    families = {"heads-": "heads-of-64", "qkv-order-": "qkv-order-kqv"}
    return next(BY_NAME[row] for start, row in families.items() if name.startswith(start))
