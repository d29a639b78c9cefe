"""The paper's linear probe: logistic regression on the features of a frozen model.

Question:  how good are the features of the image tower, whatever the words?
Command:   python -m experiments.linear_probe --data tfds:cifar100:train \
               --test tfds:cifar100:test --dataset cifar100 --model ViT-L/14 --out runs/probe
Result:    result.json and predictions.npz (jaxclip/evaluation/results.py) and confusion.png in
           --out; what was measured here stands in docs/supervised.md.

Appendix A.3 of the paper: the penalty is chosen on validation pictures, of --validation or else a
part of --data held out; then one fit on both together is tested on --test. The features of each
set are kept in --out, so that a run that did not end goes on from them; --force makes them anew.
"""

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import zero_shot
from experiments.lib import common, keys
from experiments.lib.keys import Key
from experiments.lib.resumable import Parts
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import load_model
from jaxclip.data.labelled import NAMES_FILE, Aligned, Labelled, aligned, labelled
from jaxclip.data.spec import place
from jaxclip.data.stream import Skips
from jaxclip.evaluation import linear_probe, plots, prompts, results
from jaxclip.evaluation.features import Block
from jaxclip.evaluation.linear_probe import Choice, Split
from jaxclip.evaluation.metrics import Tally, best


class Features:
    """Features of labelled pictures, read once and kept in a file together with their key."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, preprocess = load_model(arguments.model, arrange=True)
        self.preprocess = preprocess.safe if arguments.policy == "safe" else preprocess
        self.encode = jax.jit(linear_probe.probe_features)
        self.key = keys.of_model(self.model, preprocess, arguments.policy)
        self.size = preprocess.size
        self.folder, self.batch_size = arguments.out, arguments.batch_size
        self.skip_limit, self.force = arguments.skip_limit, arguments.force
        self.skipped: collections.Counter[str] = collections.Counter()

    def of(self, source: Aligned, data: str, role: str) -> dict[str, np.ndarray]:
        """features [n, d], labels int [n], where str [n], of the pictures that can be used.

        role: "train", "validation" or "test"; it names the file.
        """
        key = self.key | keys.of_source(source, "labels") | keys.of_values(classes=source.names)
        path = self.folder / f"features-{role}.npz"
        arrays = None if self.force else read_kept(path, key)
        if arrays is None:
            arrays = self._encode_all(source, data, path, key)
        self.skipped.update(json.loads(str(arrays.pop("skipped"))))
        if self.skipped.total() > self.skip_limit:
            raise ValueError(
                f"{self.skipped.total()} pictures of all sets were left out, more than "
                f"--skip-limit {self.skip_limit}; allow more of them"
            )
        return arrays

    def _encode_all(
        self, source: Aligned, data: str, path: Path, key: Key
    ) -> dict[str, np.ndarray]:
        """The arrays of `of`, and `skipped`, read and kept."""
        skips, blocks = Skips(self.skip_limit), keys.of_values(batch_size=self.batch_size)
        parts = Parts(path.with_suffix(".parts"), key | blocks, skips, self.force)
        arrays = self._read(source, data, parts)
        arrays["skipped"] = np.array(json.dumps(skips.counts))
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=np.array(json.dumps(key)), **arrays)
        parts.remove()
        return arrays

    def _read(self, source: Aligned, data: str, parts: Parts) -> dict[str, np.ndarray]:
        parts.fill(
            source,
            self.preprocess,
            lambda images: self.encode(self.model, images),
            described_block,
            usable=lambda example: zero_shot.unusable(example, len(source.names)),
            block=self.batch_size,
            what=data,
        )
        names = ("features", "labels", "where")
        arrays = dict(zip(names, parts.joined(*names), strict=True))
        if not len(arrays["labels"]):
            raise ValueError(f"{data}: no picture with a class could be used")
        return arrays


def read_kept(path: Path, key: Key) -> dict[str, np.ndarray] | None:
    """The arrays that were kept under that key; None where there are none, or they are damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        same = json.loads(str(arrays.pop("key"))) == key
    except Exception:  # a damaged zip raises all kinds
        return None
    return arrays if same else None


def described_block(block: Block) -> dict[str, np.ndarray]:
    """features [b, d], labels int [b], where str [b] of what could be used of a block."""
    return {
        "features": block.features,
        "labels": np.array([item.label for item in block.items], np.int64),
        "where": np.array([item.where for item in block.items], np.str_),
    }


