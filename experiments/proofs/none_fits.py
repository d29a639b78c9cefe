"""How often the mark of `jaxclip classify` is right.

Question:  how many right answers does the mark "no label fits" doubt, and how many of the pictures
           that no label fits does it find?
Command:   python -m experiments.proofs.none_fits
Result:    the table of docs/search.md; a minute on two cores.

Every drawing of the unseen artist whose name others have drawn, once with its own name among other
names drawn at random, once with other names only. A right answer is one whose best label is its
name.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from experiments.lib.common import run_experiment
from jaxclip import load
from jaxclip.cli.usage import Positive, Seed
from jaxclip.data.emoji.pictures import load_unseen_artist
from jaxclip.evaluation.classified import LabelClassifier
from jaxclip.evaluation.features import map_batches

BATCH = 128


@dataclasses.dataclass(frozen=True)
class Flags:
    model: str = "emoji"
    labels: tuple[Positive, ...] = (2, 4, 10, 100)
    """how many labels to choose from"""
    seed: Seed = 0
    """of the labels drawn"""


def rates(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row a number of labels, in percent."""
    model, preprocess = load(flags.model)
    pictures = load_unseen_artist()
    pixels = np.stack([preprocess.safe(Image.fromarray(x, "RGBA")) for x in pictures.images])
    features = map_batches(model.encode_image, pixels, BATCH)
    names = sorted(set(pictures.names))
    every = LabelClassifier.make(model, names, ["{}"], None)
    own = [names.index(name) for name in pictures.names]
    for count in flags.labels:
        rng = np.random.default_rng(flags.seed)
        right, wrong = [], []
        for i, name in enumerate(own):
            drawn = rng.choice(len(names) - 1, count, replace=False)
            others = drawn + (drawn >= name)  # all but its own
            for chosen, marks in (([name, *others[1:]], right), (others, wrong)):
                labels = tuple(names[j] for j in chosen)
                some = dataclasses.replace(every, labels=labels, embeds=every.embeds[chosen])
                (row,) = some.rank(model, [""], features[i : i + 1])
                if marks is wrong or row.labels[0].label == names[name]:
                    marks.append(row.none_fits)
        shares = {"right answers that are marked, %": right, "marked where none is right, %": wrong}
        yield {
            "labels": count,
            "right answers": len(right),
            **{what: round(100 * float(np.mean(marks)), 1) for what, marks in shares.items()},
        }


def main(flags: Flags) -> None:
    """Print the rows as JSON lines."""
    for row in rates(flags):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(run_experiment(main, Flags, sys.argv[1:], "none_fits", __doc__ or ""))
