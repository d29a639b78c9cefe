"""The command that evaluates models: zero-shot, retrieval or a linear probe on any dataset."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table

from jaxclip.cli.shared import (
    AsJson,
    UsageError,
    load_model,
    print_line,
    print_table,
    require_whole_flag,
    show_progress,
    warn_embedded,
)

LOWEST = 20  # classes in the table
Task = Literal["auto", "zero-shot", "retrieval", "linear-probe"]
# The flags that some tasks ignore, and those that take them.
TAKEN_BY = {
    "metric": ("zero-shot",),
    "captions": ("retrieval",),
    "split": ("retrieval",),
    "train": ("linear-probe",),
    "prompts": ("zero-shot", "retrieval"),
    "limit": ("zero-shot", "retrieval"),
    "dataset": ("zero-shot", "linear-probe"),
    "image": ("zero-shot", "linear-probe"),
    "label": ("zero-shot", "linear-probe"),
}


@dataclasses.dataclass(frozen=True)
class EvaluateFlags:
    """The flags of `jaxclip evaluate`.

    Args:
        data: Pictures with classes or captions: folders, a table, tar shards, tfds:NAME:SPLIT.
        model: "emoji" (the embedded model), a released model's name, a run folder, a
            checkpoint file or the id of a model on the Hugging Face Hub.
        task: By default retrieval for pictures with captions, a linear probe with --train, else
            zero-shot classification.
        dataset: Whose class names, prompts and metric: a name such as cifar100, or a .json file.
        prompts: Your own templates with one slot {} each; for retrieval one, around each caption.
        metric: In place of the one that is published for the dataset.
        train: Training pictures of a linear probe on frozen features; DATA is its test set.
        captions: A caption file of COCO, Karpathy or Flickr30k; DATA is the folder of its pictures.
        split: Of Karpathy's caption file, such as test.
        image: The feature or column with the picture.
        label: The feature or column with the class.
        policy: How pictures become pixels: "official" (the released pipeline, bit for bit) or
            "safe" (rotation applied, transparency on white).
        limit: A random subset of that many pictures, for a quick look.
        batch_size: Pictures that go through the model at once.
        skip_limit: Unusable pictures that are counted and left out before the command fails.
        data_dir: Where datasets of tensorflow-datasets were prepared.
        out: Keep result.json, predictions and plots in this folder; an interrupted run resumes
            with or without it.
        force: Start over although the folder holds a run.
        as_json: Print one JSON object instead of tables.
    """

    data: tyro.conf.Positional[str] = ""
    model: str = "emoji"
    task: Task = "auto"
    dataset: str = "custom"
    prompts: tuple[str, ...] = ()
    metric: Literal["top1", "mean_per_class"] | None = None
    train: str = ""
    captions: Path | None = None
    split: str = ""
    image: str = "image"
    label: str = "label"
    policy: Literal["official", "safe"] = "official"
    limit: int | None = None
    batch_size: int = 64
    skip_limit: int = 100
    data_dir: Path | None = None
    out: Path | None = None
    force: bool = False
    as_json: AsJson = False

    def given(self) -> dict[str, Any]:
        """The flags that differ from their defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def choose_task(self) -> str:
        """The value of --task, or the one that fits the data."""
        from jaxclip.data.contents import detect_contents
        from jaxclip.data.spec import parse_spec

        if self.task != "auto":
            return self.task
        if self.train:
            return "linear-probe"
        if self.captions:
            return "retrieval"
        contents = detect_contents(parse_spec(self.data), self.label)
        if contents == "unknown":
            raise UsageError(
                f"--task: expected zero-shot or retrieval for {self.data!r}, got none; the texts "
                "of these tar files may be classes or captions"
            )
        return "retrieval" if contents == "captions" else "zero-shot"

    def check(self, task: str) -> None:
        """UsageError for a number out of range, or a flag that the task does not take."""
        require_whole_flag("--batch-size", self.batch_size, 1, 2**20)
        require_whole_flag("--skip-limit", self.skip_limit, 0)
        if self.limit is not None:
            require_whole_flag("--limit", self.limit, 1)
        for name in self.given():
            if task not in TAKEN_BY.get(name, (task,)):
                tasks = " or ".join(TAKEN_BY[name])
                raise UsageError(f"--{name}: expected --task {tasks}, got {task}; leave it out")
        if task == "retrieval" and len(self.prompts) > 1:
            raise UsageError(f"--prompts: expected one for captions, got {len(self.prompts)}")
        if task == "linear-probe" and not self.train:
            raise UsageError("--train: expected the training pictures of the probe, got none")


Flags = Annotated[EvaluateFlags, tyro.conf.arg(name="")]


def evaluate(flags: Flags = EvaluateFlags()) -> int:
    """Evaluate a model on a dataset; without one, on the artist that the emoji keep unseen."""
    if not flags.data:
        return _evaluate_unseen_artist(flags)
    from jaxclip.evaluation import keys
    from jaxclip.evaluation.protocol import Setup
    from jaxclip.hub.released import cache_folder

    task = flags.choose_task()
    flags.check(task)
    run = _open_task(flags, task)
    model, preprocess = load_model(flags.model, arrange=True)
    # without --out half a run is in a folder named by the flags that change the answer
    same_answer = ("force", "as_json", "skip_limit")
    given = {name: str(flag) for name, flag in flags.given().items() if name not in same_answer}
    setup = Setup(
        model,
        preprocess,
        flags.model,
        flags.out or cache_folder() / "evaluations" / keys.digest(given)[:16],
        policy=flags.policy,
        batch_size=flags.batch_size,
        skip_limit=flags.skip_limit,
        force=flags.force,
        cache=cache_folder(),
        progress=show_progress,
    )
    result = run(setup)
    if flags.out is None:
        shutil.rmtree(setup.out, ignore_errors=True)
    if flags.as_json:
        print(json.dumps(result))
    else:
        (show_retrieval if task == "retrieval" else show_classification)(result, flags.out)
    return 0


