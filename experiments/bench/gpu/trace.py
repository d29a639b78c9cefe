"""Which kernels a profile of jax holds and what they take: its *.trace.json.gz, read with json.

On a GPU a kernel is an event on one of the device's streams; the profiler derives other lines from
them, which would count each twice. On a CPU it is an event that names the operation of the program.
"""

import collections
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TOP = 25
Event = tuple[str, float]  # name, microseconds
# The kinds of kernels, by the names that XLA, cuBLAS, cuDNN and Triton give them; the first counts.
KINDS: tuple[tuple[str, str], ...] = (
    ("graphs", r"graph"),  # a profiler that sees CUDA graphs as a whole hides their kernels
    # cuDNN's helpers compute_dot_do_o and convert_dq_to_16bits as well
    ("attention", r"sdpa|fmha|flash|attention|mha|dot_do_o|convert_dq"),
    ("convolutions", r"conv(?!ert)|fprop|dgrad|wgrad|implicit"),
    ("products", r"gemm|nvjet|cutlass|cublas|xmma|splitk|gemv|\bdot|_dot|matmul"),
    ("copies", r"memcpy|memset|copy|transpose"),
    ("fusions", r"fusion|wrapped|reduce|broadcast|concatenate|scatter|gather"),
)


def read(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The events of the one profile below a folder; ValueError where there is none."""
    files = sorted(folder.rglob("*.trace.json.gz"))
    if not files:
        raise ValueError(f"{folder}: expected a *.trace.json.gz of jax.profiler, got none")
    with gzip.open(files[-1], "rt") as file:
        return json.load(file)["traceEvents"]


def kernels(events: Sequence[Mapping[str, Any]]) -> list[Event]:
    """Every run of a kernel in a profile; ValueError where it holds none."""
    named = [event for event in events if event.get("ph") == "M"]
    devices = {
        event["pid"]
        for event in named
        if event["name"] == "process_name" and event["args"]["name"].startswith("/device:")
    }
    streams = {
        (event["pid"], event["tid"])
        for event in named
        if event["name"] == "thread_name"
        and event["pid"] in devices
        and event["args"]["name"].startswith("Stream")
    }

    def counts(event: Mapping[str, Any]) -> bool:
        if event.get("ph") != "X":
            return False
        if streams:
            return (event["pid"], event["tid"]) in streams
        return "hlo_op" in event.get("args", {})

    found = [(event["name"], float(event["dur"])) for event in events if counts(event)]
    if not found:
        raise ValueError("expected kernels on the streams of a device, got none in this profile")
    return found


def kind(name: str) -> str:
    """The kind of a kernel, from its name."""
    lower = name.lower()
    return next((each for each, pattern in KINDS if re.search(pattern, lower)), "other")


def short(name: str) -> str:
    """A kernel's name without numbers that only tell copies apart, template and arguments."""
    return re.sub(r"([._]\d+)+$", "", re.split(r"[<(]", name.removeprefix("void "))[0])[:80]


def summary(events: Iterable[Event], steps: int) -> dict[str, Any]:
    """{"ms": of a step's kernels, "kinds": {kind: ms}, "top": [[name, kind, ms, runs], ...]}."""
    kinds: dict[str, float] = collections.defaultdict(float)
    names: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for name, microseconds in events:
        kinds[kind(name)] += microseconds / 1e3 / steps
        total = names[short(name)]
        total[0] += microseconds / 1e3 / steps
        total[1] += 1 / steps
    first = sorted(names.items(), key=lambda item: -item[1][0])[:TOP]
    return {
        "ms": round(sum(kinds.values()), 3),
        "kinds": {each: round(ms, 3) for each, ms in sorted(kinds.items(), key=lambda i: -i[1])},
        "top": [[name, kind(name), round(ms, 3), round(runs, 1)] for name, (ms, runs) in first],
    }
