"""The wrong models to try: every row of the table, and pairs of two."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.doctor.faults import FAULTS
from jaxclip.doctor.knobs import Walk
from jaxclip.doctor.pitfall import Knobs, Member, Pitfall, Place


class Fault(NamedTuple):
    """What is wrong: a stable name, and a sentence."""

    name: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Variant:
    """Knobs that commit one fault or two."""

    faults: tuple[Fault, ...]
    changes: Mapping[str, Knobs]  # stage -> knobs
    first: bool  # the usual way to commit that fault

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its faults."""
        return tuple(fault.name for fault in self.faults)


def _places(config: ClipConfig, walk: Walk) -> dict[str, Place]:
    """{stage of the table: where it is in this model}."""
    vision = config.vision
    is_resnet = isinstance(vision, ResNetConfig)
    width = vision.features if isinstance(vision, ResNetConfig) else vision.width
    image = "resnet" if is_resnet else "vit"
    text = "text" if config.text.kind == "transformer" else "bag"
    return {
        image: Place(config, "image", walk["image"], width, image),
        text: Place(config, "text", walk["text"], config.text.width, text),
    }


BAG: tuple[str, ...] = (
    "features-normalised",
    "no-projection",
    "transposed-projection",
    "pooled-mean",
)
BAG += ("pooled-before-end",)


def _of_towers(pitfall: Pitfall, places: Mapping[str, Place], stages: set[str]) -> list[Variant]:
    """The ways to commit a fault in one tower, and in both at once where both are open."""
    found: list[list[Member]] = []
    sides: list[str] = []
    for kind, place in places.items():
        named = "text" if kind == "bag" else kind
        if place.side not in stages or named not in pitfall.stages:
            continue
        if kind == "bag" and pitfall.name not in BAG:
            continue
        found.append(pitfall.members(place))
        sides.append(place.side)
    variants = [
        Variant((Fault(m.name, m.sentence),), {side: m.knobs}, i == 0)
        for side, members in zip(sides, found, strict=True)
        for i, m in enumerate(members)
    ]
    if len(sides) == 2:  # the same mistake in both towers
        by_name = {m.name: m for m in reversed(found[1])}
        for i, m in enumerate(found[0]):
            if m.name in by_name and found[0].index(m) == i:
                both = {sides[0]: m.knobs, sides[1]: by_name[m.name].knobs}
                sentence = m.sentence.replace("the image", "each")
                variants.append(Variant((Fault(m.name, sentence),), both, False))
    return variants


def single_variants(config: ClipConfig, walk: Walk, stages: Iterable[str]) -> list[Variant]:
    """Every way to commit one fault of the table in some stages, the usual ones first.

    stages: of "pixels", "tokens", "image", "text", "logits".
    """
    wanted, places = set(stages), _places(config, walk)
    anywhere = next(iter(places.values()))
    found: list[Variant] = []
    for pitfall in FAULTS:
        found += _of_towers(pitfall, places, wanted)
        for stage in wanted & {"pixels", "tokens", "logits"} & set(pitfall.stages):
            for i, m in enumerate(pitfall.members(anywhere)):
                fault = Fault(m.name, m.sentence)
                found.append(Variant((fault,), {stage: m.knobs}, i == 0))
    # where inputs are open too, their faults are the more common ones
    return sorted(found, key=lambda v: not {"pixels", "tokens"} & v.changes.keys())


def fitted_scale(factor: float, right: float) -> Variant:
    """The logits with a factor that was fitted to theirs."""
    sentence = f"the cosines are multiplied by {factor:.6g} where exp(logit_scale) is {right:.6g}"
    fault = Fault("scale-clipped", sentence)
    return Variant((fault,), {"logits": {"scale": "clipped", "clip": factor}}, False)


def join(a: Variant, b: Variant) -> Variant | None:
    """Both faults at once; None where they set the same knob or are the same fault."""
    if a.names == b.names:
        return None
    changes: dict[str, dict[str, Any]] = {stage: dict(knobs) for stage, knobs in a.changes.items()}
    for stage, knobs in b.changes.items():
        mine = changes.setdefault(stage, {})
        if mine.keys() & knobs.keys():
            return None
        mine.update(knobs)
    return Variant((*a.faults, *b.faults), changes, a.first and b.first)