def _open_task(flags: EvaluateFlags, task: str) -> Callable[[Any], dict[str, Any]]:
    """A function from a `Setup` to the result, its data opened before a model is loaded."""
    from jaxclip.data.subset import Subset
    from jaxclip.evaluation import probe_protocol, protocol, retrieval_protocol

    columns = {name: getattr(flags, name) for name in ("dataset", "image", "label", "data_dir")}
    if task == "linear-probe":
        probe = probe_protocol.LinearProbe(flags.train, flags.data, **columns)
        return functools.partial(probe_protocol.run_linear_probe, probe)
    if task == "retrieval":
        pairs = retrieval_protocol.open_captioned(
            flags.data, flags.captions, flags.split, data_dir=flags.data_dir
        )
        retrieval = retrieval_protocol.Retrieval(
            flags.data,
            pairs if flags.limit is None else Subset(pairs, flags.limit),
            prompt=flags.prompts[0] if flags.prompts else "{}",
        )
        return functools.partial(retrieval_protocol.run_retrieval, retrieval)
    zero_shot = protocol.open_zero_shot(
        flags.data, templates=flags.prompts, metric=flags.metric or "", limit=flags.limit, **columns
    )
    return functools.partial(protocol.run_zero_shot, zero_shot)


# What people see ----------------------------------------------------------------------------------


def show_classification(result: dict[str, Any], out: Path | None) -> None:
    """Print the result of a classifier: the weakest classes, the metrics, what was left out."""
    warn_embedded(result["model"])
    table = Table("class", "pictures", "right (%)", title=f"{result['dataset']}, {result['model']}")
    for row in sorted(result["per_class"], key=lambda row: row["accuracy"] or 0)[:LOWEST]:
        share = "no picture" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        table.add_row(row["class"], str(row["n"]), share)
    print_table(table)
    if len(result["per_class"]) > LOWEST:
        count = len(result["per_class"])
        print(f"(the lowest {LOWEST} of {count}; all of them are in result.json)")
    for name, value in result["metrics"].items():
        print_line(f"{name}: {100 * value:.2f} %")
    low, high = (100 * x for x in result["interval"])
    print(f"{result['metric']}, 95 % interval: {low:.2f} to {high:.2f}, {result['n']} pictures")
    if result["empty"]:
        print(f"classes without a picture: {len(result['empty'])}, not in the mean per class")
    if "penalty" in result:
        tried = len(result["search"]["penalties"])
        print(f"penalty: {result['penalty']:.3g}, the best of {tried} on validation pictures")
    _show_rest(result, out)


def show_retrieval(result: dict[str, Any], out: Path | None) -> None:
    """Print the result of retrieval: recall both ways, what was left out."""
    warn_embedded(result["model"])
    title = f"{result['dataset']}, {result['model']}: {result['n']} pictures"
    table = Table("metric", "%", "95 % interval", title=f"{title}, {result['captions']} captions")
    for name, value in result["metrics"].items():
        low, high = (100 * x for x in result["intervals"][name])
        table.add_row(name.replace("_", " "), f"{100 * value:.1f}", f"{low:.1f} to {high:.1f}")
    print_table(table)
    _show_rest(result, out)


def _show_rest(result: dict[str, Any], out: Path | None) -> None:
    for reason, count in result["skipped"].items():
        print_line(f"left out: {count}, {reason}")
    if "verdict" in result:
        print_line(f"published: {result['verdict']}")
    if out is not None:
        print_line(f"wrote {out}")


# The embedded pictures of an unseen artist --------------------------------------------------------


def _evaluate_unseen_artist(flags: EvaluateFlags) -> int:
    """The test on the embedded pictures of one artist; UsageError for flags that it ignores."""
    for name in flags.given():
        if name not in ("model", "as_json"):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: expected DATA to evaluate on, got none; name a dataset")
    from jaxclip.evaluation.classifier_cache import cached_classifier
    from jaxclip.evaluation.named_pictures import evaluate_unseen_artist
    from jaxclip.hub.released import cache_folder

    loaded = load_model(flags.model, arrange=True)[0]

    def text_embeds(names: Sequence[str]) -> np.ndarray:
        return cached_classifier(loaded, names, ("{}",), cache_folder(), truncate=True)

    result = evaluate_unseen_artist(loaded, text_embeds)[0]
    if flags.as_json:
        print(json.dumps(result))
    else:
        show_unseen_artist(result)
    return 0


def show_unseen_artist(result: dict[str, Any]) -> None:
    """Print the scores of a model on the unseen artist beside the floors."""
    scores = result["scores"]
    table = Table("metric", *scores, title=f"unseen artist, {result['classes']} names (%)")
    for metric in scores["model"]:
        cells = [f"{100 * s[metric]:.1f}" if metric in s else "" for s in scores.values()]
        table.add_row(metric.replace("_", " "), *cells)
    print_table(table)
