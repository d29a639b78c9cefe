"""The paper's linear probe: logistic regression on the features of a frozen model.

Question:  how good are the features of the image tower, whatever the words?
Command:   python -m experiments.linear_probe --data tfds:cifar100:train \
               --test tfds:cifar100:test --dataset cifar100 --model ViT-L/14 --out runs/probe
Result:    result.json and predictions.npz (jaxclip/evaluation/results.py) and confusion.png in
           --out; docs/supervised.md has the numbers measured so far.

Appendix A.3 of the paper: the penalty is chosen on validation pictures, of --validation or a part
of --data; one fit on both together is tested on --test. The protocol is
jaxclip/evaluation/probe_protocol.py. An interrupted run resumes from the features in --out.
"""

import dataclasses
import sys
from collections.abc import Sequence

from experiments.lib import common
from experiments.lib.flags import ModelFlags
from jaxclip.cli.evaluate import show_classification
from jaxclip.cli.usage import Share
from jaxclip.evaluation import prompts
from jaxclip.evaluation.probe_protocol import LinearProbe, run_linear_probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """The flags of this experiment.

    Args:
        data: Training pictures: tfds:NAME:SPLIT, class folders, a table, tar shards.
        test: Test pictures, of the same classes.
        validation: Pictures to choose the penalty on; by default a part of --data.
        held_out: That part, a share of every class.
        dataset: Whose classes and metric: a name such as cifar100, or a .json file.
        image: The feature or column with the picture.
        label: The feature or column with the class.
    """

    data: str
    test: str
    validation: str = ""
    held_out: Share = 0.2
    dataset: str = "custom"
    image: str = "image"
    label: str = "label"


def work(flags: Flags) -> None:
    """Fit, test, write and show the result."""
    metric = prompts.load(flags.dataset).metric
    columns = {name: getattr(flags, name) for name in ("dataset", "image", "label", "data_dir")}
    task = LinearProbe(
        flags.data,
        flags.test,
        flags.validation,
        flags.held_out,
        **columns,
        expected=common.published(flags.dataset, flags.model, f"linear_probe_{metric}"),
    )
    show_classification(run_linear_probe(task, flags.setup()), flags.out)


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    return common.run_experiment(work, Flags, given, "linear_probe", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
