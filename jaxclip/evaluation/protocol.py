"""The evaluation protocol: encode a dataset resumably, classify it zero-shot, write the result.

`Setup` is how a model is run; `retrieval_protocol` and `probe_protocol` share it. A result is kept
under a key of everything that changes it (`keys`): the same question is answered from the folder,
another one is refused in one line.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.config import CLIP_PICTURES
from jaxclip.data.classes import Relabelled, align_labels
from jaxclip.data.labelled import Example, open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.data.stream import Skips
from jaxclip.data.subset import Subset
from jaxclip.evaluation import keys, plots, prompts, results
from jaxclip.evaluation.classifier_cache import cached_classifier, weights_checksum
from jaxclip.evaluation.features import (
    Block,
    Encode,
    Items,
    Progress,
    ToPixels,
    no_progress,
)
from jaxclip.evaluation.keys import Key
from jaxclip.evaluation.metrics import Tally, top_k
from jaxclip.evaluation.resumable import Arrays, KeptBlocks
from jaxclip.evaluation.zero_shot import why_unusable
from jaxclip.reference import l2_normalize

Figures = Sequence[dict[str, Any]]  # published ones: [{"value" (a share), "source"}]


@dataclasses.dataclass(frozen=True)
class Setup:
    """A loaded model, and how it is run.

    model, preprocess: as `jaxclip.load` returns them; name: the model's, for the result.
    out: the folder of the result.
    policy: "official" or "safe", how pictures become pixels.
    batch_size: pictures a call of the image tower, and a block on disk.
    skip_limit: unusable pictures that are skipped before it fails.
    force: start over although the folder holds a run.
    cache: the folder of cached classifiers; None for none.
    progress: shows the progress of a long iteration.
    """

    model: Any
    preprocess: Any
    name: str
    out: Path
    policy: str = "official"
    batch_size: int = 64
    skip_limit: int = 100
    force: bool = False
    cache: Path | None = None
    progress: Progress = no_progress

    @property
    def to_pixels(self) -> ToPixels:
        """Decoded picture -> float32 [h, w, c], by the policy."""
        return self.preprocess.safe if self.policy == "safe" else self.preprocess

    def key(self, source: Any, words: str, **values: Any) -> Key:
        """The key of a run over `source`, whose `words` are "labels" or "captions"."""
        of_model = keys.of_model(self.model, self.preprocess, self.policy)
        return keys.of_values(**values) | of_model | keys.of_source(source, words, self.progress)

    def checksums(self, texts: Any) -> dict[str, str]:
        """`checksums` of result.json. texts: all that is tokenised; None where nothing is."""
        found = {"weights": weights_checksum(self.model)}
        if texts is not None:
            found["prompts"] = keys.digest(texts)
        size, how = self.preprocess.size, self.preprocess.pictures
        other = [] if how == CLIP_PICTURES else [vars(how)]
        return found | {"preprocessing": keys.digest([self.policy, size, *other])}

    def encode(
        self,
        source: Items,
        folder: Path,
        key: Key,
        skips: Skips,
        describe: Callable[[Block], Arrays],
        *,
        usable: Callable[[Any], str | None],
        what: str,
        encode: Encode | None = None,
    ) -> KeptBlocks:
        """All blocks of a source, those that `folder` holds under that key not encoded again.

        describe: what is kept of a block.
        encode: pixels -> features; the model's `encode_image` by default.
        """
        blocks = KeptBlocks(folder, key, skips, self.force)
        blocks.fill(
            source,
            self.to_pixels,
            encode or self.model.encode_image,
            describe,
            usable=usable,
            block=self.batch_size,
            what=what,
            progress=self.progress,
        )
        return blocks

    def require_no_result(self) -> None:
        """ValueError where the folder holds a result and `force` is not given."""
        if (self.out / "result.json").exists() and not self.force:
            raise ValueError(f"{self.out} holds a result already; add --force or another --out")


# Zero-shot classification (section 3.1.4) ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Pictures with classes, and the prompts to classify them with.

    data: the dataset spec. dataset: the name of its classes and prompts, such as "cifar100".
    source: labels are indices of its names.
    image, label: the features or columns that it was read from.
    expected: published figures for the metric; None where nothing is to be compared.
    """

    experiment: str
    data: str
    dataset: str
    source: Relabelled | Subset
    templates: tuple[str, ...]
    image: str = "image"
    label: str = "label"
    metric: str = "top1"
    expected: Figures | None = None


