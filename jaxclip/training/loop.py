"""The training loop: writes checkpoints and metrics, stoppable and resumable after any step.

A run folder holds
  config.json          the Recipe
  state/               the newest few checkpoints (`checkpoints.py`)
  metrics.jsonl        one line every `log_every` steps, and one an evaluation
  model.safetensors    the result, written at the end
  average.safetensors  the moving average of the weights, if the recipe has one

Every process of a run calls `train`; process 0 writes the files, and each its part of the state.

The devices do not wait for the host: while one step runs, the next is dispatched and the batch
after it is placed; only then are the metrics of the first one read. At most two steps are in
flight. A save copies the state to the host before the next step overwrites it. Its files are
written while the run goes on; the loop waits for them at the next save and at the end only.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import checkpoint
from jaxclip.models.clip import Clip
from jaxclip.models.parameters import to_flat
from jaxclip.tokenizer import check_vocabulary
from jaxclip.training import distributed, from_recipe
from jaxclip.training.checkpoints import Checkpoints, Snapshot
from jaxclip.training.input_pipeline import HostBatch, Stream, prefetch
from jaxclip.training.metrics_log import Metrics, MetricsLog, open_log
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from jaxclip.training.state import TrainState

STATE, METRICS, CONFIG, MODEL, AVERAGE = (
    "state",
    "metrics.jsonl",
    "config.json",
    "model.safetensors",
    "average.safetensors",
)
STATISTICS_BATCHES = 50  # BatchNorm forgets a tenth a batch
PROFILED_STEPS = 5  # of --profile, after the first, which compiles


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


# The state ----------------------------------------------------------------------------------------


def _restore_or_start(
    recipe: Recipe,
    mesh: Mesh,
    checkpoints: Checkpoints,
    start: dict[str, Any] | None,
    resume: bool,
) -> Snapshot:
    """The newest snapshot of the run or, without one, that of a new run."""
    if resume:
        _, like = from_recipe.abstract_state(recipe, mesh)
        found = checkpoints.restore(like, from_recipe.state_shardings(recipe, mesh))
        if found is not None:
            return found
    state = from_recipe.first_state(recipe, mesh, start)
    return Snapshot(state, [], json.loads(recipe.to_json()))


def _gather_positions(own: int) -> list[int]:
    """The positions of all processes, each of which knows its own only."""
    if jax.process_count() == 1:
        return [own]
    return [int(i) for i in multihost_utils.process_allgather(np.int64(own)).ravel()]


def _averaged(
    recipe: Recipe, execution: Execution, mesh: Mesh, stream: Stream, state: TrainState
) -> TrainState:
    """The state with the moving average of the weights in their place.

    BatchNorm's statistics are those of the weights that they were taken with. So the average gets
    its own, from the batches that would come next (Izmailov et al. 2018, section 3.2).
    """
    state = state._replace(params=state.opt_state.average)
    if not jax.tree.leaves(state.stats):
        return state
    step_fn = from_recipe.compiled_statistics_step(recipe, execution, mesh, stream.batch_to_pixels)
    place = functools.partial(_place, recipe, mesh)
    with contextlib.closing(prefetch(stream, STATISTICS_BATCHES, place)) as batches:
        for i, (batch, _) in enumerate(batches, start=recipe.steps):
            stats = step_fn(state, batch, jax.random.fold_in(state.key, i))
            state = state._replace(stats=stats)
    return state


def _write_model(recipe: Recipe, file: Path, snapshot: Snapshot, mesh: Mesh) -> Clip:
    """Write a result file; returns its model, whole on every device."""
    graphdef, _ = from_recipe.abstract_state(recipe, mesh)
    replicate = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
    model = replicate(snapshot.state.model(graphdef))
    notes = {"trained_by": "jaxclip train", "config": snapshot.recipe}
    if jax.process_index() == 0:
        checkpoint.save(file, to_flat(model), recipe.model, notes)
    return model


def _place(recipe: Recipe, mesh: Mesh, batch: HostBatch) -> dict[str, jax.Array]:
    """A process's rows on its devices; ValueError where the model has no such token."""
    check_vocabulary(batch["tokens"], recipe.model.text.vocab_size)
    return distributed.global_batch(mesh, batch)


