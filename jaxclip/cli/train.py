"""Commands that train and test models: train, evaluate."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tyro
from rich.table import Table

from jaxclip.cli.shared import (
    FAILED,
    AsJson,
    UsageError,
    load_model,
    print_line,
    print_table,
    require_whole_flag,
)
from jaxclip.training.recipe import PRESETS, Layout, TrainConfig


class Flags(TrainConfig):
    """A recipe as flags say it, not checked: `begin.begin_run` does so once its model is known."""

    def __post_init__(self) -> None:
        pass

    @classmethod
    def of(cls, recipe: TrainConfig) -> Self:
        """A recipe's numbers, as the defaults of flags."""
        return cls(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)})


QUICK = Flags.of(PRESETS["quick"])
# AvoidSubcommands: one for each kind of image tower would take the flags of the tower away
Recipe = Annotated[Flags, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
Spread = Annotated[Layout, tyro.conf.arg(name="")]
Preset = Annotated[str, tyro.conf.arg(metavar="{quick,full,RN50,...,ViT-L/14@336px}")]


def train(
    data: Annotated[tuple[str, ...], tyro.conf.Positional],
    flags: Recipe = QUICK,
    layout: Spread = Layout(),
    preset: Preset = "quick",
    out: Path | None = None,
    start: str = "",
    zero_shot: str = "",
    retrieval: str = "",
    weights: tuple[float, ...] = (),
    data_dir: Path | None = None,
    skip_limit: int = 1000,
    resume: bool = False,
    force: bool = False,
    tensorboard: bool = False,
    profile: bool = False,
    coordinator: str = "",
    processes: int = 1,
    process: int = 0,
    given: Annotated[frozenset[str], tyro.conf.Fixed, tyro.conf.Suppress] = frozenset(),
) -> int:
    """Train a CLIP on the embedded emoji, or on pictures with captions of your own.

    `jaxclip train emoji` tests the result on an artist whom it has never seen. Anything else names
    pictures with captions: a folder, a table (.csv, .tsv, .jsonl), tar shards or tfds:NAME:SPLIT.

    Args:
        data: "emoji", or one or more data sets.
        preset: Gives every flag its default: "quick" and "full" are for two cores (minutes, an
            hour); the name of a released model is the paper's recipe for it.
        out: The run folder; runs/emoji or runs/pairs unless given.
        start: A checkpoint to fine-tune, in any form that jaxclip loads; its model is trained, on
            texts of its context length unless --text-length says less.
        zero_shot: Pictures with classes that are held out, asked every --evaluate-every steps: a
            folder for each class, a table, tar shards, tfds:NAME:SPLIT or emoji:SPLIT.
        retrieval: Pictures with captions that are held out, asked in both directions.
        weights: Examples of each data set in a mixture; equal unless given.
        data_dir: Where tensorflow-datasets keeps what it has prepared.
        skip_limit: Broken pictures and empty captions that are left out before the run fails.
        resume: Go on with the run in --out, whose recipe and data need no flags; the layout on
            devices may be another.
        force: Start afresh although --out holds a run.
        tensorboard: Write the metrics to --out/tensorboard as well.
        profile: Write a trace of a few steps to --out/profile.
        coordinator: HOST:PORT of process 0 where several processes train together, or "auto" where
            the cluster knows them (TPU, Slurm).
        processes: How many there are.
        process: The number of this one, from 0.
        given: Names of the flags that the command line gives.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    if not (data or resume):
        raise UsageError('expected data: "emoji", or where pictures with captions are; got none')
    if resume and force:
        raise UsageError("expected --resume or --force, got both")
    if resume and not (data or out):
        raise UsageError("--resume: expected --out, the folder of the run to go on with; got none")
    require_whole_flag("--skip-limit", skip_limit, 0)
    require_whole_flag("--processes", processes, 1, 2**20)
    require_whole_flag("--process", process, 0, processes - 1)
    out = out or Path("runs", "emoji" if data == ("emoji",) else "pairs")
    from jaxclip.cli import begin, run  # they import jax
    from jaxclip.data.stream import Skips

    run.join(coordinator, processes, process)
    fed = begin.Fed(data, weights, start, zero_shot, retrieval, str(data_dir or ""), skip_limit)
    if resume:
        config, fed, flat = begin.resume_run(out, flags, fed, given)
    else:
        fed.require_weights()
        config, flat = begin.begin_run(flags, start, given)
    skips, mesh = Skips(fed.skip_limit), run.devices(layout)
    begin.require_layout(config, layout, mesh)
    begin.require_room(config, mesh)
    stream = run.stream(config, layout, fed, skips)
    evaluation = run.validation(config, mesh, fed)
    if tensorboard:
        run.require_tensorboard()
    with begin.lock_folder(out):
        begin.prepare_folder(out, config, fed, resume, force)
        model = run.run(
            config,
            layout,
            stream,
            out,
            skips=skips,
            mesh=mesh,
            evaluate=evaluation,
            start=flat,
            resume=resume,
            sinks=[run.tensorboard_sink(out / "tensorboard")] if tensorboard else [],
            profile=profile,
            again=begin.to_go_on(out, layout, tensorboard, coordinator, processes, process),
        )
    if model is None:
        return FAILED
    if run.is_first():
        _report(model, config, fed.data, out)
    return 0


def evaluate(model: str = "emoji", as_json: AsJson = False) -> int:
    """Test a model on the artist that the embedded pictures keep unseen, beside the floors.

    Args:
        model: "emoji" (the embedded model), a run folder, or a .safetensors file.
        as_json: Print one JSON object instead of a table.
    """
    from jaxclip.evaluation.classifier_cache import compiled
    from jaxclip.hub.released import cache_folder

    loaded = load_model(model, arrange=True)[0]

    def text_embeds(names: Sequence[str]) -> np.ndarray:
        return compiled(loaded, names, ("{}",), cache_folder(), truncate=True)

    _show_scores(_unseen_artist(loaded, text_embeds)[0], as_json)
    return 0


def _unseen_artist(
    model: Any, text_embeds: Callable[[Sequence[str]], np.ndarray] | None = None
) -> tuple[dict[str, Any], Any]:
    from jaxclip.data.emoji.pictures import emoji, unseen_artist
    from jaxclip.evaluation.named_pictures import Evaluation, nearest_pixels

    test = unseen_artist()
    evaluation = Evaluation(test, test.names)
    floor = nearest_pixels(test, emoji("train"))
    count = len(evaluation.classes)
    chance = {"top1": 1 / count, "top5": 5 / count}
    chance |= {
        f"{way}_r{k}": k / count for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    T_e = None if text_embeds is None else text_embeds(evaluation.classes)
    scores = {"model": evaluation(model, T_e), "pixel nearest neighbour": floor, "chance": chance}
    return {"classes": count, "pictures": len(test.names), "scores": scores}, evaluation


def _show_scores(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    scores = result["scores"]
    table = Table("metric", *scores, title=f"unseen artist, {result['classes']} names (%)")
    for metric in scores["model"]:
        cells = [f"{100 * s[metric]:.1f}" if metric in s else "" for s in scores.values()]
        table.add_row(metric.replace("_", " "), *cells)
    print_table(table)


def _report(model: Any, config: TrainConfig, data: tuple[str, ...], out: Path) -> None:
    from jaxclip.evaluation import plots

    plots.loss_curve(out / "metrics.jsonl", float(np.log(config.batch_size)), out / "loss.png")
    if data == ("emoji",):
        _report_emoji(model, out)
    print_line(
        f"wrote {out}: try it with  jaxclip classify examples/*.png --model {out} --labels ..."
    )


def _report_emoji(model: Any, out: Path) -> None:
    from jaxclip.checkpoint import replacing
    from jaxclip.evaluation import plots

    result, evaluation = _unseen_artist(model)
    with replacing(out / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    _show_scores(result, as_json=False)
    image_embeds, text_embeds = evaluation.embeds(model)
    scores = image_embeds @ text_embeds.T
    plots.answer_sheet(evaluation.pictures, evaluation.classes, scores, out / "answers.png")
    eight = np.random.default_rng(0).permutation(len(scores))[:8]
    names = [evaluation.pictures.names[i] for i in eight]
    cosines = scores[np.ix_(eight, evaluation.answers[eight])]
    plots.similarity(evaluation.pictures.images[eight], names, cosines, out / "similarity.png")
