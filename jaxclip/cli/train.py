"""The command that trains models."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.cli.evaluate import show_unseen_artist
from jaxclip.cli.shared import FAILED, print_line
from jaxclip.cli.train_flags import TrainFlags
from jaxclip.model_tokenizer import copy_beside
from jaxclip.training.recipe import Recipe


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
    inputs = run_folder.with_listings(inputs, stream.listings)
    evaluate = run.held_out_evaluation(recipe, mesh, inputs)
    if flags.tensorboard:
        run.require_tensorboard()
    with run_folder.lock_folder(out):
        run_folder.prepare_folder(out, recipe, inputs, flags.resume, flags.force)
        if run.is_first():
            copy_beside(recipe.model.text, out, force=True)
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
    if "emoji" in data:
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