def open_zero_shot(
    data: str,
    dataset: str = "custom",
    *,
    experiment: str = "zero_shot",
    template_set: str = "",
    templates: Sequence[str] = (),
    image: str = "image",
    label: str = "label",
    metric: str = "",
    data_dir: Path | None = None,
    limit: int | None = None,
) -> ZeroShot:
    """The task of a dataset spec.

    Args:
      data: a dataset spec (`data.spec`).
      dataset: a name or a .json file of classes and prompts (`prompts.load`).
      template_set: other templates that the dataset names.
      templates: in place of the dataset's.
      metric: in place of the one that is published.
      data_dir: where datasets of tensorflow-datasets were prepared.
      limit: that many pictures, drawn at random; all of them if None.
    """
    known = prompts.load(dataset, template_set)
    chosen = prompts.require_slots(templates) if templates else known.templates
    source = open_labelled(parse_spec(data), data_dir, image=image, label=label)
    aligned = align_labels(source, known.classes, known.folders)
    return ZeroShot(
        experiment=experiment,
        data=data,
        dataset=dataset,
        source=aligned if limit is None else Subset(aligned, limit),
        templates=chosen,
        image=image,
        label=label,
        metric=metric or known.metric,
    )


def run_zero_shot(task: ZeroShot, setup: Setup) -> dict[str, Any]:
    """Classify every picture, write the result to `setup.out`, and return it.

    A result under the same key is returned from the folder.
    """
    classes, out = task.source.names, setup.out
    key = setup.key(
        task.source,
        "labels",
        command=task.experiment,
        data=task.data,
        dataset=task.dataset,
        model=setup.name,
        metric=task.metric,
        published_figures=task.expected,
        classes=classes,
        prompts=task.templates,
    )
    if not setup.force and (kept := kept_result(out, key, setup.skip_limit)) is not None:
        return kept
    skips = Skips(setup.skip_limit)
    matrix = cached_classifier(setup.model, classes, task.templates, setup.cache)  # [c, e]
    blocks = setup.encode(
        task.source,
        out / "parts",
        key | keys.of_values(batch_size=setup.batch_size),
        skips,
        lambda block: classify_block(block, matrix),
        usable=lambda example: why_unusable(example, len(classes)),
        what="classifying",
    )
    predictions = blocks.join("label", "top", "score", "where")
    tally = Tally(len(classes))
    if len(predictions["label"]):
        tally.add(predictions["label"], predictions["top"])
    result = describe_zero_shot(task, setup, tally) | {
        "skipped": dict(skips.counts),
        "checksums": setup.checksums({"classes": classes, "templates": task.templates}),
        "key": key,
    }
    (out / "result.json").unlink(missing_ok=True)  # no old result beside a new plot
    plots.confusion(tally.confusion, classes, out / "confusion.png")
    results.save(out, result, predictions | {"confusion": tally.confusion})
    blocks.remove()
    return results.load(out)[0]


def kept_result(out: Path, key: Key, skip_limit: int) -> dict[str, Any] | None:
    """The result of that key in the folder; None where there is none.

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


def label_arrays(items: Sequence[Example]) -> Arrays:
    """label int [b] and where str [b] of labelled examples."""
    return {
        "label": np.array([example.label for example in items], np.int64),
        "where": np.array([example.where for example in items], np.str_),
    }


def classify_block(block: Block, matrix: np.ndarray) -> Arrays:
    """A block's rows of predictions.npz, by the classifier [c, e]."""
    k = min(5, len(matrix))
    if not block.items:
        top, score = np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    else:
        top, score = top_k(l2_normalize(block.features) @ matrix.T, k)
    return label_arrays(block.items) | {"top": top, "score": score}


def describe_zero_shot(task: ZeroShot, setup: Setup, tally: Tally) -> dict[str, Any]:
    """The object of result.json, but for `skipped`, `checksums` and `key`."""
    return {
        "experiment": task.experiment,
        "data": task.data,
        "columns": {"image": task.image, "label": task.label},
        "dataset": task.dataset,
        "model": setup.name,
        **results.describe_tally(tally, task.source.names, task.metric, task.expected),
        "templates": list(task.templates),
        "policy": setup.policy,
        "versions": results.read_versions(),
        "date": results.now(),
    }
