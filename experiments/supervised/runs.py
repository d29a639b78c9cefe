"""The runs of `compare_supervised`, whose header has the question: what each needs and leaves."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.recipes import fashion_mnist
from experiments.supervised import towers
from experiments.supervised.data import Data, Emoji, FashionMnist
from jaxclip import checkpoint
from jaxclip.evaluation import linear_probe
from jaxclip.evaluation.features import map_batches
from jaxclip.evaluation.zero_shot import build_classifier
from jaxclip.hub import load as hub
from jaxclip.hub.find import EMBEDDED, find
from jaxclip.images.preprocess import Preprocess
from jaxclip.models import clip, parameters
from jaxclip.reference import l2_normalize
from jaxclip.tokenizer import tokenize

SIDES = ("clip", "supervised")
EMOJI_BLOCK = 250  # pictures at once
NEAREST_SIZE = 32  # pixels a side at which drawings are compared for the floor
SEARCHED, SEARCH_MOST = 10_000, 200
Arrays = dict[str, np.ndarray]
Told = Callable[[float, str], None]  # how far a run is: share, a few words
Work = Callable[[Told], Arrays]


@dataclass(frozen=True)
class Run:
    """One file of --out: its name, what its numbers depend on, how they are made.

    key: the recipe. files: weights that it reads or leaves; with others its numbers are no longer
    right.
    """

    name: str
    key: dict[str, Any]
    work: Work
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is run: flags of the command."""

    out: Path
    seeds: tuple[int, ...]
    towers: tuple[str, ...]
    epochs: float

    def seen(self, data: Data) -> int:
        """Training pictures that a run sees, repeats counted."""
        return int(self.epochs * len(data.labels("train")))


# The runs -----------------------------------------------------------------------------------------


def trained(plan: Plan, data: Data, tower: str, side: str, seed: int) -> Run:
    """Train one model, keep its weights beside the result: `answers` on the test pictures."""
    vision = data.towers[tower]
    recipe = towers.Recipe(vision, plan.seen(data), seed=seed)
    name = f"{side}-{tower}-{seed}"

    def work(told: Told) -> Arrays:
        """Train; the weights go to a file, answers, losses and seconds are returned."""
        losses: list[float] = []

        def progress(step: int, loss: float) -> None:
            losses.append(loss)
            told(step / recipe.steps, f"loss {loss:.3f}")

        training, test = (data.at(split, vision.image_size) for split in ("train", "test"))
        began = time.monotonic(), time.process_time()
        if side == "clip":
            model = towers.from_captions(recipe, training, data.templates, data.embed_dim, progress)
        else:
            model = towers.from_labels(recipe, training, progress=progress)
        seconds = time.monotonic() - began[0], time.process_time() - began[1]
        scores = towers.encoded(model, test.images)
        if side == "clip":
            scores = l2_normalize(scores) @ named(model, data.classes, data.templates).T
        notes = {"trained_by": f"experiments.compare_supervised, {name}", "recipe": asdict(recipe)}
        checkpoint.save(weights(plan, name), parameters.to_flat(model), model.config, notes)
        answers = data.answers(scores)
        return {"answers": answers, "losses": np.array(losses), "seconds": np.array(seconds)}

    key = {"recipe": asdict(recipe), "side": side, "templates": data.templates}
    return Run(name, key, work, (weights(plan, name),))


def named(
    model: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    context: int = towers.CONTEXT,
) -> np.ndarray:
    """The classifier [c, e] of class names in templates."""
    return build_classifier(
        lambda texts: np.asarray(model.encode_text(tokenize(texts, context))), classes, templates
    )


def weights(plan: Plan, name: str) -> Path:
    """The file of a trained model: `--model` of the other experiments takes it."""
    return plan.out / f"{name}.safetensors"


# Probes -------------------------------------------------------------------------------------------


