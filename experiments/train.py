"""The paper's recipe for every released model, on pairs of your own.

Question:  what would it take to train that model again?
Command:   python -m experiments.train                          # the recipes as a table
           python -m experiments.train ViT-B/32 SHARDS [FLAGS]  # = jaxclip train --preset ViT-B/32
Result:    not measured: the paper's 400 million pairs were never published, and a run took 256
           V100 for 12 days (ViT-L/14) or 592 for 18 (RN50x64), section 2.5. The same command runs
           on small data (tests/training/test_train_command.py), and its step has been compiled for
           TPUs at full size (docs/scaling.md).

Every flag of `jaxclip train` may follow and wins over the recipe. On many hosts each runs the same
command, with --coordinator.
"""

import sys
from collections.abc import Sequence

from rich.table import Table

from jaxclip import cli
from jaxclip.cli.shared import PlainConsole
from jaxclip.config import RELEASED
from jaxclip.terminal import complain, run_program
from jaxclip.training.recipe import PAPER_PAIRS, presets

COLUMNS = ("model", "steps", "batch", "epochs", "learning rate", "warm-up", "decay", "picture")


def table() -> Table:
    """One row a released model."""
    shown = Table(*COLUMNS, title="The recipes (sections 2.4 and 2.5 of the paper)")
    for name in RELEASED:
        recipe = presets[name]
        epochs = round(recipe.steps * recipe.batch_size / PAPER_PAIRS)
        numbers = (recipe.steps, recipe.batch_size, epochs, recipe.learning_rate, recipe.warmup)
        size = recipe.model.vision.image_size
        shown.add_row(name, *map(str, (*numbers, recipe.weight_decay, size)))
    return shown


def show_table() -> int:
    print(__doc__)
    PlainConsole(width=100).print(table())
    return 0


def main(arguments: Sequence[str]) -> int:
    """The table, or the run that the arguments ask for; its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return run_program("train", show_table)
    name, *rest = arguments
    if name not in RELEASED:
        complain("train", f"expected one of {', '.join(RELEASED)}, got {name!r}")
        return 2
    return cli.main(["train", "--preset", name, "--out", f"runs/{name.replace('/', '-')}", *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
