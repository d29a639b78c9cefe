"""Zero-shot classification: one row of the article's tables.

Question:  how often is the right class the one whose prompts fit best?
Command:   python -m experiments.zero_shot --data tfds:cifar100:test --dataset cifar100 \
               --model ViT-L/14 --out runs/cifar100
Result:    result.json, predictions.npz (jaxclip/evaluation/results.py) and confusion.png in --out;
           what was measured here stands in docs/experiments.md.

Section 3.1.4 of the paper: a class is the mean of its prompts' embeddings. A run that was
interrupted goes on where it stopped when the same command is given again.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.lib import common, keys
from experiments.lib.keys import Key
from experiments.lib.resumable import Parts
from jaxclip.cli.shared import load_model, print_line, print_table, warn_embedded
from jaxclip.data.labelled import Aligned, aligned, labelled
from jaxclip.data.spec import place
from jaxclip.data.stream import Skips
from jaxclip.evaluation import plots, prompts, results
from jaxclip.evaluation.classifier_cache import compiled, weights_checksum
from jaxclip.evaluation.features import Block
from jaxclip.evaluation.metrics import Tally, best
from jaxclip.evaluation.zero_shot import unit, unusable
from jaxclip.hub.released import cache_folder


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked: pictures with classes, the prompts, a model, and how it is told.

    dataset: as published figures name it, such as "cifar100".
    source: labels are places in its names.
    image, label: the features or columns that it was read from.
    """

    experiment: str
    data: str
    dataset: str
    model: str
    source: Aligned
    templates: tuple[str, ...]
    image: str = "image"
    label: str = "label"
    metric: str = "top1"
    policy: str = "official"
    batch_size: int = 64
    skip_limit: int = 100


def run(task: Task, out: Path, force: bool = False) -> dict[str, Any]:
    """Ask the model about every picture, write what came of it to `out`, and return the result.

    A result of the very same question that is there already is returned as it is.
    """
    model, preprocess = load_model(task.model, arrange=True)
    classes = task.source.names
    key = key_of(task, model, preprocess)
    if not force and (done := finished(out, key, task.skip_limit)) is not None:
        return done
    skips = Skips(task.skip_limit)
    parts_key = key | keys.of_values(batch_size=task.batch_size)
    parts = Parts(out / "parts", parts_key, skips, force)
    matrix = compiled(model, classes, task.templates, cache_folder())  # [c, e]
    parts.fill(
        task.source,
        to_pixels(preprocess, task.policy),
        model.encode_image,
        lambda block: answers(block, matrix),
        usable=lambda example: unusable(example, len(classes)),
        block=task.batch_size,
        what="asking",
    )
    tally = counted(parts, len(classes))
    said = {"classes": classes, "templates": task.templates}
    checksums = checked_sums(model, preprocess, said, task.policy)
    result = {**described(task, tally), "skipped": dict(skips.counts)}
    # should this be interrupted, no result of another question stands beside these predictions
    (out / "result.json").unlink(missing_ok=True)
    results.join(out, parts.paths, tally.confusion)
    plots.confusion(tally.confusion, classes, out / "confusion.png")
    results.save(out, {**result, "checksums": checksums, "key": key}, None)
    parts.remove()
    return results.load(out)[0]


def key_of(task: Task, model: Any, preprocess: Any) -> Key:
    """Everything that the result of a task depends on."""
    said = keys.of_values(
        command=task.experiment,
        data=task.data,
        dataset=task.dataset,
        model=task.model,
        metric=task.metric,
        published_figures=common.published(task.dataset, task.model, task.metric),
        classes=task.source.names,
        prompts=task.templates,
    )
    of_model = keys.of_model(model, preprocess, task.policy)
    return said | of_model | keys.of_source(task.source, "labels")


def checked_sums(model: Any, preprocess: Any, said: Any, policy: str) -> dict[str, str]:
    """`checksums` of result.json. `said`: all that is turned to text."""
    return {
        "weights": weights_checksum(model),
        "prompts": keys.digest(said),
        "preprocessing": keys.digest([policy, preprocess.size]),
    }


def to_pixels(preprocess: Any, policy: str) -> Any:
    """What turns a decoded picture into pixels, by --policy."""
    return preprocess.safe if policy == "safe" else preprocess


def finished(out: Path, key: Key, skip_limit: int) -> dict[str, Any] | None:
    """The result of that question, if it is there.

    ValueError if there is another one, or one that left out more pictures than `skip_limit`.
    """
    if not (out / "result.json").is_file():
        return None
    result = results.load(out)[0]
    if other := keys.differences(result.get("key"), key):
        raise ValueError(
            f"{out} holds a result of another kind, which differs in {other}; add --force or "
            "another --out"
        )
    left_out = sum(result["skipped"].values())
    if left_out > skip_limit:
        raise ValueError(
            f"{out} holds a result that left out {left_out} pictures, more than --skip-limit "
            f"{skip_limit}; allow more of them"
        )
    return result


