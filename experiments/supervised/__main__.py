"""CLIP against a supervised model of the same size, trained on the same pictures.

Question:  what do captions instead of labels cost, and what do they bring? (the article's last
           table; the paper's sections 3.1.5 and 3.2)
Command:   python -m experiments.compare_supervised FOLDER --out runs/supervised
           python -m experiments.compare_supervised emoji --out runs/supervised-emoji
Result:    docs/supervised.md, with seeds, intervals, machine and date.

For each seed and each kind of image tower: a CLIP trained from scratch on captions made of class
names; the same tower trained on the labels; linear probes on their features.

FOLDER holds Fashion-MNIST's four files (experiments/recipes/fashion_mnist.py), with 10,000 test
pictures. There are few-shot probes, too, and beside them the embedded `emoji` model, which never
saw a photograph.

`emoji` is the embedded drawings: a class a name, three training drawings a class, tested on an
artist whom neither side has seen.

A finished run leaves one file. The same command resumes with the missing runs, and with those whose
weights have changed since.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.progress import Progress

from experiments.lib import common
from experiments.supervised.data import Data, Emoji, FashionMnist
from experiments.supervised.runs import Plan, Run, list_runs
from experiments.supervised.table import markdown, write
from jaxclip import checkpoint
from jaxclip.cli.shared import print_line, stderr
from jaxclip.cli.usage import Positive

TOWERS = tuple(FashionMnist.towers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of this experiment.

    Args:
        data: "emoji", or the folder of Fashion-MNIST's four .gz files.
        out: A folder for results and weights.
        seeds: Seeds 0, 1, ... of every run.
        towers: Kinds of image towers.
        epochs: Times that a run sees every training picture; by default 1, of emoji 20.
    """

    data: tyro.conf.Positional[str]
    out: Path
    seeds: Positive = 3
    towers: tuple[Literal["vit", "resnet"], ...] = TOWERS  # type: ignore[assignment]
    epochs: float | None = None


def result_file(plan: Plan, run: Run) -> Path:
    """The file of a finished run."""
    return plan.out / f"{run.name}.npz"


def run_key(run: Run, data: Data) -> dict[str, Any]:
    """The key of a run, as its file keeps it: recipe, data, weights."""
    files = {path.name: file_digest(path) for path in run.files}
    # as it is read back: JSON has no tuples
    return json.loads(json.dumps({"recipe": run.key, "data": data.digest, "files": files}))


def file_digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(plan: Plan, run: Run, data: Data) -> bool:
    """Whether the file of a run exists and was made with the weights that exist.

    ValueError when it was made by another recipe or of other pictures.
    """
    path = result_file(plan, run)
    if not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as arrays:
        kept = json.loads(str(arrays["key"]))
    key = run_key(run, data)
    if any(kept.get(part) != key[part] for part in ("recipe", "data")):
        raise ValueError(f"{path} was made by another recipe or of other data; use another --out")
    return bool(kept["files"] == key["files"])


def run_missing(plan: Plan, data: Data) -> None:
    """Do every missing run, one after the other."""
    every = list(list_runs(plan, data))
    for run in every:  # fail before hours of work
        is_finished(plan, run, data)
    with Progress(console=stderr) as bar:
        whole = bar.add_task("runs", total=len(every))
        for run in every:
            if is_finished(plan, run, data):  # checked late: a run may write weights for it
                bar.advance(whole)
                continue
            part = bar.add_task(run.name, total=1.0)

            def report(share: float, words: str, part: Any = part, name: str = run.name) -> None:
                bar.update(part, completed=share, description=f"{name}, {words}")

            arrays = run.work(report)
            key = np.array(json.dumps(run_key(run, data)))
            with (
                checkpoint.replacing(result_file(plan, run)) as part_file,
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
    run_missing(plan, data)
    rows, less = write(plan, data)
    print(markdown(rows))
    print(markdown(less))
    plot = ", few_shot.png" if data.shots else ""
    print_line(f"wrote {plan.out}: comparison.json, table.md{plot}, and the models")


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    return common.run_experiment(work, Flags, given, "compare_supervised", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
