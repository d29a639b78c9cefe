"""What `jaxclip train` does once its flags are understood. It imports jax: import it late."""

import contextlib
import dataclasses
import gc
import json
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxclip import convert, hub
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import UsageError, stderr
from jaxclip.data.labelled import labelled
from jaxclip.data.pairs import opened
from jaxclip.data.place import Place, place
from jaxclip.data.sources import emoji, known
from jaxclip.data.stream import Skips
from jaxclip.evaluation.held_out import HeldOut
from jaxclip.evaluation.named_pictures import Evaluation
from jaxclip.tokenizer import check_vocabulary, tokenize
from jaxclip.training import assembly, distributed, loop
from jaxclip.training.finetune import parameters_at_rate
from jaxclip.training.recipe import Layout, TrainConfig, parse_rates
from jaxclip.training.sharding import data_mesh
from jaxclip.training.streams import Drawings, Pairs, Stream

FILES = ("config.json", "data.json", "metrics.jsonl", "model.safetensors", "average.safetensors")
FOLDERS = ("state", "state-damaged", "profile", "tensorboard")
EMOJI = ("emoji",)
# of the metrics of an evaluation, those that are told while it runs
SHOWN = {"top1": "top-1", "image_to_text_r1": "image to text R@1", "text_to_image_r1": "back R@1"}
WORTH_TELLING = 0.05  # of the time waiting for data


class Fed(NamedTuple):
    """What a run is fed with, besides its recipe; kept in data.json."""

    data: tuple[str, ...]
    weights: tuple[float, ...]
    start: str
    zero_shot: str
    retrieval: str


