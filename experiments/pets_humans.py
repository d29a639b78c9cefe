"""Oxford-IIIT Pets beside people: the article's Table 2, mean per-class accuracy.

Question:  how does zero-shot CLIP compare with people who saw no, one or two examples of a breed?
Command:   python -m experiments.pets_humans --data tfds:oxford_iiit_pet:test --model ViT-L/14 \
               --out runs/pets_humans
Result:    as experiments.zero_shot writes it, and `table` in result.json. The rows of people are
           published figures; no people took part here.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments.lib import common
from experiments.lib.flags import ZeroShotFlags as Flags
from jaxclip.cli.evaluate import show_classification
from jaxclip.cli.shared import print_table
from jaxclip.evaluation import results
from jaxclip.evaluation.protocol import run_zero_shot


def published() -> dict[str, Any]:
    """Table 2: `source`, `columns` and `rows`, in percent."""
    return json.loads(common.PUBLISHED.read_text(encoding="utf-8"))["pets_humans"]


def run(flags: Flags) -> dict[str, Any]:
    """Classify the pets, and add the model's row to the published ones."""
    result = run_zero_shot(flags.task("oxford_pets", "pets_humans"), flags.setup())
    table = published()
    rows = [{"who": who, "published": True, "percent": x} for who, x in table["rows"].items()]
    ours = {"who": f"ours, {flags.model}", "published": False, "percent": [100 * result["value"]]}
    result["table"] = {**table, "rows": [*rows, ours]}
    results.save(flags.out, result, None)
    return result


def show(result: dict[str, Any]) -> None:
    """Print Table 2 with our row."""
    title = "Table 2: Oxford-IIIT Pets, mean per-class accuracy (%)"
    table = Table("who", *result["table"]["columns"], "where from", title=title)
    for row in result["table"]["rows"]:
        numbers = [f"{x:.1f}" for x in row["percent"]]
        numbers += [""] * (2 - len(numbers))
        table.add_row(row["who"], *numbers, "published" if row["published"] else "measured here")
    print_table(table)


def work(flags: Flags) -> None:
    """Run and show."""
    result = run(flags)
    show(result)
    show_classification(result, flags.out)


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    return common.run_experiment(work, Flags, given, "pets_humans", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
