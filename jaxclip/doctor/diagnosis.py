"""What is wrong with an implementation, from its outputs alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxclip.config import ClipConfig
from jaxclip.doctor.checks import check_probe, check_theirs
from jaxclip.doctor.evidence import Evidence, Side
from jaxclip.doctor.faults import BY_NAME
from jaxclip.doctor.knobs import Walk, right_walk, turn
from jaxclip.doctor.network import Network
from jaxclip.doctor.search import Finding, Tell, search
from jaxclip.doctor.variants import Fault, Variant
from jaxclip.models.clip import Clip
from jaxclip.models.parameters import to_flat

Array = np.ndarray
Verdict = Literal["agrees", "faults", "unknown"]
UNRELATED = 0.25  # mean cosine of what differs between inputs: below, two models share nothing
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is wrong: faults by name, how much they explain, and what is left.

    `faults` are named in the order of the sides (preprocessing, tokens, image, text, logits);
    `explained` is their share of the squared difference; `rounding` is the widest number format
    that what remains is within, "" where it is beyond; `first_stage` is the first array that
    departs by more than float32's rounding.
    """

    verdict: Verdict
    faults: tuple[Fault, ...]
    explained: float
    remaining: float
    rounding: str
    first_stage: str | None
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        """What the command prints."""
        lines = [self._headline()]
        lines += [f"- {fault.name}: {fault.sentence}" for fault in self.faults]
        others = [name for finding in self.findings for name in finding.others]
        if self.faults and others:
            lines.append(f"  these outputs cannot tell it from: {', '.join(dict.fromkeys(others))}")
        lines += [_line(finding) for finding in self.findings]
        if self.verdict == "unknown":
            lines.append(_advice(self.findings))
        return "\n".join(lines)

    def _headline(self) -> str:
        if self.verdict == "agrees":
            return f"agrees within {self.rounding or 'float32'} rounding"
        if self.verdict == "unknown":
            return f"unknown difference, first stage that departs: {self.first_stage}"
        count = (
            "one fault explains" if len(self.faults) == 1 else f"{len(self.faults)} faults explain"
        )
        left = f"; what remains is {self.rounding} rounding" if self.rounding else ""
        return f"{count} {self.explained:.2%} of the difference{left}"

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as plain values."""
        return {
            "verdict": self.verdict,
            "faults": [fault._asdict() for fault in self.faults],
            "explained": self.explained,
            "remaining": self.remaining,
            "rounding": self.rounding,
            "first_stage": self.first_stage,
            "sides": [
                {
                    "side": f.side.name,
                    "verdict": f.verdict,
                    "faults": list(f.variant.names) if f.variant else [],
                    "or": list(f.others),
                    "explained": f.explained,
                    "difference": dict(zip(f.side.stages, f.before.residuals, strict=True)),
                    "remaining": dict(zip(f.side.stages, f.after.residuals, strict=True)),
                    "rounding": f.rounding,
                }
                for f in self.findings
            ],
        }


def _line(finding: Finding) -> str:
    before, after = finding.before.residuals[-1], finding.after.residuals[-1]
    start = f"  {finding.side.name}:"
    if finding.verdict == "agrees":
        return (
            f"{start} agrees within {finding.rounding} rounding (relative difference {before:.1e})"
        )
    if finding.verdict == "unknown":
        return f"{start} departs from {finding.first_stage} on (relative difference {before:.1e})"
    return f"{start} relative difference {before:.1e}, with the faults {after:.1e}"


def _advice(findings: tuple[Finding, ...]) -> str:
    """What else to record, so that more can be said."""
    wrong = [finding.side for finding in findings if finding.verdict == "unknown"]
    for side in wrong:
        for tower in ("image", "text"):
            if side.name == f"{tower} tower" and len(side.stages) == 1:
                return f"record {tower}_hidden as well: it shows the first block that departs"
            if side.name.startswith(f"{tower}_features_from"):
                inputs = "pixels" if tower == "image" else "tokens"
                return f"record {inputs} and {tower}_features as well: they tell input from tower"
    if any(side.name == "logits" for side in wrong):
        return "record image_features and text_features as well"
    return "no fault of the table does this: look into that stage"


def diagnose(
    probe: Mapping[str, Array],
    theirs: Mapping[str, Array],
    model: Any,
    tell: Tell = lambda line: None,
) -> Diagnosis:
    """What is wrong with another program's outputs for a probe.

    Args:
      probe: what `jaxclip doctor probe` wrote, as a dict of arrays.
      theirs: any of image_features, text_features, logits_per_image, logit_scale, pixels, tokens,
        image_features_from_pictures, text_features_from_texts, image_hidden, text_hidden.
      model: a `Clip`, or what `jaxclip.load` returns.
      tell: is called with lines about the progress.

    Returns:
      The verdict ("agrees", "faults" or "unknown") and the smallest set of faults that explains
      the difference.

    Raises:
      ValueError: an array is missing, has another shape or is not finite; the line says which.
    """
    clip = model[0] if isinstance(model, tuple) else model
    if not isinstance(clip, Clip):
        kind = type(clip).__name__
        raise ValueError(f"model: expected what jaxclip.load returns, got {kind}")
    flat, config = to_flat(clip), clip.config
    check_probe(probe, config, flat)
    given = check_theirs(theirs, probe, config)
    evidence = Evidence(probe, given, Network(flat, config))
    return _summarise(_examine(evidence, config, tell))


def _examine(evidence: Evidence, config: ClipConfig, tell: Tell) -> list[Finding]:
    """Every side in order; what a side finds is assumed by the later ones."""
    walk: Walk = right_walk(config)
    findings: list[Finding] = []

    def look(side: Side | None) -> None:
        nonlocal walk
        if side is None:
            return
        found = search(side, config, walk, tell)
        findings.append(found)
        if found.variant is not None:
            walk = turn(walk, found.variant.changes)

    for side in evidence.input_sides():
        look(side)
    for name in ("image", "text"):
        look(evidence.tower_side(name))
    for name, inputs in (("image", "pixels"), ("text", "tokens")):
        known = {finding.side.name for finding in findings}
        free = tuple(
            knobs
            for knobs, side in ((inputs, inputs), (name, f"{name} tower"))
            if side not in known
        )
        look(evidence.whole_side(name, free))
    known = {finding.side.name for finding in findings}
    given = set(evidence.theirs)
    towers = tuple(
        name
        for name in ("image", "text")
        if f"{name} tower" not in known and not any(k.startswith(f"{name}_feat") for k in given)
    )
    look(evidence.logits_side(("logits", *towers), walk))
    return _other_weights(findings)


def _other_weights(findings: list[Finding]) -> list[Finding]:
    """The findings, with other weights named where neither tower's features resemble ours.

    One tower that does so may have any fault: it stays unknown.
    """
    towers = [f for f in findings if f.side.name in ("image tower", "text tower")]
    lost = [f for f in towers if f.verdict == "unknown" and abs(f.resemblance) < UNRELATED]
    if len(lost) < 2:
        return findings
    fault = Fault("other-weights", BY_NAME["other-weights"].sentence)
    named = Variant((fault,), {}, True)
    return [
        dataclasses.replace(f, verdict="faults", variant=named) if f in lost else f
        for f in findings
    ]


def _summarise(findings: list[Finding]) -> Diagnosis:
    faults: dict[str, Fault] = {}
    for finding in findings:
        for fault in finding.variant.faults if finding.variant else ():
            known = faults.get(fault.name)
            both = known is not None and known.sentence != fault.sentence
            faults[fault.name] = _merge(known, fault) if known and both else fault
    before = sum(finding.before.squared for finding in findings)
    after = sum(finding.after.squared for finding in findings)
    unknown = [finding for finding in findings if finding.verdict == "unknown"]
    verdict: Verdict = "faults" if faults else "unknown" if unknown else "agrees"
    departing = [f.first_stage for f in findings if f.verdict != "agrees"]
    widest = ["", "bfloat16", "float16", "float32"]
    rounding = min((f.rounding for f in findings), key=widest.index)
    return Diagnosis(
        verdict,
        tuple(faults.values()),
        max(0.0, 1 - after / before) if before > 0 else 1.0,
        max((max(f.after.residuals) for f in findings), default=0.0),
        rounding,
        departing[0] if departing else None,
        tuple(findings),
    )


def _merge(known: Fault, fault: Fault) -> Fault:
    return (
        known
        if fault.sentence in known.sentence
        else known._replace(sentence=f"{known.sentence}; {fault.sentence}")
    )
