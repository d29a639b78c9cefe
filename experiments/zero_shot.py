"""Zero-shot classification: one row of the article's tables.

Question:  how often is the right class the one whose prompts fit best?
Command:   python -m experiments.zero_shot --data tfds:cifar100:test --dataset cifar100 \
               --model ViT-L/14 --out runs/cifar100
Result:    result.json, predictions.npz (jaxclip/evaluation/results.py) and confusion.png in --out;
           docs/experiments.md has the numbers measured so far.

Section 3.1.4 of the paper: a class is the mean of its prompts' embeddings. The protocol is
jaxclip/evaluation/protocol.py. An interrupted run resumes when the same command is given again.
"""

import dataclasses
import sys
from collections.abc import Sequence

from experiments.lib import common
from experiments.lib.flags import ZeroShotFlags
from jaxclip.cli.evaluate import show_classification
from jaxclip.evaluation.protocol import run_zero_shot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(ZeroShotFlags):
    """The flags of this experiment.

    Args:
        dataset: Whose classes, prompts and metric: a name such as cifar100, or a .json file.
    """

    dataset: str = "custom"


def work(flags: Flags) -> None:
    """Classify, write and show the result."""
    task = flags.task(flags.dataset, "zero_shot")
    show_classification(run_zero_shot(task, flags.setup()), flags.out)


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    return common.run_experiment(work, Flags, given, "zero_shot", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