def answers(block: Block, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """A block's part of predictions.npz, by the classifier [c, e]."""
    k = min(5, len(matrix))
    if not block.items:
        top, score = np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    else:
        top, score = best(unit(block.features) @ matrix.T, k)
    labels = np.array([example.label for example in block.items], np.int64)
    where = np.array([example.where for example in block.items], np.str_)
    return {"label": labels, "top": top, "score": score, "where": where}


def counted(parts: Parts, classes: int) -> Tally:
    """The tally of all blocks."""
    tally = Tally(classes)
    for path in parts.paths:
        with np.load(path, allow_pickle=False) as arrays:
            tally.add(arrays["label"], arrays["top"])
    return tally


def described(task: Task, tally: Tally) -> dict[str, Any]:
    """The object of result.json, but for `skipped`, `checksums` and `key`."""
    metrics = tally.metrics()
    value, interval = metrics[task.metric], tally.interval(task.metric)
    expected = common.published(task.dataset, task.model, task.metric)
    per_class = [
        {"class": name, "n": int(n), "accuracy": None if n == 0 else float(accuracy)}
        for name, n, accuracy in zip(
            task.source.names, tally.counts, tally.per_class(), strict=True
        )
    ]
    return {
        "experiment": task.experiment,
        "data": task.data,
        "columns": {"image": task.image, "label": task.label},
        "dataset": task.dataset,
        "model": task.model,
        "metric": task.metric,
        "value": value,
        "interval": list(interval),
        "metrics": metrics,
        "n": tally.n,
        "empty": [row["class"] for row in per_class if row["n"] == 0],
        "expected": expected,
        "verdict": common.verdict(value, interval, expected),
        "templates": list(task.templates),
        "policy": task.policy,
        "classes": list(task.source.names),
        "per_class": per_class,
        "versions": common.surroundings(),
        "date": common.now(),
    }


def show(result: dict[str, Any], out: Path) -> None:
    """The result as people read it, on standard output."""
    warn_embedded(result["model"])
    table = Table("class", "pictures", "right (%)", title=f"{result['dataset']}, {result['model']}")
    for row in sorted(result["per_class"], key=lambda row: row["accuracy"] or 0)[:20]:
        share = "no picture" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        table.add_row(row["class"], str(row["n"]), share)
    print_table(table)
    if len(result["per_class"]) > 20:
        print(f"(the lowest 20 of {len(result['per_class'])}; all of them are in result.json)")
    for name, value in result["metrics"].items():
        print_line(f"{name}: {100 * value:.2f} %")
    low, high = (100 * x for x in result["interval"])
    print(f"{result['metric']}, 95 % interval: {low:.2f} to {high:.2f}, {result['n']} pictures")
    for reason, count in result["skipped"].items():
        print_line(f"left out: {count}, {reason}")
    if result["empty"]:
        print(f"classes without a picture: {len(result['empty'])}, not in the mean per class")
    print_line(f"published: {result['verdict']}")
    print_line(f"wrote {out}")


def parser(name: str, description: str) -> common.Parser:
    """The flags that every experiment on labelled pictures has."""
    made = common.Parser(prog=name, description=description)
    flag = made.add_argument
    flag("--model", default="emoji", help='"emoji", a released name, a run folder, a checkpoint')
    flag("--out", type=Path, required=True, help="the folder of the result")
    flag("--policy", choices=("official", "safe"), default="official", help="picture to pixels")
    flag("--batch-size", type=common.positive, default=64, help="pictures at once")
    flag("--skip-limit", type=common.natural, default=100, help="pictures that may be left out")
    flag("--data-dir", type=Path, help="where tensorflow-datasets were prepared")
    flag("--force", action="store_true", help="start afresh although --out holds a run")
    return made


def task(arguments: argparse.Namespace, dataset: str, experiment: str) -> Task:
    """What the flags ask for, on one of the data sets by name or file."""
    known = prompts.load(dataset, arguments.template_set)
    templates = prompts.checked(arguments.prompts) if arguments.prompts else known.templates
    source = labelled(
        place(arguments.data), arguments.data_dir, image=arguments.image, label=arguments.label
    )
    return Task(
        experiment=experiment,
        data=arguments.data,
        dataset=dataset,
        model=arguments.model,
        source=aligned(source, known.classes, known.folders),
        templates=templates,
        image=arguments.image,
        label=arguments.label,
        metric=arguments.metric or known.metric,
        policy=arguments.policy,
        batch_size=arguments.batch_size,
        skip_limit=arguments.skip_limit,
    )


def data_flags(made: common.Parser) -> None:
    """The flags that say which pictures, and with which prompts."""
    flag = made.add_argument
    flag(
        "--data",
        required=True,
        help="tfds:NAME:SPLIT, class folders, a table, tar shards, emoji:test",
    )
    flag("--template-set", default="", help="other templates of the data set, such as seven")
    flag("--prompts", nargs="+", default=(), help="templates of your own, one slot {} each")
    flag("--image", default="image", help="the feature or column with the picture")
    flag("--label", default="label", help="the feature or column with the class")
    flag("--metric", choices=prompts.METRICS, help="instead of the one that is published")


def flags() -> common.Parser:
    """The command line."""
    made = parser("zero_shot", __doc__.splitlines()[0])
    data_flags(made)
    names = ", ".join(prompts.available())
    made.add_argument("--dataset", default="custom", help=f"{names}, or a .json file of your own")
    return made


def main(given: Sequence[str]) -> int:
    """Run the command line; the exit code."""

    def work(arguments: argparse.Namespace) -> None:
        asked = task(arguments, arguments.dataset, "zero_shot")
        show(run(asked, arguments.out, arguments.force), arguments.out)

    return common.run(flags(), work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
