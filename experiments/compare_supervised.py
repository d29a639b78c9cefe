"""CLIP against a supervised model of the same size, trained on the same pictures.

Question:  what do captions instead of labels cost, and what do they bring? (the article's last
           table; the paper's sections 3.1.5 and 3.2)
Command:   python -m experiments.compare_supervised FOLDER --out runs/supervised
Result:    docs/supervised.md, with seeds, intervals, machine and date.

FOLDER holds Fashion-MNIST's four files (experiments/fashion_mnist.py). For each seed and each kind
of image tower: a CLIP trained from scratch on captions made of class names; the same tower trained
on the labels; a linear probe on the features of both; and probes on few pictures a class. Beside
them the embedded `emoji` model, which never saw a photograph. Everything is tested on the 10,000
test pictures.

A run leaves one file when it has ended; the same command goes on with those that are missing.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import Progress

from experiments import common, fashion_mnist, towers
from jaxclip import checkpoint
from jaxclip.cli.shared import stderr
from jaxclip.config import ResNetConfig, VisionConfig
from jaxclip.evaluation.zero_shot import classifier, unit
from jaxclip.models import clip
from jaxclip.tokenizer import tokenize

TOWERS = {
    "vit": VisionConfig(image_size=28, patch_size=7, width=64, layers=4, heads=2),
    "resnet": ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1)),
}
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a grey photo of a {}.",
    "a small photo of one {}.",
    "a {}, an article of clothing.",
)
Arrays = dict[str, np.ndarray]
Work = Callable[[Callable[[float, str], None]], Arrays]  # says how far it is: share, a few words


@dataclass(frozen=True)
class Run:
    """One file of --out: its name, what its numbers depend on, how they are made."""

    name: str
    key: dict[str, Any]
    work: Work


@dataclass(frozen=True)
class Plan:
    """What is run: flags of the command."""

    folder: Path
    out: Path
    seeds: tuple[int, ...]
    towers: tuple[str, ...]
    epochs: float


class Data:
    """Fashion-MNIST at the sizes that towers want, made once a size."""

    def __init__(self, folder: Path) -> None:
        self.splits = {name: fashion_mnist.read(folder, name) for name in fashion_mnist.SPLITS}
        self.sized: dict[tuple[str, int], towers.Labelled] = {}

    def at(self, split: str, size: int) -> towers.Labelled:
        """A split as the official preprocessing would size it: bicubic, in grey, then RGB."""
        if (split, size) not in self.sized:
            pictures, labels = self.splits[split]
            resized = [Image.fromarray(x).resize((size, size), Image.BICUBIC) for x in pictures]
            images = np.repeat(np.stack([np.asarray(x) for x in resized])[..., None], 3, axis=-1)
            self.sized[split, size] = towers.Labelled(images, labels, fashion_mnist.CLASSES)
        return self.sized[split, size]


# The runs -----------------------------------------------------------------------------------------


def trained(plan: Plan, data: Data, tower: str, side: str, seed: int) -> Run:
    """Train one model, keep its weights beside the result: `answers` on the test pictures."""
    vision = TOWERS[tower]
    seen = int(plan.epochs * len(data.splits["train"][1]))
    recipe = towers.Recipe(vision, seen, seed=seed)
    name = f"{side}-{tower}-{seed}"

    def work(told: Callable[[float, str], None]) -> Arrays:
        losses: list[float] = []

        def progress(step: int, loss: float) -> None:
            losses.append(loss)
            told(step / recipe.steps, f"loss {loss:.3f}")

        training, test = (data.at(split, vision.image_size) for split in ("train", "test"))
        began = time.monotonic(), time.process_time()
        if side == "clip":
            model = towers.from_captions(recipe, training, TEMPLATES, progress=progress)
        else:
            model = towers.from_labels(recipe, training, progress=progress)
        seconds = time.monotonic() - began[0], time.process_time() - began[1]
        scores = towers.encoded(model, test.images)
        if side == "clip":
            scores = unit(scores) @ named(model, data.at("test", vision.image_size).classes).T
        notes = {"trained_by": f"experiments.compare_supervised, {name}", "recipe": asdict(recipe)}
        checkpoint.save(weights(plan, name), clip.to_flat(model), model.config, notes)
        answers = scores.argmax(axis=1).astype(np.int8)
        return {"answers": answers, "losses": np.array(losses), "seconds": np.array(seconds)}

    return Run(name, {"recipe": asdict(recipe), "side": side, "templates": TEMPLATES}, work)


def named(model: Any, classes: Sequence[str]) -> np.ndarray:
    """The classifier [c, e] of class names in all templates."""
    return classifier(
        lambda texts: np.asarray(model.encode_text(tokenize(texts, towers.CONTEXT))),
        classes,
        TEMPLATES,
    )


def weights(plan: Plan, name: str) -> Path:
    """The file of a trained model: `--model` of the other experiments takes it."""
    return plan.out / f"{name}.safetensors"


def runs(plan: Plan, data: Data) -> Iterator[Run]:
    """All of them, a seed after the other, so that what is there early is comparable."""
    for seed in plan.seeds:
        for tower in plan.towers:
            for side in ("clip", "supervised"):
                yield trained(plan, data, tower, side, seed)


def result(plan: Plan, run: Run) -> Path:
    return plan.out / f"{run.name}.npz"


def finished(plan: Plan, run: Run) -> bool:
    """Whether its file is there; ValueError when that came of another recipe."""
    path = result(plan, run)
    if not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as arrays:
        same = str(arrays["key"]) == json.dumps(run.key, sort_keys=True)
    if not same:
        raise ValueError(f"{path} came of another recipe; use another --out")
    return True


def carry_out(plan: Plan, data: Data) -> None:
    """Every run that is missing, one after the other."""
    todo = [run for run in runs(plan, data) if not finished(plan, run)]
    with Progress(console=stderr) as bar:
        whole = bar.add_task("runs", total=len(todo))
        for run in todo:
            part = bar.add_task(run.name, total=1.0)

            def told(share: float, words: str, part: Any = part, name: str = run.name) -> None:
                bar.update(part, completed=share, description=f"{name}, {words}")

            arrays = run.work(told)
            key = np.array(json.dumps(run.key, sort_keys=True))
            with (
                checkpoint.replacing(result(plan, run)) as part_file,
                open(part_file, "wb") as file,
            ):
                np.savez_compressed(file, key=key, **arrays)
            bar.update(part, completed=1.0)
            bar.advance(whole)


def work(arguments: argparse.Namespace) -> None:
    plan = Plan(
        arguments.folder,
        arguments.out,
        tuple(range(arguments.seeds)),
        tuple(arguments.towers),
        arguments.epochs,
    )
    data = Data(plan.folder)
    carry_out(plan, data)


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    made = common.Parser(prog="compare_supervised", description=__doc__.splitlines()[0])
    flag = made.add_argument
    flag("folder", type=Path, help="where Fashion-MNIST's four .gz files are")
    flag("--out", type=Path, required=True, help="a folder for results and weights")
    flag("--seeds", type=int, default=3, help="seeds 0, 1, ... of every run")
    flag("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    flag("--epochs", type=float, default=1.0, help="times that every training picture is seen")
    return common.run(made, work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
