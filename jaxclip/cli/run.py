"""The parts of `jaxclip train` that need jax: devices, data, evaluation, the run itself."""

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

from jaxclip.cli.run_folder import RunInputs
from jaxclip.cli.shared import UsageError, flag_error, stderr
from jaxclip.data.emoji.icons import ICON_SHARES, is_icons, load_icons
from jaxclip.data.emoji.pictures import load_emoji, select_names
from jaxclip.data.labelled import open_labelled
from jaxclip.data.pairs import open_pairs
from jaxclip.data.spec import DataSpec, parse_spec
from jaxclip.data.stream import Skips
from jaxclip.data.texts import Cutter
from jaxclip.evaluation.held_out import HeldOut
from jaxclip.evaluation.named_pictures import Evaluation, UnseenArtists
from jaxclip.training import distributed, from_recipe, loop
from jaxclip.training.finetune import parameters_at_rate
from jaxclip.training.input_pipeline import DrawingStream, MixedDrawings, PairStream, Stream
from jaxclip.training.recipe import Execution, Recipe, parse_rates
from jaxclip.training.sharding import data_mesh

EMOJI = ("emoji",)
# the scores of an evaluation that are shown while training runs
SHOWN = {"top1": "top-1", "image_to_text_r1": "image to text R@1", "text_to_image_r1": "back R@1"}
LESS_MEMORY = "try --remat full, more --microbatches, a smaller --batch-size or a smaller model"
WORTH_SHOWING = 0.05  # share of the time that is spent waiting for data


def join(coordinator: str, processes: int, process: int) -> None:
    """Connect to the other processes, where there are any."""
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


def _parse_spec(text: str) -> DataSpec:
    try:
        return parse_spec(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _data_dir(inputs: RunInputs) -> Path | None:
    return Path(inputs.data_dir) if inputs.data_dir else None


def open_stream(recipe: Recipe, execution: Execution, inputs: RunInputs, skips: Skips) -> Stream:
    """The batches of a run, from the data that its inputs name."""
    common: dict[str, Any] = {
        "size": recipe.model.vision.image_size,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "text_length": recipe.text_length,
        "preprocessing": recipe.model.pictures,
        "text": recipe.model.text,
    }
    icons = icons_beside_emoji(inputs.data)
    specs = [] if "emoji" in inputs.data else [_parse_spec(text) for text in inputs.data]
    sources = [open_pairs(spec, _data_dir(inputs)) for spec in specs]
    try:
        if inputs.data == EMOJI:
            return DrawingStream(load_emoji("train"), **common)
        if icons:
            emoji, zipped = inputs.weights or (1, 1)
            shares = [emoji, *(zipped * share for share in ICON_SHARES)]
            return MixedDrawings([load_emoji("train"), *load_icons(icons)], shares, **common)
        return PairStream(
            sources,
            skips=skips,
            weights=inputs.weights or None,
            decoder=recipe.decoder,
            threads=execution.threads,
            **common,
        )
    except ValueError as error:
        raise flag_error(error) from None


def icons_beside_emoji(data: tuple[str, ...]) -> Path | None:
    """The zip of icons in the data "emoji ICONS.zip"; None for other data."""
    if "emoji" not in data or data == EMOJI:
        return None
    path = Path(data[-1])
    if len(data) != 2 or data[0] != "emoji" or not is_icons(path):
        raise UsageError(
            'data: expected "emoji", alone or beside one zip of icons (experiments.make_icons), '
            f"got {' '.join(data)}; train on other data without it"
        )
    return path


def devices(execution: Execution) -> Mesh:
    """The mesh of all devices; UsageError where they cannot be divided so."""
    try:
        return data_mesh(fsdp=execution.fsdp, tensor=execution.tensor)
    except ValueError as error:
        raise flag_error(error) from None


def held_out_evaluation(
    recipe: Recipe, mesh: Mesh, inputs: RunInputs
) -> Callable[[Any], dict[str, Any]] | None:
    """model -> scores on what the flags hold out or, of the emoji, on other artists' drawings."""
    if inputs.zero_shot or inputs.retrieval:
        folder, labelled, pairs = _data_dir(inputs), None, None
        if inputs.zero_shot:
            labelled = open_labelled(_parse_spec(inputs.zero_shot), folder)
        if inputs.retrieval:
            pairs = open_pairs(_parse_spec(inputs.retrieval), folder)
        return HeldOut(
            mesh,
            recipe.model,
            labelled=labelled,
            pairs=pairs,
            skip_limit=inputs.skip_limit,
        )
    if "emoji" not in inputs.data:
        return None
    training = load_emoji("train")
    emoji = Evaluation(select_names(load_emoji("validation"), training.names), training.names)
    icons = icons_beside_emoji(inputs.data)
    return UnseenArtists(emoji, icons) if icons else emoji


def require_tensorboard() -> None:
    """UsageError where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard: expected it installed; pip install 'jaxclip[tensorboard]'")


def tensorboard_sink(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes metrics to TensorBoard's event files; in process 0 only."""
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
    """Whether to stop after a step: Ctrl-C and SIGTERM ask for it; a second one stops at once.

    With several processes all stop after the same step, once one of them received SIGTERM.
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
    recipe: Recipe, skips: Skips, cutter: Cutter | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that shows a step's loss beside chance, temperature, speed, what was skipped."""
    chance = float(np.log(recipe.batch_size))
    columns = (TextColumn("{task.fields[line]}"), BarColumn(), MofNCompleteColumn())
    quiet = jax.process_index() > 0
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=quiet) as bar:
        task = bar.add_task("", total=recipe.steps, line="compiling ...")
        times: list[tuple[float, float]] = []  # seconds at a step, and of them waiting for data

        def show(values: dict[str, Any]) -> None:
            """Show the metrics of a step in the line, the scores of an evaluation above it."""
            shown = [f"{SHOWN[k]} {100 * values[k]:.1f} %" for k in SHOWN if k in values]
            if shown and not quiet:
                bar.console.print(f"step {values['step']}: held out: {', '.join(shown)}")
            if "loss" not in values:
                return
            times[:] = [*times[-20:], (values["seconds"], values["seconds_for_data"])]
            passed, waited = (last - first for first, last in zip(times[0], times[-1], strict=True))
            rate = recipe.batch_size * (len(times) - 1) / (passed or 1)
            share = waited / (passed or 1)
            waits = f" ({100 * share:.0f} % waiting)" if share > WORTH_SHOWING else ""
            skipped = f", {skips.counts.total()} skipped" if skips.counts else ""
            cut = f", {cutter.count} captions cut" if cutter and cutter.count else ""
            line = (
                f"loss {values['loss']:.3f} (chance {chance:.3f}), logit scale "
                f"{values['logit_scale']:.1f}, {rate:.0f} images/s{waits}{skipped}{cut}"
            )
            bar.update(task, completed=values["step"], line=line)

        yield show