def join(coordinator: str, processes: int, process: int) -> None:
    """Meet the other processes, where there are any."""
    if coordinator == "auto":
        distributed.start()
    elif coordinator:
        if not 0 <= process < processes:
            raise UsageError(f"--process {process} came, with --processes {processes}")
        distributed.start(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(jax.process_index() == 0)


def with_start(config: TrainConfig, start: str) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The recipe with the model of a checkpoint, at the recipe's picture size, and its weights."""
    if not start:
        return config, None
    loaded = convert.load(hub.find(start))
    size = config.model.vision.image_size
    released = dataclasses.replace(
        loaded.config, vision=dataclasses.replace(loaded.config.vision, image_size=size)
    )
    if config.model == released:  # the recipe asks for this model, at a size of its own
        loaded = convert.at_size(loaded, size)
    length = min(config.text_length, loaded.config.text.context_length)
    return dataclasses.replace(config, model=loaded.config, text_length=length), dict(loaded.flat)


def prepare_folder(out: Path, config: TrainConfig, fed: Fed, resume: bool, force: bool) -> None:
    """The run folder with config.json and data.json, which a resumed run has to agree with."""
    if is_first():
        _prepare_folder(out, config, fed, resume, force)
    multihost_utils.sync_global_devices("the run folder is there")


def _prepare_folder(out: Path, config: TrainConfig, fed: Fed, resume: bool, force: bool) -> None:
    texts = {
        "config.json": config.to_json() + "\n",
        "data.json": json.dumps(fed._asdict(), indent=2) + "\n",
    }
    if resume:
        if not (out / "config.json").is_file():
            raise UsageError(f"{out} is no run folder: it has no config.json; leave out --resume")
        if TrainConfig.from_json((out / "config.json").read_text()) != config:
            raise UsageError(f"the flags differ from {out}/config.json; a run goes on with its own")
        if (out / "data.json").read_text() != texts["data.json"]:
            raise UsageError(f"the data differ from {out}/data.json; a run goes on with its own")
        return
    if out.exists() and any(out.iterdir()) and not force:
        raise UsageError(f"{out} is there already; add --resume, --force or another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name, text in texts.items():
        with replacing(out / name) as temporary:
            temporary.write_text(text)


def _place(text: str) -> Place:
    try:
        return place(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def stream(
    config: TrainConfig, layout: Layout, fed: Fed, data_dir: Path | None, skips: Skips
) -> Stream:
    """What `fed` names, as batches; ValueError where the model has another vocabulary."""
    check_vocabulary(tokenize(""), config.model.text.vocab_size)
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "text_length": config.text_length,
    }
    if fed.data == EMOJI:
        return Drawings(emoji("train"), **common)
    if "emoji" in fed.data:
        raise UsageError("emoji cannot be mixed with other data: its drawings are in memory")
    if fed.weights and (len(fed.weights) != len(fed.data) or min(fed.weights) <= 0):
        raise UsageError(f"{len(fed.data)} data sets came with --weights {list(fed.weights)}")
    places = [_place(text) for text in fed.data]
    return Pairs(
        [opened(found, data_dir) for found in places],
        size=config.model.vision.image_size,
        skips=skips,
        weights=fed.weights or None,
        threads=layout.threads,
        **common,
    )


def devices(layout: Layout) -> Mesh:
    """All devices, as the layout wants them; UsageError where they do not divide so."""
    try:
        return data_mesh(fsdp=layout.fsdp, tensor=layout.tensor)
    except ValueError as error:
        raise UsageError(str(error)) from None


def validation(
    config: TrainConfig, mesh: Mesh, fed: Fed, data_dir: Path | None, skip_limit: int
) -> Callable[[Any], dict[str, Any]] | None:
    """What is asked on a schedule: what the flags hold out, or of the emoji the same artists'."""
    if fed.zero_shot or fed.retrieval:
        return HeldOut(
            mesh,
            config.model.vision.image_size,
            config.text_length,
            labelled=labelled(_place(fed.zero_shot), data_dir) if fed.zero_shot else None,
            pairs=opened(_place(fed.retrieval), data_dir) if fed.retrieval else None,
            skip_limit=skip_limit,
        )
    if fed.data != EMOJI:
        return None
    training = emoji("train")
    return Evaluation(known(emoji("validation"), training.names), training.names)


def tensorboard_sink(folder: Path) -> Callable[[dict[str, Any]], None]:
    """What writes every number to TensorBoard's event files; nothing on other processes."""
    if not is_first():
        return lambda values: None
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        message = "--tensorboard needs pip install 'jaxclip[tensorboard]'"
        raise UsageError(message) from None
    writer = EventFileWriter(str(folder))

    def write(values: dict[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if name != "step"}
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        )
        writer.add_event(Event(wall_time=time.time(), step=values["step"], summary=summary))
        writer.flush()

    return write


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[int], bool]]:
    """Ctrl-C and SIGTERM set a flag, which the loop reads between steps; a second one is final.

    With several processes all stop after the same step, once one of them was told SIGTERM.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stderr.print("stopping after this step ...")

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress_bar(config: TrainConfig, skips: Skips) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What shows a step: loss beside chance, temperature, speed, how many were skipped."""
    chance = float(np.log(config.batch_size))
    columns = (TextColumn("{task.fields[line]}"), BarColumn(), MofNCompleteColumn())
    quiet = jax.process_index() > 0
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=quiet) as bar:
        task = bar.add_task("", total=config.steps, line="compiling ...")
        times: list[tuple[float, float]] = []  # of a step, and waited for data until then

        def show(values: dict[str, Any]) -> None:
            """The metrics of a step in the line, those of an evaluation above it."""
            shown = [f"{SHOWN[k]} {100 * values[k]:.1f} %" for k in SHOWN if k in values]
            if shown and not quiet:
                bar.console.print(f"step {values['step']}: held out: {', '.join(shown)}")
            if "loss" not in values:
                return
            times[:] = [*times[-20:], (values["seconds"], values["seconds_for_data"])]
            passed, waited = (last - first for first, last in zip(times[0], times[-1], strict=True))
            rate = config.batch_size * (len(times) - 1) / (passed or 1)
            share = waited / (passed or 1)
            waits = f" ({100 * share:.0f} % waiting)" if share > WORTH_TELLING else ""
            skipped = f", {skips.counts.total()} skipped" if skips.counts else ""
            line = (
                f"loss {values['loss']:.3f} (chance {chance:.3f}), logit scale "
                f"{values['logit_scale']:.1f}, {rate:.0f} images/s{waits}{skipped}"
            )
            bar.update(task, completed=values["step"], line=line)

        yield show


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Silence for Orbax's threads and coroutines, whose failures `Checkpoints` raises anyway."""
    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        gc.collect()
        threading.excepthook, sys.unraisablehook = before


def run(
    config: TrainConfig,
    layout: Layout,
    feed: Stream,
    out: Path,
    *,
    skips: Skips,
    evaluate: Callable[[Any], dict[str, Any]] | None,
    **options: Any,
) -> Any:
    """`loop.train` with a progress bar, until it ends or a signal ends it: None then."""
    if config.rates and is_first():
        model = assembly.shapes(config, devices(layout))[0]
        caught = parameters_at_rate(model, parse_rates(config.rates))
        told = ", ".join(f"{count:,} at {factor:g}" for factor, count in sorted(caught.items()))
        stderr.print(f"parameters by factor on the learning rate: {told}", highlight=False)
    with one_voice(), stoppable() as asked, progress_bar(config, skips) as show:
        try:
            return loop.train(
                config,
                feed,
                out,
                layout=layout,
                evaluate=evaluate,
                progress=show,
                should_stop=asked,
                **options,
            )
        except loop.Stopped as stop:
            again = f"jaxclip {' '.join(sys.argv[1:])}"
            again += "" if options.get("resume") else " --resume"
            stderr.print(f"{stop}; to go on: {again}", highlight=False, soft_wrap=True)
            return None