def few(
    train: linear_probe.Split, test: np.ndarray, shots: int, seed: int, classes: int
) -> np.ndarray:
    """Answers int16 [n] of a probe on `shots` training pictures a class, drawn by the seed."""
    features, labels = train
    rng = np.random.default_rng([seed, 2])
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    chosen = np.concatenate([rows[:shots] for rows in orders])
    if len(chosen) < shots * classes:
        raise ValueError(f"{shots} pictures a class were asked for; a class has fewer")
    scores = unsearched((features[chosen], labels[chosen]), test, classes)
    return scores.argmax(axis=1).astype(np.int16)


def unsearched(train: linear_probe.Split, test: np.ndarray, classes: int) -> np.ndarray:
    """Scores [n, classes] of a probe whose penalty is not searched for: it is 1.

    Features are scaled to a root mean square of one, by a single number, so that one penalty suits
    towers of any scale. For few pictures a class, where nothing is left to search on.
    """
    features, labels = train
    scale = np.sqrt(np.mean(np.square(features)))
    probe = linear_probe.fit(features / scale, labels, classes, [1.0])
    return probe.scores(test / scale)[0]


def full(
    train: linear_probe.Split, test: np.ndarray, classes: int, seed: int = 0
) -> tuple[np.ndarray, float]:
    """(answers int16 [n], penalty) of a probe on all pictures of the training set.

    The paper's search, in a shorter form: on SEARCHED pictures that train and half as many that
    validate, at most SEARCH_MOST iterations a fit. The penalty a picture that is best there is that
    of the one fit on all.
    """
    features, labels = train
    scale = np.sqrt(np.mean(np.square(features)))
    features = features / scale
    order = np.random.default_rng([seed, 3]).permutation(len(labels))
    searched = min(SEARCHED, len(order) // 2)
    kept, held = order[:searched], order[searched : searched * 3 // 2]
    choice = linear_probe.search_penalty(
        (features[kept], labels[kept]), (features[held], labels[held]), classes, SEARCH_MOST
    )
    penalty = choice.best * len(labels) / len(kept)
    probe = linear_probe.fit(features, labels, classes, [penalty])
    return probe.scores(test / scale)[0].argmax(axis=1).astype(np.int16), penalty


def probed(plan: Plan, data: Data, tower: str, side: str, seed: int) -> Run:
    """Probes on a trained model: `shots_1` ... and, on all training pictures, `full`.

    Where there are pictures enough, `full` is of CLIP only, with its `penalty`, found by a search.
    """
    name = f"{side}-{tower}-{seed}"
    size = data.towers[tower].image_size

    def work(told: Told) -> Arrays:
        """Probe the features of a trained tower, for each number of shots."""
        flat, config, _ = checkpoint.load(weights(plan, name))
        model = parameters.from_flat(flat, clip.abstract(config, remat="none"))
        training, test = (data.at(split, size) for split in ("train", "test"))
        encode = clip_features if side == "clip" else towers.penultimate
        told(0.1, "features")
        train = encode(model, training.images), training.labels
        asked, arrays = encode(model, test.images), {}
        for shots in data.shots:
            told(0.3, f"{shots} a class")
            arrays[f"shots_{shots}"] = few(train, asked, shots, seed, len(data.classes))
        told(0.4, "all pictures")
        if not data.shots:
            arrays["full"] = data.answers(unsearched(train, asked, len(data.classes)))
        elif side == "clip":
            arrays["full"], penalty = full(train, asked, len(data.classes))
            arrays["penalty"] = np.array(penalty)
        return arrays

    recipe = asdict(towers.Recipe(data.towers[tower], plan.seen(data), seed=seed))
    key = {"recipe": recipe, "side": side, "shots": data.shots}
    return Run(f"probe-{name}", key, work, (weights(plan, name),))


def clip_features(model: clip.Clip, images: np.ndarray, block: int = 500) -> np.ndarray:
    """What the probe learns from: uint8 images [n, s, s, 3] -> [n, d]."""

    def encode(images: np.ndarray) -> Any:
        return _features(model, images)

    return map_batches(encode, images, block)


@jax.jit
def _features(model: clip.Clip, images: jax.Array) -> jax.Array:
    return linear_probe.probe_features(model, towers.pixels(images))


def pixels(data: FashionMnist, seed: int) -> Run:
    """The floor: the same probes on bare pixels."""

    def work(told: Told) -> Arrays:
        train, test = (data.splits[name] for name in ("train", "test"))
        flat = [images.reshape(len(images), -1) / 255 for images, _ in (train, test)]
        return {
            f"shots_{shots}": few((flat[0], train[1]), flat[1], shots, seed, 10)
            for shots in data.shots
        }

    return Run(f"pixels-{seed}", {"shots": data.shots, "seed": seed}, work)


def nearest(data: Emoji) -> Run:
    """The floor without learning: the name of the drawing with the `nearest` pixels.

    Distance is Euclidean over RGB on white; names that may not be answered are left out.
    """

    def work(told: Told) -> Arrays:
        train, test = (data.at(split, NEAREST_SIZE) for split in ("train", "test"))
        there, asked = (x.images.reshape(len(x.images), -1) / 255 for x in (train, test))
        there = there[np.isin(train.labels, data.candidates)]
        labels = train.labels[np.isin(train.labels, data.candidates)]
        distance = (there**2).sum(axis=1) - 2 * asked @ there.T  # less the constant |asked|^2
        return {"nearest": labels[distance.argmin(axis=1)].astype(np.int16)}

    return Run("nearest-pixels", {"size": NEAREST_SIZE}, work)


def emoji(plan: Plan, data: FashionMnist) -> Run:
    """The embedded model, which never saw a photograph: `zero_shot`, `zero_shot_photo`, probes.

    It learned names without a template, so `zero_shot` asks with the bare class name;
    `zero_shot_photo` asks with "a photo of a {}.".
    """

    def work(told: Told) -> Arrays:
        """Features once, then the prompts and the probes on them."""
        model, preprocess = hub.load(EMBEDDED, arrange=True)
        encode = jax.jit(linear_probe.probe_features)

        def features(images: np.ndarray, what: str) -> np.ndarray:
            told(0.1, what)
            return map_batches(lambda x: encode(model, sized(x, preprocess)), images, EMOJI_BLOCK)

        (pictures, labels), test = data.splits["train"], data.splits["test"]
        asked, arrays = features(test[0], "test pictures"), {}
        for name, template in (("zero_shot", "{}"), ("zero_shot_photo", "a photo of a {}.")):
            classes = named(model, fashion_mnist.CLASSES, [template], 32)
            arrays[name] = data.answers(l2_normalize(asked) @ classes.T)
        for seed in plan.seeds:
            rng = np.random.default_rng([seed, 2])  # the rows that `few` will draw
            orders = [rng.permutation(np.flatnonzero(labels == label)) for label in range(10)]
            rows = np.sort(np.concatenate([order[: max(data.shots)] for order in orders]))
            sparse = np.zeros((len(labels), asked.shape[1]), np.float32)
            sparse[rows] = features(pictures[rows], "training pictures")
            for shots in data.shots:
                answers = few((sparse, labels), asked, shots, seed, 10)
                arrays[f"shots_{shots}_{seed}"] = answers
        return arrays

    key = {"shots": data.shots, "seeds": plan.seeds}
    return Run("emoji", key, work, (find(EMBEDDED),))


def sized(pictures: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """uint8 [n, h, w] -> what the official preprocessing makes of them, [n, s, s, 3]."""
    return np.stack([preprocess(Image.fromarray(picture)) for picture in pictures])


def runs(plan: Plan, data: Data) -> Iterator[Run]:
    """All of them, a seed after the other, so that what is there early is comparable."""
    for seed in plan.seeds:
        for tower in plan.towers:
            for side in SIDES:
                yield trained(plan, data, tower, side, seed)
    for seed in plan.seeds:
        for tower in plan.towers:
            for side in SIDES:
                yield probed(plan, data, tower, side, seed)
    if isinstance(data, FashionMnist):
        for seed in plan.seeds:
            yield pixels(data, seed)
        yield emoji(plan, data)
    if isinstance(data, Emoji):
        yield nearest(data)