@contextlib.contextmanager
def quiet_orbax_threads() -> Iterator[None]:
    """Silence Orbax's threads and coroutines: `Checkpoints` raises their failures anyway."""
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
    recipe: Recipe,
    execution: Execution,
    stream: Stream,
    out: Path,
    *,
    skips: Skips,
    mesh: Mesh,
    resume_command: str,
    **options: Any,
) -> Any:
    """`loop.train` with a progress bar; None where a signal ended it.

    `resume_command` is printed then.
    """
    if recipe.rates and is_first():
        _print_rates(recipe, mesh)
    cutter = stream.cutter
    with quiet_orbax_threads(), stoppable() as stop, progress_bar(recipe, skips, cutter) as show:
        try:
            return loop.train(
                recipe,
                stream,
                out,
                execution=execution,
                mesh=mesh,
                progress=show,
                should_stop=stop,
                **options,
            )
        except loop.Stopped as stopped:
            message = f"{stopped}; to continue: {resume_command}"
            stderr.print(message, highlight=False, soft_wrap=True)
            return None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(f"{str(error).splitlines()[0]}; {LESS_MEMORY}") from None
        except MemoryError:
            raise ValueError(f"out of memory; {LESS_MEMORY}") from None
        finally:
            if cutter.count:
                context = recipe.model.text.context_length
                message = f"{cutter.describe()}; the model takes {context} (--text-length)"
                stderr.print(message, highlight=False, soft_wrap=True)


def _print_rates(recipe: Recipe, mesh: Mesh) -> None:
    params = from_recipe.abstract_state(recipe, mesh)[1].params
    counts = parameters_at_rate(params, parse_rates(recipe.rates))
    shown = ", ".join(f"{count:,} at {factor:g}" for factor, count in sorted(counts.items()))
    stderr.print(f"parameters by factor on the learning rate: {shown}", highlight=False)
