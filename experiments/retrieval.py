"""Retrieval both ways: from a picture to its captions, from a caption to its picture.

Question:  how often is a right caption (or the picture) among the first 1, 5 and 10?
Command:   python -m experiments.retrieval --data val2014 --captions dataset_coco.json \
               --split test --dataset coco --model ViT-L/14@336px --out runs/coco
Result:    result.json (jaxclip/evaluation/results.py) in --out; docs/experiments.md has ours.

The paper puts "a photo of" before a caption: --prompt "a photo of {}". The protocol is
jaxclip/evaluation/retrieval_protocol.py. An interrupted run resumes when the same command is given
again.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.lib import common
from experiments.lib.flags import ModelFlags
from jaxclip.cli.evaluate import show_retrieval
from jaxclip.evaluation.prompts import require_slots
from jaxclip.evaluation.retrieval_protocol import WAYS, Retrieval, open_captioned, run_retrieval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """The flags of this experiment.

    Args:
        data: Any pairs, or the folder of the pictures of --captions.
        captions: A caption file of COCO, Karpathy or Flickr30k.
        split: Of Karpathy's file: test.
        only: A file with the wanted pictures' names, one a line.
        dataset: Whose published figures to show.
        prompt: A template with one slot {} for the caption.
    """

    data: str
    captions: Path | None = None
    split: str = ""
    only: Path | None = None
    dataset: Literal["coco", "flickr30k", "custom"] = "custom"
    prompt: str = "{}"


def work(flags: Flags) -> None:
    """Rank, write and show the result."""
    require_slots([flags.prompt])
    pairs = open_captioned(flags.data, flags.captions, flags.split, flags.only, flags.data_dir)
    figures = {way: common.published(flags.dataset, flags.model, f"{way}_r1") for way in WAYS}
    task = Retrieval(flags.data, pairs, flags.dataset, flags.prompt, figures)
    show_retrieval(run_retrieval(task, flags.setup()), flags.out)


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    return common.run_experiment(work, Flags, given, "retrieval", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
