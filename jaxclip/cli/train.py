"""The command that trains models."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tyro

from jaxclip.cli.evaluate import show_unseen_artist
from jaxclip.cli.shared import (
    FAILED,
    UsageError,
    print_line,
    require_whole_flag,
)
from jaxclip.training.recipe import Execution, Recipe, presets


class UncheckedRecipe(Recipe):
    """A recipe as flags give it, not checked yet: `begin.begin_run` does so with its model."""

    def __post_init__(self) -> None:
        pass

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The same numbers, not checked."""
        return cls(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)})


# AvoidSubcommands: one for each kind of image tower would take the flags of the tower away
RecipeFlags = Annotated[UncheckedRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
ExecutionFlags = Annotated[Execution, tyro.conf.arg(name="")]
Preset = Annotated[str, tyro.conf.arg(metavar="{quick,full,RN50,...,ViT-L/14@336px}")]
Given = Annotated[frozenset[str], tyro.conf.Fixed, tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """Train a CLIP on the embedded emoji, or on pictures with captions of your own.

    `jaxclip train emoji` tests the result on an artist whom it has never seen. Anything else names
    pictures with captions: a folder, a table (.csv, .tsv, .jsonl), tar shards or tfds:NAME:SPLIT.
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    """"emoji", or one or more data sets."""
    recipe: RecipeFlags = dataclasses.field(default_factory=UncheckedRecipe)
    execution: ExecutionFlags = Execution()
    preset: Preset = "quick"
    """Gives every flag its default: "quick" and "full" are for two cores (minutes, an hour); the
    name of a released model is the paper's recipe for it."""
    out: Path | None = None
    """The run folder; runs/emoji or runs/pairs unless given."""
    start: str = ""
    """A checkpoint to fine-tune, in any form that jaxclip loads; its model is trained, on texts of
    its context length unless --text-length says less."""
    zero_shot: str = ""
    """Held-out pictures with classes, classified every --evaluate-every steps: a folder for each
    class, a table, tar shards, tfds:NAME:SPLIT or emoji:SPLIT."""
    retrieval: str = ""
    """Held-out pictures with captions, retrieved in both directions."""
    weights: tuple[float, ...] = ()
    """Examples of each data set in a mixture; equal unless given."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps what it has prepared."""
    skip_limit: int = 1000
    """Broken pictures and empty captions that are left out before the run fails."""
    resume: bool = False
    """Continue the run in --out, whose recipe and data need no flags; the flags of its execution
    may differ."""
    force: bool = False
    """Start afresh although --out holds a run."""
    tensorboard: bool = False
    """Write the metrics to --out/tensorboard as well."""
    profile: bool = False
    """Write a trace of a few steps to --out/profile."""
    coordinator: str = ""
    """HOST:PORT of process 0 where several processes train together, or "auto" where the cluster
    knows them (TPU, Slurm)."""
    processes: int = 1
    """How many there are."""
    process: int = 0
    """The number of this one, from 0."""
    given: Given = frozenset()  # names of the flags on the command line

    @classmethod
    def with_defaults(cls, preset: str, given: frozenset[str]) -> Self:
        """The flags of a command line that gives none, for a preset; an unknown one is "quick"."""
        recipe = presets.get(preset, presets["quick"])
        return cls(recipe=UncheckedRecipe.of(recipe), given=given)

    def check(self) -> None:
        """UsageError where flags make no sense, alone or together."""
        if self.preset not in presets:
            known = ", ".join(presets)
            raise UsageError(f"--preset: expected one of {known}, got {self.preset!r}")
        if not (self.data or self.resume):
            raise UsageError(
                'expected data: "emoji", or where pictures with captions are; got none'
            )
        if self.resume and self.force:
            raise UsageError("expected --resume or --force, got both")
        if self.resume and not (self.data or self.out):
            raise UsageError("--resume: expected --out, the folder of the run, got none")
        require_whole_flag("--skip-limit", self.skip_limit, 0)
        require_whole_flag("--processes", self.processes, 1, 2**20)
        require_whole_flag("--process", self.process, 0, self.processes - 1)

    def run_folder(self) -> Path:
        """--out, or its default."""
        return self.out or Path("runs", "emoji" if self.data == ("emoji",) else "pairs")


def train(flags: TrainFlags) -> int:
    """Train as the flags say; the exit code."""
    flags.check()
    from jaxclip.cli import begin, run, run_folder  # they import jax
    from jaxclip.data.stream import Skips

    run.join(flags.coordinator, flags.processes, flags.process)
    out, execution = flags.run_folder(), flags.execution
    recipe, inputs, start = begin.begin_or_resume(flags, out)
    skips, mesh = Skips(inputs.skip_limit), run.devices(execution)
    begin.require_execution(recipe, execution, mesh)
    begin.require_memory(recipe, mesh)
    stream = run.open_stream(recipe, execution, inputs, skips)
    evaluate = run.held_out_evaluation(recipe, mesh, inputs)
    if flags.tensorboard:
        run.require_tensorboard()
    with run_folder.lock_folder(out):
        run_folder.prepare_folder(out, recipe, inputs, flags.resume, flags.force)
        model = run.run(
            recipe,
            execution,
            stream,
            out,
            skips=skips,
            mesh=mesh,
            evaluate=evaluate,
            start=start,
            resume=flags.resume,
            sinks=[run.tensorboard_sink(out / "tensorboard")] if flags.tensorboard else [],
            profile=flags.profile,
            resume_command=begin.resume_command(flags, out),
        )
    if model is None:
        return FAILED
    if run.is_first():
        _report(model, recipe, inputs.data, out)
    return 0


def _report(model: Any, recipe: Recipe, data: tuple[str, ...], out: Path) -> None:
    from jaxclip.evaluation import plots

    plots.loss_curve(out / "metrics.jsonl", float(np.log(recipe.batch_size)), out / "loss.png")
    if data == ("emoji",):
        _report_emoji(model, out)
    print_line(
        f"wrote {out}: try it with  jaxclip classify examples/*.png --model {out} --labels ..."
    )


def _report_emoji(model: Any, out: Path) -> None:
    from jaxclip.checkpoint import replacing
    from jaxclip.evaluation import plots
    from jaxclip.evaluation.named_pictures import evaluate_unseen_artist

    result, evaluation = evaluate_unseen_artist(model)
    with replacing(out / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    show_unseen_artist(result)
    image_embeds, text_embeds = evaluation.embeds(model)
    scores = image_embeds @ text_embeds.T
    plots.answer_sheet(evaluation.pictures, evaluation.classes, scores, out / "answers.png")
    eight = np.random.default_rng(0).permutation(len(scores))[:8]
    names = [evaluation.pictures.names[i] for i in eight]
    cosines = scores[np.ix_(eight, evaluation.answers[eight])]
    plots.similarity(evaluation.pictures.images[eight], names, cosines, out / "similarity.png")
