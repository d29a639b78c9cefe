"""The doctor's answer to one case, held against what was planted; the table. No torch."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.proofs.planted_faults import models
from jaxclip.checkpoint import replacing

Arrays = dict[str, np.ndarray]
Row = dict[str, Any]
TARGETS = {"fault": 0.95, "pair": 0.8, "sound": 1.0}
# Two names for one function, which no outputs can tell apart: one head of 64 channels; a class
# token at the end of the sequence, where patch i takes the position of the one before.
SAME = {"heads-of-64": {"heads-1"}, "class-token-last": {"positions-off-by-one"}}


@dataclasses.dataclass(frozen=True)
class Question:
    """A case as it is kept beside its arrays."""

    name: str
    model: str
    kind: str
    faults: tuple[str, ...]
    keys: tuple[str, ...]


@cache
def model_and_probe(model: str) -> tuple[Any, Arrays]:
    """The model as a `jaxclip.Clip`, and the doctor's probe of it."""
    from jaxclip.doctor.probe import make_probe

    clip = models.as_clip(model)
    return clip, make_probe(models.draw_weights(model), models.MODELS[model], model)


def digest(model: str) -> str:
    """SHA-256 of the pictures and tokens that a model's outputs were recorded for."""
    probe = model_and_probe(model)[1]
    total = hashlib.sha256()
    for key in sorted(key for key in probe if key.startswith("picture_") or key == "tokens"):
        total.update(np.ascontiguousarray(probe[key]).tobytes())
    return total.hexdigest()


def matches(name: str, slug: str) -> bool:
    """Whether the doctor's name for a fault is the planted one's, or says in addition which."""
    if slug == "missing-layer":
        return name == slug or name.startswith(f"{slug}-")
    return name == slug or name in SAME.get(slug, ())


def is_right(question: Question, verdict: str, names: Sequence[str]) -> bool:
    """The rule of each kind of case."""
    match question.kind:
        case "sound":
            return verdict == "agrees"
        case "unknown":
            return verdict == "unknown"
        case "fault":
            return verdict == "faults" and matches(names[0], question.faults[0])
    first, second = question.faults
    found = [tuple(names), tuple(reversed(names))] if len(names) == 2 else []
    return any(matches(a, first) and matches(b, second) for a, b in found)


def examine(question: Question, theirs: Mapping[str, np.ndarray]) -> Row:
    """One row of the table."""
    from jaxclip.doctor import diagnose

    clip, probe = model_and_probe(question.model)
    began = time.monotonic()
    answer = diagnose(probe, theirs, clip)
    names = [fault.name for fault in answer.faults]
    return {
        **dataclasses.asdict(question),
        "verdict": answer.verdict,
        "named": names,
        "explained": round(float(answer.explained), 6),
        "first_stage": answer.first_stage,
        "said": str(answer),
        "right": is_right(question, answer.verdict, names),
        "seconds": round(time.monotonic() - began, 1),
    }


# Recorded arrays ----------------------------------------------------------------------------------


def save_recorded(path: Path, recorded: Mapping[str, tuple[Question, Arrays]]) -> None:
    """One npz without pickles: `about` is JSON, the arrays are named by case number and key."""
    questions = [dataclasses.asdict(question) for question, _ in recorded.values()]
    probes = {name: digest(name) for name in dict.fromkeys(q["model"] for q in questions)}
    about = json.dumps({"cases": questions, "probes": probes})
    arrays = {
        f"{i}.{key}": array
        for i, (_, theirs) in enumerate(recorded.values())
        for key, array in theirs.items()
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, about=np.array(about), **arrays)  # type: ignore[arg-type]


def load_recorded(path: Path) -> dict[str, tuple[Question, Arrays]]:
    """{name: (question, theirs)}, as `save_recorded` wrote them; ValueError for another probe."""
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        for model, expected in about["probes"].items():
            if digest(model) != expected:
                raise ValueError(
                    f"{path.name}: expected outputs for today's probe of {model}, got those for "
                    "another one; record them again with --record"
                )
        found: dict[str, tuple[Question, Arrays]] = {}
        for i, data in enumerate(about["cases"]):
            tuples = {key: tuple(data[key]) for key in ("faults", "keys")}
            question = Question(**{**data, **tuples})
            prefix = f"{i}."
            names = [name for name in file.files if name.startswith(prefix)]
            found[question.name] = question, {n.removeprefix(prefix): file[n] for n in names}
    return found


# The table ----------------------------------------------------------------------------------------


def share(rows: Iterable[Row], kind: str) -> tuple[int, int]:
    """(right, all) of a kind."""
    of_kind = [row["right"] for row in rows if row["kind"] == kind]
    return sum(of_kind), len(of_kind)


def holds(rows: Sequence[Row]) -> bool:
    """Whether every target is met."""
    counts = {kind: share(rows, kind) for kind in TARGETS}
    return all(right >= TARGETS[kind] * n for kind, (right, n) in counts.items())


def _answer(row: Row) -> str:
    if row["verdict"] == "faults":
        return " + ".join(row["named"])
    return str(row["verdict"])


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, by kind."""
    head = ["| model | planted | recorded | answer | explained | right |", "|---" * 6 + "|"]
    lines: list[str] = []
    titles = {"fault": "One fault", "pair": "Two faults", "sound": "Sound implementations"}
    for kind, title in {**titles, "unknown": "Faults outside of the list"}.items():
        right, count = share(rows, kind)
        lines += [f"### {title}: {right} of {count}", "", *head]
        for row in (r for r in rows if r["kind"] == kind):
            planted = row["name"].partition(": ")[2].partition(" [")[0]
            explained = f"{100 * row['explained']:.2f} %" if row["verdict"] == "faults" else ""
            cells = [row["model"], planted, ", ".join(row["keys"]), _answer(row), explained]
            lines.append("| " + " | ".join([*cells, "yes" if row["right"] else "**no**"]) + " |")
        lines.append("")
    return "\n".join(lines)


def totals(rows: Sequence[Row]) -> str:
    """Right answers by kind and size, with the targets."""
    lines = ["| | tiny | ViT-B/32 | all | target |", "|---" * 5 + "|"]
    names = {
        "fault": "one fault, named first",
        "pair": "two faults, both named and no other",
        "sound": "sound, agrees",
        "unknown": "outside of the list, unknown",
    }
    for kind, name in names.items():
        tiny = share((r for r in rows if r["model"] in models.TINY), kind)
        full = share((r for r in rows if r["model"] not in models.TINY), kind)
        whole = share(rows, kind)
        cells = [f"{right} of {count}" for right, count in (tiny, full, whole)]
        percent = f" ({100 * whole[0] / whole[1]:.1f} %)" if whole[1] else ""
        target = f"{100 * TARGETS[kind]:.0f} %" if kind in TARGETS else "none"
        lines.append(f"| {name} | {' | '.join(cells)}{percent} | {target} |")
    return "\n".join(lines)
