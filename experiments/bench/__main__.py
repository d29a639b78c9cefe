"""How fast: jaxclip beside PyTorch, both sides in turn in one run.

Question:  is each thing that people wait for faster here than with the best PyTorch program?
Command:   pip install -e '.[test,parity]' && python -m experiments.bench SUITE [--help]
Result:    rows as JSON lines; with --write also docs/bench.json, and from it the tables of
           docs/performance.md (`python -m experiments.bench tables`).

"speed" is the peer's time over ours, above 1 where jaxclip is faster: the median over pairs of runs
that follow each other, and in brackets the quartiles. On a machine that does other work as well
take one thread (--threads 1): PyTorch's threads wait for the one that was put off.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.common import missing_package
from jaxclip.cli.usage import USAGE, parse
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
    "search": "the index of a folder: search, and its commands from the shell",
    "growth": "time and memory against batch, resolution and devices",
    "gpu": "everything that a GPU has to show; its record is docs/gpu.json",
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


def measure(suite: str, arguments: Sequence[str]) -> None:
    """Print the rows of one suite, and keep them where --write says so."""
    module = importlib.import_module(f"experiments.bench.{suite}")
    flags = parse(module.Flags, arguments, f"bench {suite}", module.__doc__)
    os.environ["NPROC"] = str(flags.threads)  # before jax starts: its threads on a CPU
    from experiments.bench import pairs

    where = pairs.where()
    for row in module.rows(flags):
        row["where"] = where
        print(json.dumps(row), flush=True)
        if flags.write:
            keep(suite, [row], RECORD)
    if flags.write:
        write_tables()


def write_tables() -> None:
    """Write the tables from the record; nothing is measured."""
    from experiments.bench import tables
    from experiments.bench.gpu import command as gpu_command
    from experiments.bench.gpu import page as gpu_page
    from experiments.bench.gpu import record as gpu_record

    tables.write(json.loads(RECORD.read_text()), ROOT)
    gpu_page.write(gpu_record.read(gpu_command.OUT), ROOT)


def main(arguments: Sequence[str]) -> int:
    """Measure the suite that is named first, or write the tables; the exit code."""
    suites = SUITES | {"tables": "the tables from the record; nothing is measured"}
    if set(arguments[:1]) & {"-h", "--help"}:
        print(__doc__)
        print("\n".join(f"  {suite:11} {what}" for suite, what in suites.items()))
        return 0
    if not arguments or arguments[0] not in suites:
        got = repr(arguments[0]) if arguments else "nothing"
        complain("bench", f"expected one of {', '.join(suites)}, got {got}")
        return USAGE
    try:
        if arguments[0] == "tables":
            write_tables()
        elif arguments[0] == "gpu":
            from experiments.bench.gpu import command

            return command.main(arguments[1:])
        else:
            measure(arguments[0], arguments[1:])
    except ImportError as error:
        raise missing_package(error) from error
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program("bench", lambda: main(sys.argv[1:])))
