"""The smallest set of faults that turns our arrays of one side into theirs."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxclip.config import ClipConfig
from jaxclip.doctor.evidence import Rows, Side, take
from jaxclip.doctor.knobs import Walk, turn
from jaxclip.doctor.towers import ROUNDINGS
from jaxclip.doctor.variants import Variant, join, single_variants

Array = np.ndarray
Tell = Callable[[str], object]
# float16 keeps 13 bits less than float32: what rounding to it changes, over 2^13, is about what
# float32 changes. Sums in another order cost some times as much.
FLOAT32_SHARE, FLOAT32_TIMES, FLOAT32_FLOOR = 2.0**-13, 12.0, 6e-7
STEPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the largest relative error of one rounding
# Another program rounds at other places than we do; where it returned float32, only its products
# can have been rounded.
HALF_TIMES, PRODUCT_TIMES = 3.0, 1.5
EXPLAINS = 0.9  # of the squared difference: less is a coincidence or one fault of several
NEARLY = 1.25  # residuals this close are the same
PAIR_GAIN = 0.25  # a second fault must leave at most this share of what one leaves
BUDGET = 8e11  # multiplications of a search for pairs
ALL_PAIRS = 1e8  # multiplications of a prediction up to which all pairs are tried
BEST, FEW = 10, 3  # singles that pairs are built on


@dataclasses.dataclass(frozen=True)
class Score:
    """How far a prediction is from theirs, stage by stage: relative root mean squares."""

    residuals: tuple[float, ...]

    @property
    def squared(self) -> float:
        """The sum of the squared residuals."""
        return float(sum(r * r for r in self.residuals))

    def within(self, levels: Sequence[float]) -> bool:
        """Whether every stage is within its rounding."""
        return all(r <= level for r, level in zip(self.residuals, levels, strict=True))

    def prefix(self, levels: Sequence[float]) -> int:
        """How many stages from the first on are within their rounding."""
        held = [r <= level for r, level in zip(self.residuals, levels, strict=True)]
        return held.index(False) if False in held else len(held)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a side says."""

    side: Side
    verdict: str  # "agrees", "faults", "unknown"
    before: Score
    after: Score
    rounding: str  # "float32", "float16", "bfloat16": what is left is within it; "" beyond
    variant: Variant | None = None
    others: tuple[str, ...] = ()  # names of faults that explain it as well
    first_stage: str | None = None
    resemblance: float = 1.0  # of the last stage, where nothing explains the difference

    @property
    def explained(self) -> float:
        """The share of the squared difference that the faults explain."""
        before = self.before.squared
        return max(0.0, 1 - self.after.squared / before) if before > 0 else 1.0


def distance(theirs: Array, ours: Array, exact: bool) -> float:
    """How far apart two arrays are, relative to theirs; 1 where their shapes differ."""
    if exact:
        columns = max(theirs.shape[1], ours.shape[1])
        same = min(theirs.shape[1], ours.shape[1])
        unequal = (theirs[:, :same] != ours[:, :same]).sum() + len(theirs) * (columns - same)
        return float((unequal / (len(theirs) * columns)) ** 0.5)
    if theirs.shape != ours.shape:
        return 1.0
    a = np.asarray(theirs, np.float64)
    with np.errstate(all="ignore"):
        off = float(np.linalg.norm(a - ours)) / max(float(np.linalg.norm(a)), 1e-30)
    return off if np.isfinite(off) else 1e6


def is_half(array: Array) -> bool:
    """Whether every number of an array is one of float16 or of bfloat16."""
    x = np.asarray(array, np.float32)
    with np.errstate(over="ignore"):
        return any(bool((x == x.astype(kind)).all()) for kind in ROUNDINGS.values())


def resemblance(a: Array, b: Array) -> float:
    """Mean cosine between rows of two arrays [n, e], each less its mean over rows."""
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        return 0.0
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(lengths, 1e-30)))


