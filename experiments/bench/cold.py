"""Suite `cold`: from the shell to the answer, memory, and a checkpoint to a model in memory.

Every run is a process of its own. `classify` is all of it, `load` from the file to the model
without the imports: officially `torch.jit.load` and `build_model`, float32 as on a CPU. Before each
of them memory is touched and given back: in a virtual machine the first touch of what was not used
for minutes may take a second, which would be billed to whoever comes first.
"""

import dataclasses
import functools
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from experiments.bench.pairs import Program, Seconds, SuiteFlags, compared, program, say
from experiments.bench.tables import PEAK

ROOT = Path(__file__).parents[2]
PICTURE = str(ROOT / "examples" / "rocket.png")
LABELS = ("a diagram", "a dog", "a rocket")
LOAD = """
import sys, time, jax
from jaxclip import load
jax.devices()
began = time.monotonic(), time.process_time()
model, preprocess = load(sys.argv[1], arrange=True)
jax.block_until_ready(jax.tree.leaves(model))
print(time.monotonic() - began[0], time.process_time() - began[1])
"""
TOUCHED = 1_700_000_000  # bytes, more than any of the programs takes
Runs = dict[str, Callable[[], Program]]


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    files: Path | None = None
    """a folder for the models, kept (1.3 GB)"""
    only: Literal["classify", "load"] | None = None
    """one of the two questions"""


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row a file and state of the compilation cache, then one a way to load."""
    with tempfile.TemporaryDirectory() as scratch:
        files = flags.files or Path(scratch)
        files.mkdir(parents=True, exist_ok=True)
        traced, state_dict = str(files / "traced.pt"), str(files / "state-dict.pt")
        if not Path(traced).is_file():
            say("making a ViT-B/32 of random weights in the official format")
            _run(["-m", "experiments.lib.peers.official_run", "make", str(files)])
        ours = str(files / "ViT-B-32.safetensors")
        _run(["-m", "jaxclip", "convert", traced, ours, "--force"])
        if flags.only != "load":
            yield from _classify({"file": ours, ".pt": traced}, Path(scratch), flags.pairs)
        if flags.only != "classify":
            yield from _load({"file": ours, ".pt": traced}, state_dict, flags.pairs)


def _run(arguments: list[str], cache: str = "") -> Program:
    """With another folder as cache for each: nothing there was compiled before."""
    program(["-c", f"b'x' * {TOUCHED}"], str(ROOT), dict(os.environ))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAXCLIP_CACHE": cache}
    return program(arguments, str(ROOT), environment)


def _run_next(command: list[str], caches: Iterator[str]) -> Program:
    return _run(command, next(caches))


def _classify(files: dict[str, str], scratch: Path, pairs: int) -> Iterator[dict[str, Any]]:
    official = [
        "-m",
        "experiments.lib.peers.official_run",
        "classify",
        files[".pt"],
        PICTURE,
        *LABELS,
    ]
    for name, path in files.items():
        command = ["-m", "jaxclip", "classify", PICTURE, "--labels", *LABELS, "--model", path]
        warm = str(scratch / "warm")
        _run(command, warm)
        fresh = (str(scratch / f"{name}-{turn}") for turn in itertools.count())
        for state, caches in (("kept", itertools.repeat(warm)), ("none", fresh)):
            ours = functools.partial(_run_next, command, caches)
            what = {"what": "classify", "from": name, "compiled programs": state}
            yield _compare(what, {"jaxclip": ours, "official": lambda: _run(official)}, pairs)


def _load(files: dict[str, str], state_dict: str, pairs: int) -> Iterator[dict[str, Any]]:
    def inside(arguments: list[str]) -> Program:
        done = _run(arguments)
        wall, cpu = map(float, done.printed.split()[-2:])
        return done._replace(wall=wall, cpu=cpu)

    for name, path in {**files, "state dict": state_dict}.items():
        kind = "load" if name == "state dict" else "load-archive"
        file = state_dict if name == "state dict" else files[".pt"]
        official = ["-m", "experiments.lib.peers.official_run", kind, file]
        sides: Runs = {
            "jaxclip": lambda path=path: inside(["-c", LOAD, path]),  # type: ignore[misc]
            "official": lambda official=official: inside(official),  # type: ignore[misc]
        }
        yield _compare({"what": "load", "from": name}, sides, pairs)


def _compare(what: dict[str, Any], sides: Runs, pairs: int) -> dict[str, Any]:
    """A row with the peak memory of both beside the times."""
    done: dict[str, list[Program]] = {name: [] for name in sides}
    for turn in range(pairs):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            done[name].append(sides[name]())
    say(", ".join(f"{v}" for v in what.values()))
    seconds: dict[str, list[Seconds]] = {n: [p.seconds for p in each] for n, each in done.items()}
    peak = {name: statistics.median(p.peak for p in each) for name, each in done.items()}
    row = compared(what, seconds)
    row["measured"] = {f"peak MiB, {name}": round(value) for name, value in peak.items()}
    row["measured"][PEAK] = round(peak["jaxclip"] / peak["official"], 3)
    return row