# The loop -----------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    stream: Stream,
    run: Path,
    *,
    execution: Execution = Execution(),
    mesh: Mesh | None = None,
    start: dict[str, Any] | None = None,
    resume: bool = False,
    evaluate: Callable[[Any], Metrics] | None = None,
    progress: Callable[[Metrics], None] = lambda _: None,
    should_stop: Callable[[int], bool] = lambda _: False,
    sinks: Sequence[Callable[[Metrics], None]] = (),
    profile: bool = False,
) -> Clip:
    """The trained model; the run folder holds it too, with metrics and checkpoints.

    Args:
      recipe: what to train, and how.
      stream: what to train on.
      run: the run folder; must exist and hold config.json.
      execution: how to run it on the devices.
      mesh: the devices; all of them unless given.
      start: flat parameters to begin with in place of random ones.
      resume: continue from the newest state in `run` that can be read.
      evaluate: model -> scores, called every `evaluate_every` steps and at the end.
      progress: called with the metrics of every step, one step late, and with all scores.
      should_stop: called after every step, with its number; True saves the state and ends the run.
      sinks: also called with each line of metrics.jsonl.
      profile: write a trace of a few steps to `run`/profile.

    Raises:
      metrics_log.Diverged: loss or gradient is not finite; the state saved last stays in `run`.
      Stopped: `should_stop` returned True, and the state was saved.
      OSError: a file cannot be written; what was saved before is untouched.
    """
    mesh = mesh or data_mesh(fsdp=execution.fsdp, tensor=execution.tensor)
    step_fn = from_recipe.compiled_step(recipe, execution, mesh, stream.batch_to_pixels)
    graphdef, _ = from_recipe.abstract_state(recipe, mesh)
    with contextlib.ExitStack() as stack:
        open_ = stack.enter_context
        checkpoints = open_(contextlib.closing(Checkpoints(run / STATE, execution.keep)))
        snapshot = _restore_or_start(recipe, mesh, checkpoints, start, resume)
        state, begun = snapshot.state, int(snapshot.state.step)
        if begun:
            stream.seek(snapshot.position)
        lines = open_(open_log(run / METRICS, begun))
        place = functools.partial(_place, recipe, mesh)
        batches = open_(contextlib.closing(prefetch(stream, recipe.steps - begun, place)))
        trace = open_(_trace(run / "profile", begun + 1 if profile else None))
        log = MetricsLog(recipe, run / STATE, (lines, *sinks), progress)
        for step, (batch, position) in enumerate(log.time_data(batches), start=begun + 1):
            trace(step - 1)
            key = jax.random.fold_in(state.key, step - 1)
            state, metrics = step_fn(state, batch, key)
            log.log_step(step, metrics)
            stop, last = should_stop(step), step == recipe.steps
            if evaluate and (last or step % recipe.evaluate_every == 0):
                log.flush()  # a model that has diverged is not evaluated
                log.log_eval(step, evaluate(state.model(graphdef)))
            if stop or last or step % recipe.save_every == 0:
                log.flush()  # nor is it saved
                snapshot = Snapshot(state, _gather_positions(position), snapshot.recipe)
                checkpoints.save(step, snapshot)
            if stop and not last:
                checkpoints.finish()
                raise Stopped(f"stopped after step {step} of {recipe.steps}")
        checkpoints.finish()
        snapshot = snapshot._replace(state=state)
        model = _write_model(recipe, run / MODEL, snapshot, mesh)
        if recipe.average:  # after the model, which is safe by then
            average = _averaged(recipe, execution, mesh, stream, state)
            _write_model(recipe, run / AVERAGE, snapshot._replace(state=average), mesh)
        return model


@contextlib.contextmanager
def _trace(folder: Path, first: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of steps done: from `first` on it traces a few."""
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
