"""Oxford-IIIT Pets beside people: the article's Table 2, mean per-class accuracy.

Question:  how does zero-shot CLIP compare with people who saw no, one or two examples of a breed?
Command:   python -m experiments.pets_humans --data tfds:oxford_iiit_pet:test --model ViT-L/14 \
               --out runs/pets_humans
Result:    as experiments.zero_shot writes it, and `table` in result.json. The rows of people are
           published figures: nobody was asked here.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments import zero_shot
from experiments.lib import common
from jaxclip.cli.shared import print_table
from jaxclip.evaluation import results


def published() -> dict[str, Any]:
    """Table 2: `source`, `columns` and `rows`, in percent."""
    return json.loads(common.PUBLISHED.read_text(encoding="utf-8"))["pets_humans"]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask the model, and put its row among the published ones."""
    task = zero_shot.task(arguments, "oxford_pets", "pets_humans")
    result = zero_shot.run(task, arguments.out, arguments.force)
    table = published()
    rows = [{"who": who, "published": True, "percent": x} for who, x in table["rows"].items()]
    ours = {"who": f"ours, {task.model}", "published": False, "percent": [100 * result["value"]]}
    result["table"] = {**table, "rows": [*rows, ours]}
    results.save(arguments.out, result, None)
    return result


def show(result: dict[str, Any], out: Path) -> None:
    """Table 2 with our row, on standard output."""
    title = "Table 2: Oxford-IIIT Pets, mean per-class accuracy (%)"
    table = Table("who", *result["table"]["columns"], "where from", title=title)
    for row in result["table"]["rows"]:
        numbers = [f"{x:.1f}" for x in row["percent"]]
        numbers += [""] * (2 - len(numbers))
        table.add_row(row["who"], *numbers, "published" if row["published"] else "measured here")
    print_table(table)
    zero_shot.show(result, out)


def flags() -> common.Parser:
    """The command line."""
    made = zero_shot.parser("pets_humans", __doc__.splitlines()[0])
    zero_shot.data_flags(made)
    return made


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""

    def work(arguments: argparse.Namespace) -> None:
        show(run(arguments), arguments.out)

    return common.run(flags(), work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
