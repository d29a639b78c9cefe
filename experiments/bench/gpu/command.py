"""Everything that a GPU has to show, in one command: what is measured first matters most.

Question:  are the answers right on this card, how fast is jaxclip beside open_clip, which attention
           is the fastest at which length, and how large a batch fits?
Command:   python -m experiments.bench gpu --minutes 8 [--peer-python PYTHON] [--parts ...]
Result:    docs/gpu.json, complete after each row. Cut it off at any moment: the same command goes
           on from there, and measures nothing twice that card, versions and code have in common.

In this order: the golden ladder (float32, highest); the training steps of ViT-L/14 and ViT-B/32 as
shipped, each beside open_clip compiled; the attention table; gradients beside the CPU's; the steps
of RN50, ViT-B/16 and ViT-L/14@336px; the losses; inference; the largest batch by policy; the other
policies. The first 9 minutes should reach the end of the attention table on an H100, and 55 the end
of all. Each row runs in a process of its own. docs/gpu.md says what to install.
"""

import dataclasses
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.bench.gpu import child, page, record
from experiments.bench.gpu.record import Origin, Record
from experiments.bench.gpu.rows import PARTS, REAL, TINY, Row, golden, gradients, plan
from jaxclip.cli.shared import stderr
from jaxclip.cli.usage import USAGE, parse
from jaxclip.files import require_writable
from jaxclip.terminal import FAILED, complain

OUT = child.ROOT / "docs" / "gpu.json"
TINY_OUT = child.ROOT / "runs" / "gpu-tiny.json"
OURS = "experiments.bench.gpu.measure"
PEER = "experiments.bench.gpu.peer"
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13")
PACKAGES += ("nvidia-cudnn-cu12", "flax", "optax")
PEER_PACKAGES = ("torch", "open_clip_torch")
START, PATIENCE, SLACK = 120.0, 180.0, 4.0  # seconds a probe, and at least a row, may take; times


@dataclasses.dataclass(frozen=True)
class Flags:
    minutes: float = 8.0
    """to stay within; what is left out is named at the end"""
    parts: tuple[Literal[*PARTS], ...] = PARTS
    """to measure, in the order above; "steps" has the peer and a summary of the kernels"""
    peer_python: Path | None = None
    """the Python that has torch and open_clip, where it is another than this one"""
    out: Path | None = None
    """the record to go on with: docs/gpu.json, with --tiny runs/gpu-tiny.json"""
    write: bool = False
    """write the tables of docs/gpu.md from docs/gpu.json as well"""
    tiny: bool = False
    """every row at a tiny size, on whatever device there is: does the command work?"""


def python_of_peer(flags: Flags) -> str:
    """The Python that measures the peer."""
    return str(flags.peer_python or sys.executable)


def peer_versions(python: str, environment: dict[str, str]) -> dict[str, str]:
    """The versions of the peer's packages in its own Python."""
    rows = [("versions", {"packages": PEER_PACKAGES})]
    (found,) = child.run(python, PEER, rows, environment, START)
    if "measured" not in found:
        raise ValueError(f"--peer-python: expected a Python, got {python}; {found['failed']}")
    return dict(found["measured"])


def driver() -> dict[str, str]:
    """The version of NVIDIA's driver, where there is one."""
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text()) if file.is_file() else None
    return {"driver": found[0]} if found else {}


