"""The paper's linear probe as a protocol (appendix A.3): features, penalty, fit, test, result.

The penalty is chosen on validation pictures, of a set of their own or held out of the training
pictures; one fit on both together is tested. The features of each set are kept in the folder of the
result, so an interrupted run resumes from them.
"""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip.checkpoint import replacing
from jaxclip.data.classes import Relabelled, align_labels
from jaxclip.data.labelled import NAMES_FILE, Labelled, open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.data.stream import Skips
from jaxclip.evaluation import keys, linear_probe, plots, prompts, results
from jaxclip.evaluation.features import Block
from jaxclip.evaluation.keys import Key
from jaxclip.evaluation.linear_probe import Choice, Split
from jaxclip.evaluation.metrics import Tally, top_k
from jaxclip.evaluation.protocol import Figures, Setup, label_arrays
from jaxclip.evaluation.resumable import Arrays
from jaxclip.evaluation.zero_shot import why_unusable


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """The sets of a probe, each a dataset spec.

    validation: for choosing the penalty; else `held_out`, a share of every class of `train`.
    dataset: a name or a .json file of classes in their order, and the metric.
    image, label: the features or columns to read.
    expected: published figures for the metric; None where nothing is to be compared.
    """

    train: str
    test: str
    validation: str = ""
    held_out: float = 0.2
    dataset: str = "custom"
    image: str = "image"
    label: str = "label"
    data_dir: Path | None = None
    expected: Figures | None = None

    def open(self, data: str) -> Labelled:
        """The labelled source of one of the sets."""
        return open_labelled(parse_spec(data), self.data_dir, image=self.image, label=self.label)


class FeatureSets:
    """Features of labelled pictures, each set encoded once and kept in a file with its key."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.encode = jax.jit(linear_probe.probe_features)
        self.key = keys.of_model(setup.model, setup.preprocess, setup.policy)
        self.skipped: collections.Counter[str] = collections.Counter()

    def read(self, source: Relabelled, data: str, role: str) -> Arrays:
        """features [n, d], labels int [n], where str [n] of the usable pictures.

        role: "train", "validation" or "test"; it names the file.
        """
        of_source = keys.of_source(source, "labels", self.setup.progress)
        key = self.key | of_source | keys.of_values(classes=source.names)
        path = self.setup.out / f"features-{role}.npz"
        arrays = None if self.setup.force else read_kept(path, key)
        if arrays is None:
            arrays = self._encode(source, data, path, key)
        self.skipped.update(json.loads(str(arrays.pop("skipped"))))
        if self.skipped.total() > self.setup.skip_limit:
            raise ValueError(
                f"{self.skipped.total()} pictures of all sets were left out, more than "
                f"--skip-limit {self.setup.skip_limit}; allow more of them"
            )
        return arrays

    def _encode(self, source: Relabelled, data: str, path: Path, key: Key) -> Arrays:
        """The arrays of `read`, and `skipped`, encoded and written to a file."""
        skips, module = Skips(self.setup.skip_limit), self.setup.model
        blocks = self.setup.encode(
            source,
            path.with_suffix(".parts"),
            key | keys.of_values(batch_size=self.setup.batch_size),
            skips,
            describe_block,
            usable=lambda example: why_unusable(example, len(source.names)),
            what=data,
            encode=lambda images: self.encode(module, images),
        )
        arrays = blocks.join("features", "labels", "where")
        if not len(arrays["labels"]):
            raise ValueError(f"{data}: no picture with a class could be used")
        arrays["skipped"] = np.array(json.dumps(skips.counts))
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, key=np.array(json.dumps(key)), **arrays)
        blocks.remove()
        return arrays


def read_kept(path: Path, key: Key) -> Arrays | None:
    """The arrays of a file if it has that key; None for another key, a damaged file or none."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        same = json.loads(str(arrays.pop("key"))) == key
    except Exception:  # a damaged zip raises all kinds
        return None
    return arrays if same else None


def describe_block(block: Block) -> Arrays:
    """What is kept of a block: features [b, d], labels int [b], where str [b]."""
    arrays = label_arrays(block.items)
    return {"features": block.features, "labels": arrays["label"], "where": arrays["where"]}


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """bool [n]: True for `share` of the pictures of every class, at least one each.

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
    """ValueError for labels that are numbers where the training set names its classes."""
    if not raw.names and getattr(training, "sorted_names", False):
        raise ValueError(
            f"{data}: expected classes by name, as {trained_on} has them, got numbers; put "
            f"{NAMES_FILE}, a class a line, beside the data, or name a --dataset"
        )


def read_splits(task: LinearProbe, features: FeatureSets) -> tuple[Split, Split, Arrays]:
    """(training set, validation set, test arrays with the `names` of all classes)."""
    known = prompts.load(task.dataset)
    training = align_labels(task.open(task.train), known.classes, known.folders)
    folders = known.folders if known.classes else ()

    def align(data: str) -> Relabelled:
        raw = task.open(data)
        if not known.classes:
            require_names(raw, training.source, data, task.train)
        return align_labels(raw, training.names, folders)

    train = features.read(training, task.train, "train")
    test = features.read(align(task.test), task.test, "test")
    test["names"] = np.array(training.names)
    x, y = train["features"], train["labels"]
    if task.validation:
        other = features.read(align(task.validation), task.validation, "validation")
        return (x, y), (other["features"], other["labels"]), test
    out = hold_out(y, task.held_out)
    return (x[~out], y[~out]), (x[out], y[out]), test


def run_linear_probe(task: LinearProbe, setup: Setup) -> dict[str, Any]:
    """Choose the penalty, fit, test, write the result to `setup.out`, and return it."""
    setup.require_no_result()
    features = FeatureSets(setup)
    train, validation, test = read_splits(task, features)
    names = [str(name) for name in test["names"]]
    choice = linear_probe.search_penalty(train, validation, len(names))
    x, y = (np.concatenate(pair) for pair in zip(train, validation, strict=True))
    probe = linear_probe.fit(x, y, len(names), [choice.best])
    top, score = top_k(probe.scores(test["features"])[0], 5)
    tally = Tally(len(names))
    tally.add(test["labels"], top)
    result = describe_probe(task, setup, tally, names, choice) | {
        "skipped": dict(features.skipped),
        "n_train": len(y),
        "iterations": int(probe.iterations[0]),
    }
    predictions = {"label": test["labels"], "top": top, "score": score, "where": test["where"]}
    plots.confusion(tally.confusion, names, setup.out / "confusion.png")
    results.save(setup.out, result, {**predictions, "confusion": tally.confusion})
    return result


def describe_probe(
    task: LinearProbe, setup: Setup, tally: Tally, names: Sequence[str], choice: Choice
) -> dict[str, Any]:
    """The object of result.json, with the search of the penalty."""
    metric = prompts.load(task.dataset).metric
    return {
        "experiment": "linear_probe",
        "data": task.test,
        "columns": {"image": task.image, "label": task.label},
        "trained_on": task.train,
        "validated_on": task.validation or f"{task.held_out} of {task.train}",
        "dataset": task.dataset,
        "model": setup.name,
        **results.describe_tally(tally, names, metric, task.expected),
        "penalty": choice.best,
        "search": {
            "penalties": choice.penalties.tolist(),
            "validation": choice.accuracies.tolist(),
        },
        "checksums": setup.checksums(None),
        "versions": results.read_versions(),
        "date": results.now(),
    }
