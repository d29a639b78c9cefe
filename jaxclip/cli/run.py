"""What `jaxclip train` does once its flags are understood. It imports jax: import it late."""

import contextlib
import gc
import importlib.util
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxclip.cli.begin import Fed
from jaxclip.cli.shared import UsageError, flag_error, stderr
from jaxclip.data.emoji.pictures import emoji, known
from jaxclip.data.labelled import labelled
from jaxclip.data.pairs import opened
from jaxclip.data.spec import Place, place
from jaxclip.data.stream import Skips
from jaxclip.data.texts import Cutter
from jaxclip.evaluation.held_out import HeldOut
from jaxclip.evaluation.named_pictures import Evaluation
from jaxclip.training import assembly, distributed, loop
from jaxclip.training.finetune import parameters_at_rate
from jaxclip.training.input_pipeline import Drawings, Pairs, Stream
from jaxclip.training.recipe import Layout, TrainConfig, parse_rates
from jaxclip.training.sharding import data_mesh

EMOJI = ("emoji",)
# of the metrics of an evaluation, those that are told while it runs
SHOWN = {"top1": "top-1", "image_to_text_r1": "image to text R@1", "text_to_image_r1": "back R@1"}
LESS_MEMORY = "try --remat full, more --parts, a smaller --batch-size or a smaller model"
WORTH_TELLING = 0.05  # of the time waiting for data


def join(coordinator: str, processes: int, process: int) -> None:
    """Meet the other processes, where there are any."""
    if coordinator == "auto":
        distributed.start()
    elif coordinator:
        if not 0 <= process < processes:
            raise UsageError(
                f"expected --process from 0 to {processes - 1}, below --processes, "
                f"got --process {process}"
            )
        distributed.start(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(jax.process_index() == 0)


def _place(text: str) -> Place:
    try:
        return place(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _folder(fed: Fed) -> Path | None:
    return Path(fed.data_dir) if fed.data_dir else None


def stream(config: TrainConfig, layout: Layout, fed: Fed, skips: Skips) -> Stream:
    """What `fed` names, as batches."""
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "text_length": config.text_length,
    }
    if "emoji" in fed.data and fed.data != EMOJI:
        raise UsageError("emoji cannot be mixed with other data: its drawings are in memory")
    places = [] if fed.data == EMOJI else [_place(text) for text in fed.data]
    sources = [opened(found, _folder(fed)) for found in places]
    try:
        if fed.data == EMOJI:
            return Drawings(emoji("train"), **common)
        return Pairs(
            sources,
            size=config.model.vision.image_size,
            skips=skips,
            weights=fed.weights or None,
            threads=layout.threads,
            **common,
        )
    except ValueError as error:
        raise flag_error(error) from None


def devices(layout: Layout) -> Mesh:
    """All devices, as the layout wants them; UsageError where they do not divide so."""
    try:
        return data_mesh(fsdp=layout.fsdp, tensor=layout.tensor)
    except ValueError as error:
        raise flag_error(error) from None


def validation(config: TrainConfig, mesh: Mesh, fed: Fed) -> Callable[[Any], dict[str, Any]] | None:
    """What is asked on a schedule: what the flags hold out, or of the emoji the same artists'."""
    if fed.zero_shot or fed.retrieval:
        return HeldOut(
            mesh,
            config.model.vision.image_size,
            config.model.text.context_length,
            labelled=labelled(_place(fed.zero_shot), _folder(fed)) if fed.zero_shot else None,
            pairs=opened(_place(fed.retrieval), _folder(fed)) if fed.retrieval else None,
            skip_limit=fed.skip_limit,
        )
    if fed.data != EMOJI:
        return None
    training = emoji("train")
    return Evaluation(known(emoji("validation"), training.names), training.names)


def require_tensorboard() -> None:
    """UsageError where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard: expected it installed; pip install 'jaxclip[tensorboard]'")


def tensorboard_sink(folder: Path) -> Callable[[dict[str, Any]], None]:
    """What writes every number to TensorBoard's event files; nothing on other processes."""
    if not is_first():
        return lambda values: None
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

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
def progress_bar(
    config: TrainConfig, skips: Skips, cutter: Cutter | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What shows a step: loss beside chance, temperature, speed, how many were skipped or cut."""
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
            cut = f", {cutter.count} captions cut" if cutter and cutter.count else ""
            line = (
                f"loss {values['loss']:.3f} (chance {chance:.3f}), logit scale "
                f"{values['logit_scale']:.1f}, {rate:.0f} images/s{waits}{skipped}{cut}"
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
    again: str,
    **options: Any,
) -> Any:
    """`loop.train` with a progress bar, until it ends or a signal ends it: None then.

    `again` is the command that goes on with it.
    """
    if config.rates and is_first():
        model = assembly.shapes(config, devices(layout))[0]
        caught = parameters_at_rate(model, parse_rates(config.rates))
        told = ", ".join(f"{count:,} at {factor:g}" for factor, count in sorted(caught.items()))
        stderr.print(f"parameters by factor on the learning rate: {told}", highlight=False)
    with one_voice(), stoppable() as asked, progress_bar(config, skips, feed.cutter) as show:
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
            stderr.print(f"{stop}; to go on: {again}", highlight=False, soft_wrap=True)
            return None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(f"{str(error).splitlines()[0]}; {LESS_MEMORY}") from None
        except MemoryError:
            raise ValueError(f"out of memory; {LESS_MEMORY}") from None
        finally:
            if feed.cutter.count:
                kept = f"{feed.cutter.told()}; the model takes {config.model.text.context_length}"
                stderr.print(f"{kept} (--text-length)", highlight=False, soft_wrap=True)
