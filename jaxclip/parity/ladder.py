"""Two ladders compared, rung by rung, and the first rung that departs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rung:
    """One stage compared: the largest value expected, the largest difference, what is allowed.

    `error` and `largest` are absolute, `relative` and `bound` are over `largest`.
    """

    name: str
    largest: float
    error: float
    bound: float

    @property
    def relative(self) -> float:
        """error / largest; infinite where something is not finite, or where zero is expected."""
        if self.error == 0:
            return 0.0
        return self.error / self.largest if self.largest > 0 else float("inf")

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return bool(self.relative <= self.bound)


def compare_stage(name: str, got: np.ndarray, expected: np.ndarray, bound: float) -> Rung:
    """The rung of one stage; ValueError when it has two shapes."""
    if got.shape != expected.shape:
        raise ValueError(f"{name}: expected shape {expected.shape}, got {got.shape}")
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)).max()
    error = float(difference) if np.isfinite(difference) else float("inf")
    largest = float(np.abs(np.asarray(expected, np.float64)).max())
    return Rung(name, largest, error, 0.0 if name == "tokens" else bound)


def compare(
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    bound: float | Mapping[str, float],
) -> list[Rung]:
    """The rungs that both ladders have, in the order of `got`; tokens must be equal.

    `bound` is one for all stages, or one for each. ValueError when the ladders share no rung, or a
    shared one has two shapes.
    """
    shared = [name for name in got if name in expected]
    if not shared:
        raise ValueError(
            f"expected the stages {', '.join(list(expected)[:3])}, ..., got "
            f"{', '.join(list(got)[:3])}, ...: the two ladders share none"
        )
    bounds = bound if isinstance(bound, Mapping) else dict.fromkeys(shared, bound)
    return [compare_stage(name, got[name], expected[name], bounds[name]) for name in shared]


def first_departure(rungs: Sequence[Rung]) -> Rung | None:
    """The first rung that does not hold, or None: where to look for the mistake."""
    return next((rung for rung in rungs if not rung.holds), None)
