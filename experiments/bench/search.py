"""Suite `search`: a folder's index: exact search of many vectors, and the commands from the shell.

The vectors are random, of unit length in float16, in one memory-mapped file; the answer is compared
with brute force in NumPy. The files are small random drawings in PNG, so what counts is everything
but the decoding of large pictures. Every command is a process of its own, by the embedded model.
Nothing has a peer: a row holds medians, and the quartiles in brackets.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.bench.cold import ROOT
from experiments.bench.pairs import (
    Program,
    Seconds,
    SuiteFlags,
    peak_memory,
    program,
    say,
    spread,
    timed,
)
from jaxclip.cli.usage import Positive
from jaxclip.search.catalogue import Block
from jaxclip.search.query import best

TOP = 20
PART = 50_000  # vectors that are made or multiplied at once
SETTLED = 3  # seconds after which the index trusts the time of a file


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    vectors: Positive = 1_000_000
    width: Positive = 512
    files: Positive = 10_000


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row of the search in memory, then one a command."""
    with tempfile.TemporaryDirectory() as scratch:
        yield _search(Path(scratch) / "vectors.f16", flags)
        yield from _commands(Path(scratch), flags)


def make_vectors(path: Path, count: int, width: int) -> np.ndarray:
    """Random directions, float16 [count, width], in a file that is mapped into memory."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, count, PART):
            made = rng.normal(size=(min(PART, count - start), width)).astype(np.float32)
            made /= np.linalg.norm(made, axis=1, keepdims=True)
            file.write(made.astype(np.float16).data)
    return np.memmap(path, np.float16, "r", shape=(count, width))


def brute_force(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The cosines of the nearest TOP, best first, by NumPy in float32."""
    parts = [vectors[i : i + PART].astype(np.float32) @ query for i in range(0, len(vectors), PART)]
    return np.sort(np.concatenate(parts))[::-1][:TOP]


def _search(path: Path, flags: Flags) -> dict[str, Any]:
    vectors = make_vectors(path, flags.vectors, flags.width)
    blocks = [Block(0, flags.vectors, 0)]
    query = vectors[flags.vectors // 2].astype(np.float32)
    say(f"{flags.vectors:,} vectors are made")
    first = timed(lambda: best(vectors, blocks, query, TOP))
    runs = [timed(lambda: best(vectors, blocks, query, TOP)) for _ in range(flags.pairs)]
    found = np.sort(best(vectors, blocks, query, TOP)[1])[::-1][:TOP]
    error = float(np.abs(found - brute_force(vectors, query)).max())
    if error > 1e-5:
        raise ValueError(f"expected the cosines of brute force, got others, by {error:.1e}")
    what = {"what": f"nearest {TOP}", "vectors": flags.vectors, "width": flags.width}
    more = {"first, wall s": first.wall, "largest error": error, "peak MiB": round(peak_memory())}
    return what | {"runs": flags.pairs, "measured": _medians(runs) | more}


def _medians(runs: Sequence[Seconds]) -> dict[str, Any]:
    found = {}
    for clock in Seconds._fields:
        x = spread([getattr(run, clock) for run in runs])
        found[f"{clock} s"] = f"{x['median']:.2f} ({x['low']:.2f} to {x['high']:.2f})"
    return found


def make_drawings(folder: Path, count: int) -> None:
    """Random drawings of 12 x 9 pixels, in a hundred folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 100:02d}" / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(9, 12, 3), dtype=np.uint8)).save(path)


def _commands(scratch: Path, flags: Flags) -> Iterator[dict[str, Any]]:
    folder = scratch / "drawings"
    make_drawings(folder, flags.files)
    say(f"{flags.files:,} drawings are made")
    time.sleep(SETTLED)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAXCLIP_CACHE": str(scratch / "cache")}

    def run(*arguments: str) -> Program:
        return program(["-m", "jaxclip", *arguments], str(ROOT), environment)

    runs = {
        "index, the first": [run("index", str(folder))],
        "embed": [run("embed", str(folder), "--out", str(scratch / "e.npz"))],
    }
    run("search", str(folder), "a rocket")  # its programs are compiled and kept
    for name, command in (
        ("index, nothing new", ["index", str(folder)]),
        ("search", ["search", str(folder), "a rocket"]),
    ):
        runs[name] = [run(*command) for _ in range(flags.pairs)]
    for name, done in runs.items():
        measured = _medians([each.seconds for each in done])
        measured["peak MiB"] = round(max(each.peak for each in done))
        yield {"what": name, "files": flags.files, "runs": len(done), "measured": measured}
