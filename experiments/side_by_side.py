"""How long people wait: a ViT-B/32 loaded, and a cold `classify`, beside the official package.

Question:  is jaxclip at least as fast as the official package from the file to the answer?
Command:   pip install -e '.[parity]' && python -m experiments.side_by_side [--pairs N] [--files F]
Result:    docs/timings.md holds what was measured, with the machine and the versions.

Every program runs in a process of its own, in turn, so that whatever else the machine does falls
upon all of them alike; random weights in the official format stand in for the official file.
"load" is from the file to the model, without imports; "classify" is all of a process.
Two clocks: the one on the wall, and the processor's, which other work on the machine hardly moves.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = str(ROOT / "examples" / "rocket.png")
LABELS = ("a diagram", "a dog", "a rocket")
LOAD = """
import sys, time, jax
from jaxclip import load
jax.devices()
began = time.monotonic(), time.process_time()
model, preprocess = load(sys.argv[1])
jax.block_until_ready(jax.tree.leaves(model.module))
print(time.monotonic() - began[0], time.process_time() - began[1])
"""
Seconds = tuple[float, float]  # on the wall, of the processor


def run(*arguments: str, cache: str = "") -> tuple[str, Seconds]:
    """(what it printed, seconds from start to end) of one program; OSError if it fails."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAXCLIP_CACHE": cache}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise OSError(f"{arguments}: {done.stderr[-2000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, (wall, processor)


def measure(files: Path, pairs: int) -> dict[str, list[Seconds]]:
    """Seconds of each program, one after the other, `pairs` times; `files` is made if need be."""
    state_dict, traced = str(files / "state-dict.pt"), str(files / "traced.pt")
    if not Path(traced).is_file():
        run("-m", "tests.official_run", "make", str(files))
    converted = str(files / "ViT-B-32.safetensors")
    run("-m", "jaxclip", "convert", traced, converted, "--force")
    ours = ("-m", "jaxclip", "classify", PICTURE, "--labels", *LABELS, "--model", converted)
    official = ("-m", "tests.official_run", "classify", traced, PICTURE, *LABELS)
    seconds: dict[str, list[Seconds]] = {}

    def note(name: str, wall: float, processor: float) -> None:
        seconds.setdefault(name, []).append((wall, processor))
        print(f"{name}: {wall:.2f} s, {processor:.2f} s of processor", file=sys.stderr, flush=True)

    def note_load(name: str, *arguments: str) -> None:
        wall, processor = run(*arguments)[0].split()
        note(name, float(wall), float(processor))

    with tempfile.TemporaryDirectory() as scratch:
        warm = f"{scratch}/warm"
        run(*ours, cache=warm)
        for pair in range(pairs):
            note_load("load, official", "-m", "tests.official_run", "load", state_dict)
            note_load("load, jaxclip", "-c", LOAD, state_dict)
            note_load("load of the archive, jaxclip", "-c", LOAD, traced)
            note("classify, official", *run(*official)[1])
            note("classify, jaxclip, programs kept", *run(*ours, cache=warm)[1])
            note("classify, jaxclip, first time", *run(*ours, cache=f"{scratch}/{pair}")[1])
    return seconds


def main(files: Path, pairs: int) -> None:
    """Print medians, and the ratio to the official program run in the same turn."""
    files.mkdir(parents=True, exist_ok=True)
    seconds = measure(files, pairs)
    for name, values in seconds.items():
        judge = seconds["load, official" if name.startswith("load") else "classify, official"]
        row: dict[str, object] = {"what": name}
        for clock, kind in enumerate(("wall", "processor")):
            ratios = [x[clock] / y[clock] for x, y in zip(values, judge, strict=True)]
            row[f"{kind} s, median"] = round(statistics.median(x[clock] for x in values), 2)
            row[f"{kind} ratio, median"] = round(statistics.median(ratios), 2)
            row[f"{kind} ratios"] = [round(ratio, 2) for ratio in ratios]
        print(json.dumps(row))
    print(json.dumps({name: version(name) for name in ("jax", "flax", "torch", "clip-anytorch")}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--files", type=Path, help="a folder for the models, kept (1.3 GB)")
    arguments = parser.parse_args()
    if arguments.files:
        main(arguments.files, arguments.pairs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder), arguments.pairs)