def held_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """bool [n]: of every class `share` of its pictures, at least one; the rest is trained on.

    ValueError when a class has a single picture, which cannot be on both sides.
    """
    chosen = np.zeros(len(labels), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise ValueError(
                f"class {label} has one picture, too few to hold out validation data; name a set "
                "with --validation"
            )
        chosen[rng.permutation(rows)[: max(1, round(share * len(rows)))]] = True
    return chosen


def require_names(raw: Labelled, training: Labelled, data: str, trained_on: str) -> None:
    """ValueError for labels that are numbers, beside training pictures whose classes have names."""
    if not raw.names and getattr(training, "sorted_names", False):
        raise ValueError(
            f"{data}: expected classes by name, as {trained_on} has them, got numbers; put "
            f"{NAMES_FILE}, a class a line, beside the data, or name a --dataset"
        )


def split(features: Features, arguments: argparse.Namespace) -> tuple[Split, Split, Any]:
    """(training set, validation set, test arrays); --data is cut in two if need be."""
    known = prompts.load(arguments.dataset)

    def source(data: str, classes: Sequence[str], folders: Sequence[str]) -> Aligned:
        raw = labelled(
            place(data), arguments.data_dir, image=arguments.image, label=arguments.label
        )
        if classes and not known.classes:
            require_names(raw, training.source, data, arguments.data)
        return aligned(raw, classes, folders)

    training = source(arguments.data, known.classes, known.folders)
    folders = known.folders if known.classes else ()
    train = features.of(training, arguments.data, "train")
    test = features.of(source(arguments.test, training.names, folders), arguments.test, "test")
    test["names"] = np.array(training.names)
    whole = train["features"], train["labels"]
    if arguments.validation:
        data = arguments.validation
        other = features.of(source(data, training.names, folders), data, "validation")
        return whole, (other["features"], other["labels"]), test
    out = held_out(whole[1], arguments.held_out)
    return (whole[0][~out], whole[1][~out]), (whole[0][out], whole[1][out]), test


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Choose the penalty, fit, test, write --out; the result."""
    if (arguments.out / "result.json").is_file() and not arguments.force:
        raise ValueError(f"{arguments.out} holds a result already; add --force or another --out")
    features = Features(arguments)
    train, validation, test = split(features, arguments)
    names = [str(name) for name in test["names"]]
    choice = linear_probe.halving(train, validation, len(names))
    both = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    probe = linear_probe.fit(both[0], both[1], len(names), [choice.best])
    top, score = best(probe.scores(test["features"])[0], 5)
    tally = Tally(len(names))
    tally.add(test["labels"], top)
    result = described(arguments, features, tally, names, choice)
    result |= {"n_train": len(both[1]), "iterations": int(probe.iterations[0])}
    predictions = {"label": test["labels"], "top": top, "score": score, "where": test["where"]}
    plots.confusion(tally.confusion, names, arguments.out / "confusion.png")
    results.save(arguments.out, result, {**predictions, "confusion": tally.confusion})
    return result


def described(
    arguments: argparse.Namespace,
    features: Features,
    tally: Tally,
    names: Sequence[str],
    choice: Choice,
) -> dict[str, Any]:
    """The object of result.json, with the search beside it."""
    metric = prompts.load(arguments.dataset).metric
    metrics, interval = tally.metrics(), tally.interval(metric)
    expected = common.published(arguments.dataset, arguments.model, f"linear_probe_{metric}")
    per_class = [
        {"class": name, "n": int(n), "accuracy": None if n == 0 else float(accuracy)}
        for name, n, accuracy in zip(names, tally.counts, tally.per_class(), strict=True)
    ]
    return {
        "experiment": "linear_probe",
        "data": arguments.test,
        "columns": {"image": arguments.image, "label": arguments.label},
        "trained_on": arguments.data,
        "validated_on": arguments.validation or f"{arguments.held_out} of {arguments.data}",
        "dataset": arguments.dataset,
        "model": arguments.model,
        "metric": metric,
        "value": metrics[metric],
        "interval": list(interval),
        "metrics": metrics,
        "n": tally.n,
        "skipped": dict(features.skipped),
        "empty": [row["class"] for row in per_class if row["n"] == 0],
        "expected": expected,
        "verdict": common.verdict(metrics[metric], interval, expected),
        "penalty": choice.best,
        "search": {
            "penalties": choice.penalties.tolist(),
            "validation": choice.accuracies.tolist(),
        },
        "checksums": {
            "weights": features.key["weights"],
            "preprocessing": keys.digest([arguments.policy, features.size]),
        },
        "classes": list(names),
        "per_class": per_class,
        "versions": common.surroundings(),
        "date": common.now(),
    }


def work(arguments: argparse.Namespace) -> None:
    """Run and tell."""
    result = run(arguments)
    zero_shot.show(result, arguments.out)
    tried = len(result["search"]["penalties"])
    print(f"penalty: {result['penalty']:.3g}, the best of {tried} on validation pictures")


def flags() -> common.Parser:
    """What the command line understands."""
    made = zero_shot.parser("linear_probe", __doc__.splitlines()[0])
    flag = made.add_argument
    flag("--data", required=True, help="training pictures: tfds:NAME:SPLIT, class folders, ...")
    flag("--test", required=True, help="test pictures, of the same classes")
    flag("--validation", help="what the penalty is chosen on; else a part of --data")
    flag("--held-out", type=common.share, default=0.2, help="that part, a share of every class")
    flag("--dataset", default="custom", help="class names in order and metric: a name or .json")
    flag("--image", default="image", help="the feature or column with the picture")
    flag("--label", default="label", help="the feature or column with the class")
    return made


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run(flags(), work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
