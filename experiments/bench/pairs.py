"""Two sides in turn: clocks, pairs, their ratios, and what a row of the record says.

Whatever else a machine does falls upon neighbours in time alike, so what counts is the ratio of two
runs that follow each other; each pair gives one, the median is the result and the quartiles its
spread. Two clocks: the wall's, and the seconds of the processor, which other work hardly moves.
"""

import dataclasses
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from jaxclip.cli.usage import Positive
from jaxclip.evaluation.results import name_processor

PACKAGES = ("jax", "flax", "torch", "open_clip_torch", "transformers", "clip-anytorch", "Pillow")
PAUSE = 0.01  # seconds between two runs: the threads of the one before still spin for a while
Run = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class SuiteFlags:
    """The flags of every suite."""

    pairs: Positive = 7
    """runs of each side"""
    threads: Positive = os.cpu_count() or 1
    """of both sides"""
    write: bool = False
    """keep the rows, write the tables"""


class Seconds(NamedTuple):
    """What one run took."""

    wall: float
    cpu: float


def timed(run: Run) -> Seconds:
    """One run in this process."""
    wall, cpu = time.monotonic(), time.process_time()
    run()
    return Seconds(time.monotonic() - wall, time.process_time() - cpu)


def in_turn(
    sides: Mapping[str, Run], pairs: int, clock: Callable[[Run], Seconds] = timed
) -> dict[str, list[Seconds]]:
    """{side: seconds of each turn}; every other turn runs the sides in the opposite order."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in sides}
    for turn in range(pairs):
        names = list(sides)[:: -1 if turn % 2 else 1]
        for name in names:
            time.sleep(PAUSE)
            seconds[name].append(clock(sides[name]))
    return seconds


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median and quartiles (of fewer than four values: the ends)."""
    ends = statistics.quantiles(ratios, n=4) if len(ratios) > 3 else sorted(ratios)
    found = {"median": statistics.median(ratios), "low": ends[0], "high": ends[-1]}
    return {name: round(value, 3) for name, value in found.items()}


def compared(what: Mapping[str, Any], seconds: Mapping[str, Sequence[Seconds]]) -> dict[str, Any]:
    """A row: seconds of each side (medians), and how many times faster the first one is.

    Beside every peer, and beside the best of them, which is the one of the least median.
    """
    ours, *peers = seconds
    row: dict[str, Any] = {**what, "pairs": len(seconds[ours])}
    for clock in Seconds._fields:
        taken = {name: [getattr(s, clock) for s in each] for name, each in seconds.items()}
        medians = {name: statistics.median(each) for name, each in taken.items()}
        row[f"{clock} s"] = {name: round(value, 4) for name, value in medians.items()}
        row[f"{clock} ratio"] = {
            peer: spread([b / a for a, b in zip(taken[ours], taken[peer], strict=True)])
            for peer in peers
        }
        row[f"{clock} best peer"] = min(peers, key=medians.__getitem__)
    return row


def where() -> dict[str, str]:
    """Date, machine and versions: what a number depends on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    python = f"Python {sys.version.split()[0]}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "machine": name_processor(), "versions": ", ".join([python, *found])}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Program(NamedTuple):
    """What a whole process took and printed."""

    wall: float
    cpu: float
    peak: float  # MiB of memory
    printed: str

    @property
    def seconds(self) -> Seconds:
        return Seconds(self.wall, self.cpu)


# A process of its own between: ru_maxrss of children is that of the largest one so far.
_MEASURE = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
wall = time.monotonic() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024,
                  done.stdout, done.stderr[-2000:]]))
"""


def program(arguments: Sequence[str], cwd: str, environment: Mapping[str, str]) -> Program:
    """Run `python ARGUMENTS` to its end; OSError with the end of its complaint if it fails."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=dict(environment), capture_output=True, text=True, check=True
    )
    code, wall, cpu, peak, printed, complaint = json.loads(done.stdout)
    if code:
        raise OSError(f"{' '.join(arguments)[:200]}: {complaint}")
    return Program(wall, cpu, peak, printed)


def peak_memory() -> float:
    """MiB that this process has had at once so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
