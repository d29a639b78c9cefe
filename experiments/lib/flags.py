"""The flags that experiments share: a model and how it is run, and the pictures to classify."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.lib import common
from jaxclip.cli.shared import load_model, show_progress
from jaxclip.cli.usage import Natural, Positive
from jaxclip.evaluation.protocol import Setup, ZeroShot, open_zero_shot
from jaxclip.hub.released import cache_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The flags of every experiment on a model.

    Args:
        out: The folder of the result.
        model: "emoji", a released model's name, a run folder or a checkpoint file.
        policy: How pictures become pixels.
        batch_size: Pictures that go through the model at once.
        skip_limit: Unusable pictures that may be left out.
        data_dir: Where datasets of tensorflow-datasets were prepared.
        force: Start over although --out holds a run.
    """

    out: Path
    model: str = "emoji"
    policy: Literal["official", "safe"] = "official"
    batch_size: Positive = 64
    skip_limit: Natural = 100
    data_dir: Path | None = None
    force: bool = False

    def setup(self, out: Path | None = None) -> Setup:
        """The model, loaded, and how it is run; `out` in place of --out."""
        model, preprocess = load_model(self.model, arrange=True)
        return Setup(
            model,
            preprocess,
            self.model,
            out or self.out,
            policy=self.policy,
            batch_size=self.batch_size,
            skip_limit=self.skip_limit,
            force=self.force,
            cache=cache_folder(),
            progress=show_progress,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotFlags(ModelFlags):
    """The flags of zero-shot classification.

    Args:
        data: Pictures: tfds:NAME:SPLIT, class folders, a table, tar shards, emoji:test.
        template_set: Other templates that the dataset names, such as seven.
        prompts: Your own templates, one slot {} each.
        image: The feature or column with the picture.
        label: The feature or column with the class.
        metric: In place of the one that is published.
    """

    data: str
    template_set: str = ""
    prompts: tuple[str, ...] = ()
    image: str = "image"
    label: str = "label"
    metric: Literal["top1", "mean_per_class"] | None = None

    def task(self, dataset: str, experiment: str) -> ZeroShot:
        """The task, with the published figures of its metric."""
        task = open_zero_shot(
            self.data,
            dataset,
            experiment=experiment,
            template_set=self.template_set,
            templates=self.prompts,
            image=self.image,
            label=self.label,
            metric=self.metric or "",
            data_dir=self.data_dir,
        )
        figures = common.published(dataset, self.model, task.metric)
        return dataclasses.replace(task, expected=figures)
