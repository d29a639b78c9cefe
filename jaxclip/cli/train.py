"""Commands that train and test a model on the embedded pictures: train, evaluate."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxclip.cli.shared import FAILED, AsJson, UsageError, load_model, print_table, stderr
from jaxclip.config import PRESETS, TrainConfig

RUN_FILES = ("config.json", "state.safetensors", "metrics.jsonl", "model.safetensors")
# AvoidSubcommands: one for each kind of image tower would take the flags of the tower away
Recipe = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM set a flag, which the loop reads between steps; a second one is final."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stderr.print("stopping after this step ...")

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare_run(out: Path, config: TrainConfig, resume: bool, force: bool) -> None:
    saved = out / "config.json"
    if resume:
        if not saved.is_file():
            raise UsageError(f"{out} is no run folder: it has no config.json; leave out --resume")
        if TrainConfig.from_json(saved.read_text()) != config:
            raise UsageError(f"the flags differ from {saved}; a run is resumed with its own config")
        return
    if out.exists() and any(out.iterdir()) and not force:
        raise UsageError(f"{out} is there already; add --resume, --force or another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)
    from jaxclip.checkpoint import replacing

    with replacing(saved) as temporary:
        temporary.write_text(config.to_json() + "\n")


def train(
    data: Annotated[Literal["emoji"], tyro.conf.Positional],
    config: Recipe = PRESETS["quick"],
    preset: Literal["quick", "full"] = "quick",
    out: Path = Path("runs/emoji"),
    resume: bool = False,
    force: bool = False,
) -> int:
    """Train a CLIP from scratch on the embedded emoji and test it on an artist it has never seen.

    Args:
        data: What to train on.
        preset: "quick" takes minutes on two cores; "full" is how the embedded model was made.
        out: The run folder.
        resume: Go on with the run in --out.
        force: Start afresh although --out holds a run.
    """
    del preset  # `main` has made it the default of every flag of `config`
    _prepare_run(out, config, resume, force)
    from jaxclip.data.sources import emoji
    from jaxclip.evaluation.named_pictures import Evaluation, known
    from jaxclip.training import loop

    training = emoji("train")
    validation = Evaluation(known(emoji("validation"), training.names), training.names)
    chance = float(np.log(config.batch_size))
    columns = (TextColumn("{task.fields[line]}"), BarColumn(), MofNCompleteColumn())
    with _stoppable() as asked, Progress(*columns, TimeRemainingColumn(), console=stderr) as bar:
        task = bar.add_task("", total=config.steps, line="compiling ...")
        times: list[float] = []

        def progress(values: dict[str, Any]) -> None:
            times[:] = [*times[-20:], time.monotonic()]
            rate = config.batch_size * (len(times) - 1) / (times[-1] - times[0] or 1)
            line = (
                f"loss {values['loss']:.3f} (chance {chance:.3f}), logit scale "
                f"{values['logit_scale']:.1f}, {rate:.0f} images/s"
            )
            bar.update(task, completed=values["step"], line=line)
            if "top1" in values:
                score = f"{100 * values['top1']:.1f} %"
                bar.console.print(f"step {values['step']}: validation top-1 {score}")

        try:
            model = loop.train(
                config,
                training,
                out,
                resume=resume,
                evaluate=validation,
                progress=progress,
                should_stop=asked,
            )
        except loop.Stopped as stop:
            again = f"jaxclip {' '.join(sys.argv[1:])}"
            again += "" if resume else " --resume"
            stderr.print(f"{stop}; to go on: {again}", highlight=False, soft_wrap=True)
            return FAILED
    _report(model, config, out)
    return 0


def evaluate(model: str = "emoji", as_json: AsJson = False) -> int:
    """Test a model on the artist that the embedded pictures keep unseen, beside the floors.

    Args:
        model: "emoji" (the embedded model), a run folder, or a .safetensors file.
        as_json: Print one JSON object instead of a table.
    """
    _show_scores(_unseen_artist(load_model(model)[0].module)[0], as_json)
    return 0


def _unseen_artist(model: Any) -> tuple[dict[str, Any], Any]:
    from jaxclip.data.sources import emoji
    from jaxclip.evaluation.named_pictures import Evaluation, known, nearest_pixels

    training = emoji("train")
    test = known(emoji("test"), training.names + emoji("validation").names)
    evaluation = Evaluation(test, test.names)
    floor = nearest_pixels(test, training)
    count = len(evaluation.classes)
    chance = {"top1": 1 / count, "top5": 5 / count}
    chance |= {
        f"{way}_r{k}": k / count for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    }
    scores = {"model": evaluation(model), "pixel nearest neighbour": floor, "chance": chance}
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


def _report(model: Any, config: TrainConfig, out: Path) -> None:
    from jaxclip.checkpoint import replacing
    from jaxclip.evaluation import plots

    result, evaluation = _unseen_artist(model)
    with replacing(out / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    _show_scores(result, as_json=False)
    plots.loss_curve(out / "metrics.jsonl", float(np.log(config.batch_size)), out / "loss.png")
    image_embeds, text_embeds = evaluation.embeds(model)
    scores = image_embeds @ text_embeds.T
    plots.answer_sheet(evaluation.pictures, evaluation.classes, scores, out / "answers.png")
    eight = np.random.default_rng(0).permutation(len(scores))[:8]
    names = [evaluation.pictures.names[i] for i in eight]
    cosines = scores[np.ix_(eight, evaluation.answers[eight])]
    plots.similarity(evaluation.pictures.images[eight], names, cosines, out / "similarity.png")
    print(f"wrote {out}: try it with  jaxclip classify examples/*.png --model {out} --labels ...")
