"""The runs of `compare_supervised`: training, probes, floors, the embedded model."""

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
EMOJI_BLOCK = 250  # pictures a batch
NEAREST_SIZE = 32  # pixels a side at which drawings are compared for the floor
SEARCHED, SEARCH_MOST = 10_000, 200
Arrays = dict[str, np.ndarray]
Report = Callable[[float, str], None]  # progress: a share of the run, a few words
Work = Callable[[Report], Arrays]


@dataclass(frozen=True)
class Run:
    """One file of --out: its name, its key, and the work that makes its arrays.

    key: the recipe. files: weights that it reads or writes; its numbers are stale when they change.
    """

    name: str
    key: dict[str, Any]
    work: Work
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The flags of the command."""

    out: Path
    seeds: tuple[int, ...]
    towers: tuple[str, ...]
    epochs: float

    def seen(self, data: Data) -> int:
        """Training pictures of a run, repeats counted."""
        return int(self.epochs * len(data.labels("train")))


# The runs -----------------------------------------------------------------------------------------


def training_run(plan: Plan, data: Data, tower: str, side: str, seed: int) -> Run:
    """A run that trains one model: `answers` on the test pictures, and weights in a file."""
    vision = data.towers[tower]
    recipe = towers.Recipe(vision, plan.seen(data), seed=seed)
    name = f"{side}-{tower}-{seed}"

    def work(report: Report) -> Arrays:
        """Train, save the weights; answers, losses and seconds."""
        losses: list[float] = []

        def progress(step: int, loss: float) -> None:
            losses.append(loss)
            report(step / recipe.steps, f"loss {loss:.3f}")

        training, test = (data.at(split, vision.image_size) for split in ("train", "test"))
        began = time.monotonic(), time.process_time()
        if side == "clip":
            model = towers.from_captions(recipe, training, data.templates, data.embed_dim, progress)
        else:
            model = towers.from_labels(recipe, training, progress=progress)
        seconds = time.monotonic() - began[0], time.process_time() - began[1]
        scores = towers.encode_all(model, test.images)
        if side == "clip":
            scores = (
                l2_normalize(scores) @ build_name_classifier(model, data.classes, data.templates).T
            )
        notes = {"trained_by": f"experiments.compare_supervised, {name}", "recipe": asdict(recipe)}
        checkpoint.save(weights_file(plan, name), parameters.to_flat(model), model.config, notes)
        answers = data.answers(scores)
        return {"answers": answers, "losses": np.array(losses), "seconds": np.array(seconds)}

    key = {"recipe": asdict(recipe), "side": side, "templates": data.templates}
    return Run(name, key, work, (weights_file(plan, name),))


def build_name_classifier(
    model: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    context: int = towers.CONTEXT,
) -> np.ndarray:
    """The classifier [c, e] of class names in templates."""
    return build_classifier(
        lambda texts: np.asarray(model.encode_text(tokenize(texts, context))), classes, templates
    )


def weights_file(plan: Plan, name: str) -> Path:
    """The file of a trained model; `--model` of other experiments takes it."""
    return plan.out / f"{name}.safetensors"


# Probes -------------------------------------------------------------------------------------------


def few_shot_answers(
    train: linear_probe.Split, test: np.ndarray, shots: int, seed: int, classes: int
) -> np.ndarray:
    """Answers int16 [n] of a probe on `shots` training pictures a class, drawn by the seed."""
    features, labels = train
    rng = np.random.default_rng([seed, 2])
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    chosen = np.concatenate([rows[:shots] for rows in orders])
    if len(chosen) < shots * classes:
        raise ValueError(f"shots: expected {shots} pictures in every class, got fewer in one")
    scores = fixed_penalty_scores((features[chosen], labels[chosen]), test, classes)
    return scores.argmax(axis=1).astype(np.int16)


def fixed_penalty_scores(train: linear_probe.Split, test: np.ndarray, classes: int) -> np.ndarray:
    """Scores [n, classes] of a probe with a penalty of 1, for few pictures a class.

    Features are divided by their root mean square, one number, so that one penalty suits towers of
    any scale. So few pictures leave none to search a penalty on.
    """
    features, labels = train
    scale = np.sqrt(np.mean(np.square(features)))
    probe = linear_probe.fit(features / scale, labels, classes, [1.0])
    return probe.scores(test / scale)[0]


def full_probe(
    train: linear_probe.Split, test: np.ndarray, classes: int, seed: int = 0
) -> tuple[np.ndarray, float]:
    """(answers int16 [n], penalty) of a probe on all pictures of the training set.

    The paper's search, shortened: SEARCHED pictures train, half as many validate, at most
    SEARCH_MOST iterations a fit. The best penalty a picture is that of the one fit on all.
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


