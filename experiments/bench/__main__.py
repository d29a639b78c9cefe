"""How fast: jaxclip beside PyTorch, both sides in turn in one run.

Question:  is each thing that people wait for faster here than with the best PyTorch program?
Command:   pip install -e '.[test,parity]' && python -m experiments.bench SUITE [--help]
Result:    rows as JSON lines; with --write also docs/bench.json, and from it the tables of
           docs/performance.md (`python -m experiments.bench tables`).

"speed" is the peer's time over ours, above 1 where jaxclip is faster: the median over pairs of runs
that follow each other, and in brackets the quartiles. On a machine that does other work as well
take one thread (--threads 1): PyTorch's threads wait for the one that was put off.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.common import missing_package
from jaxclip.terminal import complain, run_program

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "bench.json"
SUITES = {
    "inference": "features of pictures and texts",
    "cold": "from the shell to the answer, and a checkpoint to a model",
    "preprocess": "JPEG files to pixels",
    "tokenizer": "captions to tokens",
    "training": "one step of training",
    "pipeline": "does training wait for its pictures",
    "embed": "a folder of pictures to embeddings",
    "growth": "time and memory against batch, resolution and devices",
}


def keep(suite: str, rows: Iterable[dict[str, Any]], record: Path) -> dict[str, Any]:
    """The record with these rows in the place of older ones about the same, on the same machine."""
    from experiments.bench.tables import about
    from jaxclip.checkpoint import replacing

    kept = json.loads(record.read_text()) if record.is_file() else {}
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in [*kept.get(suite, []), *rows]:
        of = (about(row), row["where"]["machine"])
        merged.pop(of, None)  # so that the newest row is the last
        merged[of] = row
    kept[suite] = list(merged.values())
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def parser() -> argparse.ArgumentParser:
    """The command line; every suite's module adds its own flags."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = made.add_subparsers(dest="suite", required=True)
    for suite, what in SUITES.items():
        flags = suites.add_parser(suite, help=what)
        importlib.import_module(f"experiments.bench.{suite}").add_flags(flags)
        flags.add_argument("--pairs", type=int, default=7, help="runs of each side")
        flags.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides")
        flags.add_argument("--write", action="store_true", help="keep the rows, write the tables")
    suites.add_parser("tables", help="write the tables from the record; nothing is measured")
    return made


def main(arguments: Sequence[str]) -> int:
    """Measure one suite, print its rows; the exit code."""
    # Before jax starts: its number of threads on a CPU.
    threads = [arguments[i + 1] for i, x in enumerate(arguments[:-1]) if x == "--threads"]
    if threads:
        os.environ["NPROC"] = threads[-1]
    options = parser().parse_args(arguments)
    from experiments.bench import pairs as bench_pairs
    from experiments.bench import tables as bench_tables

    if options.suite != "tables":
        if options.pairs < 1 or options.threads < 1:
            complain("bench", "--pairs and --threads must be 1 or more")
            return 2
        suite = importlib.import_module(f"experiments.bench.{options.suite}")
        where = bench_pairs.where()
        for row in suite.rows(options):
            row["where"] = where
            print(json.dumps(row), flush=True)
            if options.write:
                keep(options.suite, [row], RECORD)
    if options.suite == "tables" or options.write:
        bench_tables.write(json.loads(RECORD.read_text()), ROOT)
    return 0


def _work() -> int:
    try:
        return main(sys.argv[1:])
    except ImportError as error:
        raise missing_package(error) from error


if __name__ == "__main__":
    raise SystemExit(run_program("bench", _work))
