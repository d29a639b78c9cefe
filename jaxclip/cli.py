"""The `jaxclip` command: one typed function a sub-command, flags made from its arguments."""

import contextlib
import functools
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxclip.config import PRESETS, TrainConfig
from jaxclip.data.loader import PROMPTS

FAILED, USAGE = 1, 2
DESCRIPTION = "CLIP in NumPy, JAX and Flax: classify pictures by words, train, evaluate."
RUN_FILES = ("config.json", "state.safetensors", "metrics.jsonl", "model.safetensors")
stderr = Console(stderr=True)


AsJson = Annotated[bool, tyro.conf.arg(name="json")]


class UsageError(Exception):
    """What was asked for does not make sense; the message says why."""


def _labels(labels: Sequence[str]) -> list[str]:
    cleaned = [label.strip() for label in labels]
    if not all(cleaned) or not cleaned:
        raise UsageError("--labels holds an empty label; give one or more words to choose from")
    twice = sorted({label for label in cleaned if cleaned.count(label) > 1})
    if twice:
        raise UsageError(f"--labels names {twice[0]!r} twice; give each label once")
    return cleaned


def classify(
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional],
    labels: tuple[str, ...],
    model: str = "emoji",
    prompts: tuple[str, ...] = PROMPTS,
    as_json: AsJson = False,
) -> int:
    """Rank labels for pictures: which words fit best?

    Args:
        pictures: Picture files.
        labels: Words to choose from, none of which the model was told were classes.
        model: "emoji" (the embedded model), a run folder, or a .safetensors file.
        prompts: Templates with one slot {}; the text embeddings of all are averaged.
        as_json: Print one JSON object a picture instead of tables.
    """
    chosen = _labels(labels)
    if not pictures:
        raise UsageError("no picture was given; name one or more picture files")
    from jaxclip import hub
    from jaxclip.evaluation.zero_shot import classifier, in_blocks, unit
    from jaxclip.pictures import open_image
    from jaxclip.tokenizer import tokenize

    clip, preprocess = hub.load(model)
    length = clip.config.text.context_length
    text_embeds = classifier(
        lambda texts: np.asarray(clip.encode_text(tokenize(texts, length))), chosen, prompts
    )
    images = np.stack([preprocess.safe(open_image(path)) for path in pictures])
    image_embeds = unit(in_blocks(clip.encode_image, images, min(len(images), 32)))
    logits = np.exp(float(clip.module.logit_scale[...])) * image_embeds @ text_embeds.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    for path, row, scores in zip(pictures, probabilities, logits, strict=True):
        ranking = [
            {"label": chosen[i], "probability": float(row[i]), "logit": float(scores[i])}
            for i in np.argsort(-row)
        ]
        _show_ranking(path, ranking, model, as_json)
    return 0


def _show_ranking(path: Path, ranking: list[dict[str, Any]], model: str, as_json: bool) -> None:
    if as_json:
        record = {"picture": str(path), "model": model, "policy": "safe", "labels": ranking}
        print(json.dumps(record))
        return
    table = Table("label", "probability", title=str(path), title_justify="left")
    for entry in ranking:
        table.add_row(entry["label"], f"{100 * entry['probability']:5.1f} %")
    Console().print(table)


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
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = PRESETS["quick"],
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
    from jaxclip import hub

    _show_scores(_unseen_artist(hub.load(model)[0].module)[0], as_json)
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
    Console().print(table)


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


def tokenize(
    texts: Annotated[tuple[str, ...], tyro.conf.Positional], as_json: AsJson = False
) -> int:
    """Show the tokens of texts, as the released tokenizer cuts them.

    Args:
        texts: One or more texts.
        as_json: Print one JSON object a text.
    """
    from jaxclip.tokenizer import decode, encode

    for text in texts:
        ids = encode(text)
        pieces = [decode([i]) for i in ids]
        if as_json:
            print(json.dumps({"text": text, "ids": ids, "pieces": pieces}))
        else:
            print(" ".join(f"{piece}|{i}" for piece, i in zip(pieces, ids, strict=True)))
    return 0


def _preset(arguments: Sequence[str]) -> TrainConfig:
    """The recipe that --preset names, which gives every other flag of `train` its default."""
    found = re.search(r"--preset[= ](\S+)", " ".join(arguments))
    return PRESETS.get(found[1] if found else "quick", PRESETS["quick"])


def _one_line(boxed: str) -> str:
    """What the flag parser drew as boxes, as one line."""
    words = re.sub(r"[╭╮╰╯│─]+", " ", boxed).split()
    return " ".join(words)


def _command(arguments: Sequence[str]) -> Callable[[], int]:
    """What to do, parsed; SystemExit 2 after one line about a usage error, 0 after --help."""
    train.__kwdefaults__ = None
    train.__defaults__ = (_preset(arguments), *train.__defaults__[1:])  # type: ignore[index]
    commands = {f.__name__: _later(f) for f in (classify, train, evaluate, tokenize)}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="jaxclip", description=DESCRIPTION, args=list(arguments)
            )
    except SystemExit as stop:
        if stop.code:
            print(f"jaxclip: {_one_line(told.getvalue())}", file=sys.stderr)
            raise SystemExit(USAGE) from None
        raise


def _later(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The same signature and help, but calling it only remembers the call."""

    @functools.wraps(function)
    def remember(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return lambda: function(*args, **kwargs)

    return remember


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 1 (failed, one line says why) or 2 (usage)."""
    try:
        return _command(sys.argv[1:] if arguments is None else arguments)()
    except UsageError as error:
        code = USAGE
        message = str(error)
    except (ValueError, OSError) as error:
        code = FAILED
        message = str(error)
    except KeyboardInterrupt:
        code, message = FAILED, "interrupted"
    print(f"jaxclip: {' '.join(message.split())}", file=sys.stderr)
    return code