def probe_run(plan: Plan, data: Data, tower: str, side: str, seed: int) -> Run:
    """Probes on a trained model: `shots_1` ... and, on all training pictures, `full`.

    With enough pictures `full` is of CLIP only, with its `penalty` from a search.
    """
    name = f"{side}-{tower}-{seed}"
    size = data.towers[tower].image_size

    def work(report: Report) -> Arrays:
        """Probe the features of a trained tower, for each number of shots."""
        flat, config, _ = checkpoint.load(weights_file(plan, name))
        model = parameters.from_flat(flat, clip.abstract(config, remat="none"))
        training, test = (data.at(split, size) for split in ("train", "test"))
        encode = clip_features if side == "clip" else towers.encode_penultimate
        report(0.1, "features")
        train = encode(model, training.images), training.labels
        test_features, arrays = encode(model, test.images), {}
        for shots in data.shots:
            report(0.3, f"{shots} a class")
            arrays[f"shots_{shots}"] = few_shot_answers(
                train, test_features, shots, seed, len(data.classes)
            )
        report(0.4, "all pictures")
        if not data.shots:
            arrays["full"] = data.answers(
                fixed_penalty_scores(train, test_features, len(data.classes))
            )
        elif side == "clip":
            arrays["full"], penalty = full_probe(train, test_features, len(data.classes))
            arrays["penalty"] = np.array(penalty)
        return arrays

    recipe = asdict(towers.Recipe(data.towers[tower], plan.seen(data), seed=seed))
    key = {"recipe": recipe, "side": side, "shots": data.shots}
    return Run(f"probe-{name}", key, work, (weights_file(plan, name),))


def clip_features(model: clip.Clip, images: np.ndarray, block: int = 500) -> np.ndarray:
    """Features for the probe: uint8 images [n, s, s, 3] -> [n, d]."""

    def encode(images: np.ndarray) -> Any:
        return _features(model, images)

    return map_batches(encode, images, block)


@jax.jit
def _features(model: clip.Clip, images: jax.Array) -> jax.Array:
    return linear_probe.probe_features(model, towers.pixels(images))


def pixel_floor(data: FashionMnist, seed: int) -> Run:
    """The floor: the same probes on bare pixels."""

    def work(report: Report) -> Arrays:
        train, test = (data.splits[name] for name in ("train", "test"))
        flat = [images.reshape(len(images), -1) / 255 for images, _ in (train, test)]
        return {
            f"shots_{shots}": few_shot_answers((flat[0], train[1]), flat[1], shots, seed, 10)
            for shots in data.shots
        }

    return Run(f"pixels-{seed}", {"shots": data.shots, "seed": seed}, work)


def nearest_floor(data: Emoji) -> Run:
    """The floor without learning: the name of the drawing with the `nearest` pixels.

    Distance is Euclidean over RGB on white; only candidates are compared.
    """

    def work(report: Report) -> Arrays:
        train, test = (data.at(split, NEAREST_SIZE) for split in ("train", "test"))
        known, queries = (x.images.reshape(len(x.images), -1) / 255 for x in (train, test))
        known = known[np.isin(train.labels, data.candidates)]
        labels = train.labels[np.isin(train.labels, data.candidates)]
        distance = (known**2).sum(axis=1) - 2 * queries @ known.T  # less the constant |query|^2
        return {"nearest": labels[distance.argmin(axis=1)].astype(np.int16)}

    return Run("nearest-pixels", {"size": NEAREST_SIZE}, work)


def emoji_run(plan: Plan, data: FashionMnist) -> Run:
    """The embedded model, which never saw a photograph: `zero_shot`, `zero_shot_photo`, probes.

    It was trained on names without a template, so `zero_shot` uses the bare class name;
    `zero_shot_photo` uses "a photo of a {}.".
    """

    def work(report: Report) -> Arrays:
        """Features once, then the prompts and the probes on them."""
        model, preprocess = hub.load(EMBEDDED, arrange=True)
        encode = jax.jit(linear_probe.probe_features)

        def features(images: np.ndarray, what: str) -> np.ndarray:
            report(0.1, what)
            return map_batches(
                lambda x: encode(model, resize_all(x, preprocess)), images, EMOJI_BLOCK
            )

        (pictures, labels), test = data.splits["train"], data.splits["test"]
        test_features, arrays = features(test[0], "test pictures"), {}
        for name, template in (("zero_shot", "{}"), ("zero_shot_photo", "a photo of a {}.")):
            classes = build_name_classifier(model, fashion_mnist.CLASSES, [template], 32)
            arrays[name] = data.answers(l2_normalize(test_features) @ classes.T)
        for seed in plan.seeds:
            rng = np.random.default_rng([seed, 2])  # the rows that few_shot_answers draws
            orders = [rng.permutation(np.flatnonzero(labels == label)) for label in range(10)]
            rows = np.sort(np.concatenate([order[: max(data.shots)] for order in orders]))
            sparse = np.zeros((len(labels), test_features.shape[1]), np.float32)
            sparse[rows] = features(pictures[rows], "training pictures")
            for shots in data.shots:
                answers = few_shot_answers((sparse, labels), test_features, shots, seed, 10)
                arrays[f"shots_{shots}_{seed}"] = answers
        return arrays

    key = {"shots": data.shots, "seeds": plan.seeds}
    return Run("emoji", key, work, (find(EMBEDDED),))


def resize_all(pictures: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """uint8 [n, h, w] -> pixels [n, s, s, 3] by the official preprocessing."""
    return np.stack([preprocess(Image.fromarray(picture)) for picture in pictures])


def list_runs(plan: Plan, data: Data) -> Iterator[Run]:
    """All runs, seed after seed, so that early results are comparable."""
    for seed in plan.seeds:
        for tower in plan.towers:
            for side in SIDES:
                yield training_run(plan, data, tower, side, seed)
    for seed in plan.seeds:
        for tower in plan.towers:
            for side in SIDES:
                yield probe_run(plan, data, tower, side, seed)
    if isinstance(data, FashionMnist):
        for seed in plan.seeds:
            yield pixel_floor(data, seed)
        yield emoji_run(plan, data)
    if isinstance(data, Emoji):
        yield nearest_floor(data)
