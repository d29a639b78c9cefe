"""The training loop: batches in, checkpoints and metrics out, stoppable and resumable at any time.

A run folder holds
  config.json          the TrainConfig
  state/               what is needed to go on, the newest few (`checkpoints.py`)
  metrics.jsonl        one line every `log_every` steps, and one an evaluation
  model.safetensors    the result, written at the end
  average.safetensors  the moving average of the weights, if the config asks for one

Every process of a run calls `train`; process 0 writes the files, and each its part of the state.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import checkpoint
from jaxclip.files import read_text, split_lines
from jaxclip.models import parameters
from jaxclip.tokenizer import check_vocabulary
from jaxclip.training import assembly, distributed
from jaxclip.training.checkpoints import Checkpoints, RunState
from jaxclip.training.finetune import average_model
from jaxclip.training.input_pipeline import Stream, ahead
from jaxclip.training.recipe import Layout, TrainConfig
from jaxclip.training.sharding import data_mesh

STATE, METRICS, CONFIG, MODEL, AVERAGE = (
    "state",
    "metrics.jsonl",
    "config.json",
    "model.safetensors",
    "average.safetensors",
)
PROFILED_STEPS = 5  # of --profile, after the first, which compiles
Metrics = dict[str, Any]


class Diverged(ValueError):
    """The loss or a gradient is no longer a number."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


# The log ------------------------------------------------------------------------------------------


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that a resumed run will write again.

    ValueError names a line that is no record; a last one without its end is dropped.
    """
    if path.exists():
        lines = split_lines(read_text(path))
        if lines and not lines[-1].endswith("}"):
            lines.pop()
        kept = [line for n, line in enumerate(lines, start=1) if _step_of(line, path, n) <= step]
        with checkpoint.replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step_of(line: str, path: Path, number: int) -> int:
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, LookupError, RecursionError):
        step = None
    if type(step) is not int:
        raise ValueError(
            f'{path}, line {number}: expected a JSON object with a whole number "step", '
            f"got {line[:60]!r}; delete the line to go on"
        )
    return step


def append(log: FileIO, values: Metrics) -> None:
    """One line of metrics.jsonl; OSError names the file when the disk does not take it.

    `log` is unbuffered, so that nothing is left for its closing to fail on.
    """
    try:
        log.write((json.dumps(values) + "\n").encode())
    except OSError as error:
        raise OSError(
            f"cannot write {log.name}: {error.strerror}; what was saved before is untouched"
        ) from None


class _Teller:
    """Where numbers go: those of a step are waited for while the next one runs."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        sinks: Sequence[Callable[[Metrics], None]],
        progress: Callable[[Metrics], None],
    ) -> None:
        self.config, self.run, self.sinks, self.progress = config, run, sinks, progress
        self.began = time.monotonic()
        self.waited = 0.0  # seconds, for data
        self.running: tuple[int, Metrics] | None = None  # dispatched, its numbers not waited for

    def fed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, and on the clock how long each is waited for."""
        began = time.monotonic()
        for batch in batches:
            self.waited += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """A step was begun: tell the one before it."""
        self.wait()
        self.running = step, metrics

    def wait(self) -> None:
        """Tell the step that was begun last; Diverged when its numbers are none."""
        if self.running is None:
            return
        step, metrics = self.running
        self.running = None
        values = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        values["seconds"] = time.monotonic() - self.began
        values["seconds_for_data"] = self.waited
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise Diverged(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; "
                f"what was saved before it, if anything, is in {self.run / STATE}; "
                "try a lower --learning-rate"
            )
        if step % self.config.log_every == 0 or step == self.config.steps:
            self._keep(values)
        self.progress(values)

    def scored(self, step: int, scores: Metrics) -> None:
        """Tell an evaluation."""
        self._keep({"step": step, **scores})
        self.progress({"step": step, **scores})

    def _keep(self, values: Metrics) -> None:
        for sink in self.sinks:
            sink(values)


# The state ----------------------------------------------------------------------------------------


def _begin(
    config: TrainConfig, mesh: Mesh, stored: Checkpoints, flat: dict[str, Any] | None, resume: bool
) -> RunState:
    """The newest state of the run, or a first one. The key is the same throughout a run."""
    if resume:
        found = stored.restore(assembly.shapes(config, mesh), assembly.places(config, mesh))
        if found is not None:
            return found
    model, opt_state = assembly.first_state(config, mesh, flat)
    key = jax.random.key(config.seed)
    return RunState(model, opt_state, 0, key, None, json.loads(config.to_json()))


def _positions(own: int) -> list[int]:
    """The positions of all processes, which each of them knows only its own of."""
    if jax.process_count() == 1:
        return [own]
    return [int(i) for i in multihost_utils.process_allgather(np.int64(own)).ravel()]


def _write_models(config: TrainConfig, run: Path, state: RunState, mesh: Mesh) -> Any:
    """The result files; the model whole on every device, as it comes back."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
    model = whole(state.model)
    written = {MODEL: model}
    if config.average:
        written[AVERAGE] = whole(average_model(state.model, state.opt_state))
    notes = {"trained_by": "jaxclip train", "config": state.config}
    if jax.process_index() == 0:
        for name, each in written.items():
            checkpoint.save(run / name, parameters.to_flat(each), config.model, notes)
    return model


