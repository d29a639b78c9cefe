"""Faults planted in PyTorch code: does `jaxclip doctor diagnose` name them?

Question:  given only what another program computed, does the doctor name the fault in it?
Command:   pip install -e '.[test,parity]' && python -m experiments.planted_faults [--tiny | --full]
           --recorded takes the outputs kept in tests/golden and needs no torch.
Result:    docs/planted_faults.json, the table of docs/doctor.md; exit code 1 below a target.
           Cases that are done are kept: --again asks about them again.

Targets: one fault named first in 95 % of programs, two faults both named in 80 %, and no sound
implementation called faulty.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.lib import pages
from experiments.lib.common import missing_package
from experiments.proofs.planted_faults import models
from experiments.proofs.planted_faults.exam import (
    Arrays,
    Question,
    examine,
    holds,
    load_recorded,
    model_and_probe,
    save_recorded,
    table,
    totals,
)
from jaxclip.checkpoint import replacing
from jaxclip.cli.usage import parse
from jaxclip.evaluation.results import name_processor
from jaxclip.terminal import run_program

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "doctor.md"
RECORD = ROOT / "docs" / "planted_faults.json"
GOLDEN = ROOT / "tests" / "golden" / "planted_faults.npz"
COMMAND = "python -m experiments.planted_faults"
PACKAGES = ("jax", "numpy", "pillow", "torch", "clip-anytorch", "open-clip-torch", "transformers")


Outputs = dict[str, tuple[Question, Arrays]]


@dataclasses.dataclass(frozen=True)
class Flags:
    tiny: bool = False
    """the tiny models alone"""
    full: bool = False
    """ViT-B/32 alone"""
    recorded: bool = False
    """the outputs kept in tests/golden, which need no torch"""
    record: bool = False
    """run the programs of the tiny models, keep their outputs in tests/golden, ask nothing"""
    only: str = ""
    """cases whose name has this in it; writes no table"""
    again: bool = False
    """ask about cases that are done again"""


def versions() -> str:
    """The versions that the numbers depend on."""

    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} not installed"

    return ", ".join(map(of, PACKAGES))


def ask_programs(flags: Flags) -> Iterator[tuple[Question, Any]]:
    """Each case with a function that runs its program and returns what its user recorded."""
    from experiments.proofs.planted_faults.peers.combinations import cases
    from experiments.proofs.planted_faults.peers.record import record

    for case in cases():
        faults = () if case.kind == "unknown" else tuple(p.slug for p in case.planted)
        question = Question(case.name, case.model, case.kind, faults, case.keys)

        def run(case: Any = case) -> Arrays:
            _, probe = model_and_probe(case.model)
            return record(case.program(), probe, case.keys, case.threads)

        yield question, run


def ask_recorded(flags: Flags) -> Iterator[tuple[Question, Any]]:
    """The same from the outputs that are kept."""
    for question, theirs in load_recorded(GOLDEN).values():
        yield question, lambda theirs=theirs: theirs


def is_wanted(flags: Flags, question: Question) -> bool:
    tiny = question.model in models.TINY
    if flags.record and not tiny:
        return False
    size = (flags.tiny and tiny) or (flags.full and not tiny) or flags.tiny == flags.full
    return size and flags.only in question.name


def write_page(rows: dict[str, Any]) -> None:
    """The totals and the table into docs/doctor.md."""
    ordered = list(rows.values())
    where = f"{name_processor()}; {versions()}"
    pages.write_table(
        PAGE, COMMAND, f"{totals(ordered)}\n\nMeasured on {where}.\n\n{table(ordered)}"
    )


def keep(flags: Flags, outputs: Outputs) -> None:
    """The outputs of the tiny models for the tests; with --only, beside those of other cases."""
    from experiments.proofs.planted_faults.peers.combinations import cases

    earlier = load_recorded(GOLDEN) if flags.only else {}
    both = {**earlier, **outputs}
    names = [case.name for case in cases() if case.name in both]
    save_recorded(GOLDEN, {name: both[name] for name in names})


def main(flags: Flags) -> int:
    """0 where every target is met, 1 where one is missed; writes the rows and the table."""
    rows = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    asked: list[str] = []
    outputs: Outputs = {}
    for question, run in (ask_recorded if flags.recorded else ask_programs)(flags):
        if not is_wanted(flags, question):
            continue
        if flags.record:
            outputs[question.name] = question, run()
            continue
        asked.append(question.name)
        if flags.again or question.name not in rows:
            rows[question.name] = row = examine(question, run())
            mark = "right" if row["right"] else "WRONG"
            print(f"{mark}  {question.name}\n       {row['said']}", flush=True)
            if not flags.only:
                with replacing(RECORD) as temporary:
                    temporary.write_text(json.dumps(rows, indent=1) + "\n")
    if flags.record:
        keep(flags, outputs)
        return 0
    found = [rows[name] for name in asked]
    print(totals(found))
    if not flags.only:
        write_page(rows)
    return 0 if holds(found) else 1


def run(flags: Flags) -> int:
    try:
        return main(flags)
    except ImportError as error:
        raise missing_package(error) from error


if __name__ == "__main__":
    given = parse(Flags, sys.argv[1:], "planted_faults", __doc__)
    raise SystemExit(run_program("planted_faults", lambda: run(given)))