class Search:
    """Tries variants of a walk on one side."""

    def __init__(self, side: Side, config: ClipConfig, walk: Walk, tell: Tell) -> None:
        self.side, self.walk, self.tell = side, walk, tell
        self.singles = [*single_variants(config, walk, side.knobs), *side.more]
        self.is_half = any(map(is_half, side.theirs))
        self.rows: Rows = self._choose_rows()
        self.levels = self.levels_of(None)

    def _choose_rows(self) -> Rows:
        """The first rows of those that depart most, so that a search is quick."""
        few, theirs = self.side.few, self.side.theirs[-1]
        ours = self.side.predict(self.walk, None)[-1]
        if not few or len(theirs) <= few:
            return None
        if ours.shape != theirs.shape:
            return tuple(range(few))
        off = np.array([distance(a, b, False) for a, b in zip(theirs, ours, strict=True)])
        clear = np.flatnonzero(off > 0.3 * off.max())
        return tuple(int(i) for i in clear[:few]) if len(clear) else None

    def score(self, variant: Variant | None, *, whole: bool = False) -> Score:
        """How far the walk with a variant's knobs is from theirs, in the search's rows or all."""
        rows = None if whole else self.rows
        walk = self.walk if variant is None else turn(self.walk, variant.changes)
        ours = list(self.side.predict(walk, rows))
        theirs = [take(x, rows) for x in self.side.theirs]
        if len(ours) != len(theirs):  # a block is missing: stages pair from the first on
            end = ours[-1:] if self.side.stages[-1].endswith("features") else []
            ours = [*ours[: len(ours) - len(end)], *[np.zeros(0)] * len(theirs)]
            ours = [*ours[: len(theirs) - len(end)], *end]
        return Score(
            tuple(distance(a, b, self.side.exact) for a, b in zip(theirs, ours, strict=True))
        )

    # Rounding --------------------------------------------------------------------------------

    def levels_of(self, variant: Variant | None) -> dict[str, tuple[float, ...]]:
        """{number format: how far each stage may move by rounding}, for a variant."""
        walk = self.walk if variant is None else turn(self.walk, variant.changes)
        halves = {name: self._rounded(walk, name) for name in STEPS}
        share = FLOAT32_SHARE * FLOAT32_TIMES
        times = HALF_TIMES if self.is_half else PRODUCT_TIMES
        levels = {"float32": [share * r + FLOAT32_FLOOR for r in halves["float16"]]}
        levels |= {name: [times * r + STEPS[name] for r in moved] for name, moved in halves.items()}
        if self.side.exact:
            return {name: (0.0,) * len(self.side.stages) for name in levels}
        stages = len(self.side.stages)
        return {
            name: tuple([*values, *values[-1:] * stages][:stages])
            for name, values in levels.items()
        }

    def _rounded(self, walk: Walk, rounding: str) -> list[float]:
        """How far our own stages move when every step is rounded."""
        if self.side.exact:
            return [0.0]
        if self.side.name == "pixels":
            return [0.4 * STEPS[rounding]]
        right = self.side.predict(walk, self.rows)
        stages = {stage: {"rounding": rounding} for stage in ("image", "text", "logits")}
        wrong = self.side.predict(turn(walk, stages), self.rows)
        return [distance(a, b, False) for a, b in zip(right, wrong, strict=True)]

    def rounding_of(self, score: Score, variant: Variant | None = None) -> str:
        """The narrowest format that a score is within: "float32", "float16", "bfloat16" or ""."""
        found = next((name for name in self.levels if score.within(self.levels[name])), "")
        if found == "float32" or variant is None:
            return found
        levels = self.levels_of(variant)  # a fault may make the model more sensitive
        own = next((name for name in levels if score.within(levels[name])), "")
        order = ("float32", "float16", "bfloat16", "")
        return min(found, own, key=order.index)

    # The search ------------------------------------------------------------------------------

    def rank(self, score: Score) -> tuple[int, float]:
        """Better is larger."""
        return score.prefix(self.levels["float32"]), -score.squared

    def try_all(self, variants: Sequence[Variant]) -> list[tuple[Variant, Score]]:
        """(variant, score), best first; among equals the earlier."""
        scored = [(variant, self.score(variant)) for variant in variants]
        return sorted(scored, key=lambda pair: self.rank(pair[1]), reverse=True)

    def pairs(self, singles: Sequence[tuple[Variant, Score]]) -> list[Variant]:
        """Pairs worth trying: on the best singles, and all usual ones where that is cheap."""
        cheap = self.side.cost <= ALL_PAIRS
        best = [variant for variant, _ in singles]
        usual = [variant for variant in best if variant.first]
        few = BEST
        if not cheap:
            few = int(np.clip(BUDGET / (self.side.cost * max(1, len(usual))), FEW, BEST))
        tops = best[:few]
        found = [(a, b) for a in tops for b in (best if cheap else usual)]
        found += itertools.combinations(usual, 2) if cheap else ()
        joined: dict[Any, Variant] = {}
        for a, b in found:
            pair = join(a, b) if a is not b else None
            key = frozenset((id(a), id(b)))
            if pair is not None and key not in joined:
                joined[key] = pair
        return list(joined.values())

    def ties(
        self, scored: Sequence[tuple[Variant, Score]]
    ) -> tuple[Variant, Score, tuple[str, ...]]:
        """(the first in the table's order of those that fit best, its score, the others' names)."""
        least = scored[0][1].squared
        near = [(variant, score) for variant, score in scored if score.squared <= NEARLY**2 * least]
        order = {variant.names[0]: -i for i, variant in enumerate(reversed(self.singles))}
        near.sort(key=lambda pair: sum(order[name] for name in pair[0].names))
        variant, score = near[0]
        names = dict.fromkeys(" and ".join(v.names) for v, _ in near)
        others = tuple(name for name in names if name != " and ".join(variant.names))
        return variant, score, others[:3]