def environment(*, tiny: bool) -> dict[str, str]:
    """The environment of a child: one card, nearly all of its memory, nothing compiled before."""
    wanted = {
        "CUDA_VISIBLE_DEVICES": "0",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if tiny:
        wanted["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    fresh = {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return {**wanted, **os.environ, **fresh}


def find_card(environment: dict[str, str], *, tiny: bool) -> str:
    """The name of the card; ValueError where jax finds none, unless any device will do."""
    (found,) = child.run(sys.executable, OURS, [("device", {})], environment, START)
    if "measured" not in found:
        raise ValueError(f"jax finds no device: {found.get('failed', found.get('skipped'))}")
    device = found["measured"]
    if device["platform"] != "gpu" and not tiny:
        raise ValueError(
            f"expected an NVIDIA GPU, got {device['platform']}; pip install 'jax[cuda13]', or try "
            "the command with --tiny"
        )
    return str(device["card"])


def origins(card: str, peer: dict[str, str]) -> dict[str, Origin]:
    """What the numbers of each part depend on; `peer` has the versions of the peer's packages."""
    flags = {name: os.environ[name] for name in ("XLA_FLAGS",) if os.environ.get(name)}
    packages = child.versions(PACKAGES) | driver() | flags
    ours = Origin(card, packages, record.digest(*record.OURS))
    theirs = Origin(card, peer | driver(), record.digest(*record.PEER))
    parts = ("golden", "gradients", "step", "kernels", "attention", "loss", "inference")
    return {**dict.fromkeys(parts, ours), "peer": theirs}


class Session:
    """One call of the command: the record, the clock, and what it left out."""

    def __init__(self, flags: Flags, environment: dict[str, str], kept: Record, began: float):
        self.kept, self.environment, self.began = kept, environment, began
        self.minutes, self.peer_python = flags.minutes, python_of_peer(flags)
        self.left_out: list[Row] = []

    def seconds_left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.began)

    def measure(self, rows: Sequence[Row]) -> None:
        """Measure and keep those rows of one process that are not finished, if there is time."""
        rows = [row for row in rows if not self.kept.finished(row)]
        needed = sum(row.seconds for row in rows)
        if not rows or needed > self.seconds_left():
            self.left_out += rows
            return
        python, module = (
            (self.peer_python, PEER) if rows[0].part == "peer" else (sys.executable, OURS)
        )
        limit = min(self.seconds_left(), max(PATIENCE, SLACK * needed))
        named = [(row.part, row.settings) for row in rows]
        before = time.monotonic()
        with stderr.status(f"{rows[0]}" + (f" and {len(rows) - 1} more" if rows[1:] else "")):
            outcomes = child.run(python, module, named, self.environment, limit)
            for row, outcome in zip(rows, outcomes, strict=True):
                now = time.monotonic()
                self._keep(row, outcome, now - before)
                before = now

    def _keep(self, row: Row, outcome: child.Outcome, seconds: float) -> None:
        if child.LATE in outcome:
            if self.seconds_left() <= 0 or seconds < 1:  # not this row's fault
                self.left_out.append(row)
                return
            outcome = {"failed": f"took more than {seconds:.0f} s"}
        self.kept.keep(row, outcome, seconds)
        passed = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.began))
        stderr.print(f"{passed}  {row}: {page.words(outcome)}", soft_wrap=True)


def measure(flags: Flags) -> int:
    """Measure what the record lacks, within the minutes; the exit code."""
    if flags.write and flags.tiny:
        complain("bench gpu", "expected --write or --tiny, got both")
        return USAGE
    began = time.monotonic()
    out = flags.out or (TINY_OUT if flags.tiny else OUT)
    require_writable(out)
    around = environment(tiny=flags.tiny)
    card = find_card(around, tiny=flags.tiny)
    kept = Record(out, origins(card, peer_versions(python_of_peer(flags), around)))
    session = Session(flags, around, kept, began)
    stderr.print(f"{card}: {flags.minutes:g} minutes; every row goes to {out}", soft_wrap=True)
    for rows in plan(TINY if flags.tiny else REAL, flags.parts, kept.outcome):
        session.measure(rows)
    if flags.write:
        page.write(record.read(out), child.ROOT)
    print(page.attention_table([row for row in kept.rows if row["card"] == card]))
    if session.left_out:
        for named in dict.fromkeys(map(str, session.left_out)):
            stderr.print(f"left out, no time: {named}", soft_wrap=True)
        stderr.print("The same command goes on from here.")
    return verdict(kept, tiny=flags.tiny)


def verdict(kept: Record, *, tiny: bool) -> int:
    """The exit code: 1 where an answer is wrong, and in a tiny run where any row has failed."""
    right = (*golden(), *gradients(REAL))
    wrong = [str(row) for row in right if kept.outcome(row) == "failed"]
    if tiny:
        wrong = [f"{row['part']}: {row['failed']}" for row in kept.rows if "failed" in row]
    if wrong:
        expected = "every row measured" if tiny else "right answers on this card"
        complain("bench gpu", f"expected {expected}, got failed: {'; '.join(wrong)}")
    return FAILED if wrong else 0


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code."""
    flags = parse(Flags, arguments, "bench gpu", __doc__)
    if not 0 < flags.minutes < float("inf"):
        complain("bench gpu", f"--minutes: expected a number above 0, got {flags.minutes}")
        return USAGE
    return measure(flags)