# The loop -----------------------------------------------------------------------------------------


def train(
    config: TrainConfig,
    stream: Stream,
    run: Path,
    *,
    layout: Layout = Layout(),
    mesh: Mesh | None = None,
    start: dict[str, Any] | None = None,
    resume: bool = False,
    evaluate: Callable[[Any], Metrics] | None = None,
    progress: Callable[[Metrics], None] = lambda _: None,
    should_stop: Callable[[int], bool] = lambda _: False,
    sinks: Sequence[Callable[[Metrics], None]] = (),
    profile: bool = False,
) -> Any:
    """Train from scratch, or go on, and write `run`; the trained model comes back.

    Args:
      config: the recipe.
      stream: what to train on.
      run: the run folder; must exist and hold config.json.
      layout: how it lies on the devices.
      mesh: the devices; all of them unless given.
      start: flat parameters to begin with in place of random ones.
      resume: continue from the newest state in `run` that can be read.
      evaluate: model -> metrics, called every `evaluate_every` steps and at the end.
      progress: called with the metrics of every step, one step late, and with every evaluation's.
      should_stop: asked after every step, with its number; True saves the state and ends the run.
      sinks: also called with what goes to metrics.jsonl.
      profile: write a trace of a few steps to `run`/profile.

    Raises:
      Diverged: loss or gradient is not a number; the state saved last stays in `run`.
      Stopped: `should_stop` said so, and the state was saved.
      OSError: a file cannot be written; what was saved before is untouched.
    """
    mesh = mesh or data_mesh(fsdp=layout.fsdp, tensor=layout.tensor)
    step_fn = assembly.compiled_step(config, layout, mesh, stream.prepare)
    with contextlib.ExitStack() as stack:
        stored = stack.enter_context(contextlib.closing(Checkpoints(run / STATE, layout.keep)))
        state = _begin(config, mesh, stored, start, resume)
        if state.step:
            stream.seek(state.position)
        log = stack.enter_context(_log(run, state.step))
        batches = stack.enter_context(contextlib.closing(ahead(stream, config.steps - state.step)))
        trace = stack.enter_context(_trace(run / "profile", state.step + 1 if profile else None))
        tell = _Teller(config, run, (log, *sinks), progress)
        key = distributed.everywhere(mesh, state.key)
        for host_batch, position in tell.fed(batches):
            trace(state.step)
            check_vocabulary(host_batch["tokens"], config.model.text.vocab_size)
            batch = distributed.global_batch(mesh, host_batch)
            step_key = jax.random.fold_in(key, state.step)
            model, opt_state, metrics = step_fn(state.model, state.opt_state, batch, step_key)
            done = state.step + 1
            state = state._replace(model=model, opt_state=opt_state, step=done)
            tell.dispatched(done, metrics)
            stop, last = should_stop(done), done == config.steps
            if evaluate and (last or done % config.evaluate_every == 0):
                tell.wait()
                tell.scored(done, evaluate(model))
            if stop or last or done % config.save_every == 0:
                tell.wait()  # what has diverged is not saved
                stored.save(state._replace(position=_positions(position)))
            if stop and not last:
                stored.finish()
                raise Stopped(f"stopped after step {done} of {config.steps}")
        stored.finish()
        return _write_models(config, run, state, mesh)


@contextlib.contextmanager
def _log(run: Path, step: int) -> Any:
    """What appends a line to metrics.jsonl, whose lines after `step` are dropped: process 0's."""
    if jax.process_index():
        yield lambda values: None
        return
    if step:
        keep_lines_until(run / METRICS, step)
    else:
        (run / METRICS).unlink(missing_ok=True)  # whatever it is: opening a pipe would wait
    with open(run / METRICS, "ab" if step else "wb", buffering=0) as log:
        yield lambda values: append(log, values)


@contextlib.contextmanager
def _trace(folder: Path, first: int | None) -> Any:
    """What, told the number of each step, traces PROFILED_STEPS of them from `first` on."""
    running = False

    def at(step: int) -> None:
        nonlocal running
        if step == first:
            jax.profiler.start_trace(str(folder))
            running = True
        elif running and first is not None and step == first + PROFILED_STEPS:
            jax.profiler.stop_trace()
            running = False

    try:
        yield at
    finally:
        if running:
            jax.profiler.stop_trace()
