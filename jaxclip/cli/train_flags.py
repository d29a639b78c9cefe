"""The flags of `jaxclip train`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Self

import tyro

from jaxclip.cli.shared import UsageError, require_whole_flag
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
Preset = Annotated[str, tyro.conf.arg(metavar="{quick,full,RN50,...,SigLIP-B/16,CLIP-ViT-H/14}")]
Given = Annotated[frozenset[str], tyro.conf.Fixed, tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """Train a CLIP on the embedded emoji, or on pictures with captions of your own.

    `jaxclip train emoji` tests the result on an artist whom it has never seen. Anything else names
    pictures with captions: a folder, a table (.csv, .tsv, .jsonl), tar shards or tfds:NAME:SPLIT.
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    """"emoji", "emoji" and a zip of icons (experiments.make_icons), or one or more data sets."""
    recipe: RecipeFlags = dataclasses.field(default_factory=UncheckedRecipe)
    execution: ExecutionFlags = Execution()
    preset: Preset = "quick"
    """Gives every flag its default: "quick" and "full" are for two cores (minutes, an hour); the
    name of a released model is the paper's recipe for it, SigLIP-B/16 and CLIP-ViT-H/14 are its
    authors' and LAION's."""
    out: Path | None = None
    """The run folder; runs/emoji or runs/pairs unless given."""
    start: str = ""
    """A checkpoint to fine-tune, in any form that jaxclip loads; its model is trained, on texts of
    its context length unless --text-length says less."""
    tokenizer: Path | None = None
    """A folder with a tokenizer.json, for a model from scratch whose vocabulary is not CLIP's; it
    travels with the weights."""
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
        if self.tokenizer and (self.resume or self.start):
            other = "--resume" if self.resume else "--start"
            raise UsageError(f"expected --tokenizer or {other}, whose model has its own, got both")
        if self.resume and not (self.data or self.out):
            raise UsageError("--resume: expected --out, the folder of the run, got none")
        require_whole_flag("--skip-limit", self.skip_limit, 0)
        require_whole_flag("--processes", self.processes, 1, 2**20)
        require_whole_flag("--process", self.process, 0, self.processes - 1)

    def run_folder(self) -> Path:
        """--out, or its default."""
        return self.out or Path("runs", "emoji" if "emoji" in self.data else "pairs")
