"""One row of the table of faults: its words for people, and the knobs that commit it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxclip.config import ClipConfig
from jaxclip.doctor.knobs import Tower

Knobs = dict[str, Any]


class Place(NamedTuple):
    """Where a fault of a tower is committed."""

    config: ClipConfig
    side: str  # "image" or "text"
    right: Tower
    width: int
    kind: str  # "vit", "resnet", "text" or "bag"


class Member(NamedTuple):
    """One way to commit a fault: knobs, and what its name and sentence are where they differ."""

    knobs: Knobs
    name: str = ""
    sentence: str = ""


Changes = Callable[[Place], Iterable[Member]]


@dataclasses.dataclass(frozen=True)
class Pitfall:
    """A fault: what it is, what one sees, why it happens, the fix, the test that catches it.

    `stages` are where it acts: "pixels", "tokens", "logits", or the towers "vit", "resnet", "text".
    `changes` are knobs (several where programs commit it in several ways) or what makes them.
    """

    name: str
    stages: tuple[str, ...]
    sentence: str
    changes: tuple[Knobs, ...] | Changes
    sees: str
    why: str
    fix: str
    test: str

    def members(self, place: Place) -> list[Member]:
        """Every way to commit it there, with names and sentences filled in."""
        made = self.changes(place) if callable(self.changes) else map(Member, self.changes)
        values: dict[str, Any] = {"side": place.side, "heads": place.right.heads}
        values |= {"activation": ACTIVATIONS.get(place.config.activation, "")}
        return [
            Member(m.knobs, m.name or self.name, (m.sentence or self.sentence).format(**values))
            for m in made
        ]


ACTIVATIONS = {
    "quick_gelu": "QuickGELU",
    "gelu": "exact GELU",
    "gelu_tanh": "GELU by tanh",
    "relu": "ReLU",
}