def _improves(before: Score, after: Score) -> bool:
    return after.squared <= (1 - EXPLAINS) * before.squared


def search(side: Side, config: ClipConfig, walk: Walk, tell: Tell) -> Finding:
    """What is wrong on one side, given a walk that is right elsewhere."""
    found = Search(side, config, walk, tell)
    base, float32 = found.score(None), found.levels["float32"]
    if all(r <= level / 3 for r, level in zip(base.residuals, float32, strict=True)):
        return Finding(side, "agrees", base, base, "float32")
    tell(f"{side.name}: trying {len(found.singles)} faults ...")
    singles = _try_singles(found, base)
    best = singles[0] if singles else None
    convinced = best is not None and _improves(base, best[1])
    left = found.rounding_of(best[1], best[0]) if best is not None and convinced else ""
    if left == "float32":
        return _named(found, base, singles)
    rounding = found.rounding_of(base)
    agrees = Finding(side, "agrees", base, base, rounding)
    if rounding == "float32" or (rounding and not convinced and found.is_half):
        return agrees
    pairs = found.pairs(singles)
    if pairs and not (left and found.is_half and side.cost > ALL_PAIRS):
        tell(f"{side.name}: trying {len(pairs)} pairs of faults ...")
        scored = found.try_all(pairs)
        if _is_better(found, base, singles[0][1], scored[0][1]):
            return _named(found, base, scored)
    if convinced:
        return _named(found, base, singles)
    return agrees if rounding else _unknown(found, base)


def _try_singles(found: Search, base: Score) -> list[tuple[Variant, Score]]:
    """Every single fault, best first; the towers' are left out where the logits' explain all."""
    cheap = found.try_all([v for v in found.singles if "logits" in v.changes])
    if cheap and _improves(base, cheap[0][1]) and cheap[0][1].within(found.levels["float32"]):
        return cheap
    rest = found.try_all([v for v in found.singles if "logits" not in v.changes])
    return sorted([*cheap, *rest], key=lambda pair: found.rank(pair[1]), reverse=True)


def _is_better(found: Search, base: Score, single: Score, pair: Score) -> bool:
    """Whether a pair explains the difference, and much better than the best single."""
    levels = found.levels["float32"]
    return _improves(base, pair) and (
        pair.squared <= PAIR_GAIN * single.squared or pair.prefix(levels) > single.prefix(levels)
    )


def _named(found: Search, base: Score, scored: Sequence[tuple[Variant, Score]]) -> Finding:
    variant, score, others = found.ties(scored)
    if found.rows is not None:
        base, score = found.score(None, whole=True), found.score(variant, whole=True)
    rounding = found.rounding_of(score, variant)
    first = _departs(found, base)
    return Finding(found.side, "faults", base, score, rounding, variant, others, first)


def _departs(found: Search, score: Score) -> str:
    """The first stage beyond float32's rounding."""
    held = score.prefix(found.levels["float32"])
    return found.side.stages[min(held, len(found.side.stages) - 1)]


def _unknown(found: Search, base: Score) -> Finding:
    theirs = found.side.theirs[-1]
    ours = found.side.predict(found.walk, None)[-1]
    first, like = _departs(found, base), resemblance(theirs, ours)
    return Finding(found.side, "unknown", base, base, "", None, (), first, like)
