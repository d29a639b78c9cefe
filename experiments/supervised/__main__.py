"""CLIP against a supervised model of the same size, trained on the same pictures.

Question:  what do captions instead of labels cost, and what do they bring? (the article's last
           table; the paper's sections 3.1.5 and 3.2)
Command:   python -m experiments.compare_supervised FOLDER --out runs/supervised
           python -m experiments.compare_supervised emoji --out runs/supervised-emoji
Result:    docs/supervised.md, with seeds, intervals, machine and date.

For each seed and each kind of image tower: a CLIP trained from scratch on captions made of class
names; the same tower trained on the labels; linear probes on their features.

FOLDER holds Fashion-MNIST's four files (experiments/recipes/fashion_mnist.py). There are probes on
few pictures a class, too, and beside them the embedded `emoji` model, which never saw a photograph.
Everything is tested on the 10,000 test pictures.

`emoji` is the embedded drawings: a class a name, a training set of three drawings a class, tested
on an artist whom neither side has seen.

A run leaves one file when it has ended; the same command goes on with those that are missing, or
whose weights are no longer those that the file was made with.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress
from tyro.conf import Positional

from experiments.lib import common
from experiments.supervised.data import Data, Emoji, FashionMnist
from experiments.supervised.runs import Plan, Run, runs
from experiments.supervised.table import markdown, write
from jaxclip import checkpoint
from jaxclip.cli.parsing import Positive
from jaxclip.cli.shared import print_line, stderr

TOWERS = tuple(FashionMnist.towers)


@dataclasses.dataclass(frozen=True)
class Flags:
    data: Positional[str]
    """`emoji`, or the folder where Fashion-MNIST's four .gz files are"""
    out: Path
    """a folder for results and weights"""
    seeds: Positive = 3
    """seeds 0, 1, ... of every run"""
    towers: tuple[Literal[TOWERS], ...] = TOWERS
    """kinds of image tower"""
    epochs: float | None = None
    """times that every training picture is seen; by default as many as the data set needs"""


def result(plan: Plan, run: Run) -> Path:
    """The file that a run leaves."""
    return plan.out / f"{run.name}.npz"


def key_of(run: Run, data: Data) -> dict[str, Any]:
    """What the numbers of a run depend on, as its file keeps it: recipe, data, weights."""
    files = {path.name: file_digest(path) for path in run.files}
    # as it is read back: JSON knows no tuples
    return json.loads(json.dumps({"recipe": run.key, "data": data.digest, "files": files}))


def file_digest(path: Path) -> str:
    """SHA-256 of a file; nothing where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished(plan: Plan, run: Run, data: Data) -> bool:
    """Whether its file is there, of the weights that are there.

    ValueError when the file was made by another recipe or of other pictures.
    """
    path = result(plan, run)
    if not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as arrays:
        kept = json.loads(str(arrays["key"]))
    key = key_of(run, data)
    if any(kept.get(part) != key[part] for part in ("recipe", "data")):
        raise ValueError(f"{path} was made by another recipe or of other data; use another --out")
    return bool(kept["files"] == key["files"])


def carry_out(plan: Plan, data: Data) -> None:
    """Every run that is missing, one after the other."""
    every = list(runs(plan, data))
    for run in every:  # an error comes before hours of work
        finished(plan, run, data)
    with Progress(console=stderr) as bar:
        whole = bar.add_task("runs", total=len(every))
        for run in every:
            if finished(plan, run, data):  # asked late: a run may leave weights for a later one
                bar.advance(whole)
                continue
            part = bar.add_task(run.name, total=1.0)

            def told(share: float, words: str, part: Any = part, name: str = run.name) -> None:
                bar.update(part, completed=share, description=f"{name}, {words}")

            arrays = run.work(told)
            key = np.array(json.dumps(key_of(run, data)))
            with (
                checkpoint.replacing(result(plan, run)) as part_file,
                open(part_file, "wb") as file,
            ):
                np.savez_compressed(file, key=key, **arrays)
            bar.update(part, completed=1.0)
            bar.advance(whole)


def work(flags: Flags) -> None:
    """Run what is missing, then write and print the table."""
    data = Emoji() if flags.data == "emoji" else FashionMnist(Path(flags.data))
    epochs = data.epochs if flags.epochs is None else flags.epochs
    if not 0 < epochs <= 1000:
        raise ValueError(f"--epochs: expected more than 0 and at most 1000, got {epochs}")
    plan = Plan(flags.out, tuple(range(flags.seeds)), flags.towers, epochs)
    carry_out(plan, data)
    rows, less = write(plan, data)
    print(markdown(rows))
    print(markdown(less))
    pictured = ", few_shot.png" if data.shots else ""
    print_line(f"wrote {plan.out}: comparison.json, table.md{pictured}, and the models")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run_experiment(work, Flags, given, "compare_supervised", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
