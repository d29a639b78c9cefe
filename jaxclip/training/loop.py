"""The training loop: batches in, checkpoints and metrics out, stoppable and resumable at any time.

A run folder holds
  config.json        the TrainConfig
  state.safetensors  everything needed to go on
  metrics.jsonl      one line every `log_every` steps, and one an evaluation
  model.safetensors  the result, written at the end
"""

import contextlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip import checkpoint
from jaxclip.config import TrainConfig
from jaxclip.data.loader import Batches
from jaxclip.data.sources import Pictures
from jaxclip.models import clip
from jaxclip.tokenizer import tokenize
from jaxclip.training import state as states
from jaxclip.training.optimizer import adamw
from jaxclip.training.sharding import data_mesh
from jaxclip.training.state import State
from jaxclip.training.step import sharded_step

STATE, METRICS, CONFIG, MODEL = (
    "state.safetensors",
    "metrics.jsonl",
    "config.json",
    "model.safetensors",
)
Metrics = dict[str, Any]


class Diverged(ValueError):
    """The loss or a gradient is no longer a number."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


def host_batch(batches: Batches, step: int, text_length: int) -> dict[str, np.ndarray]:
    """The arrays of one step, on the host: drawings, mirrorable, tokens (see `step.Batch`)."""
    batch = batches.at(step)
    return {
        "drawings": batches.pictures.images[batch.indices],
        "mirrorable": batch.mirrorable,
        "tokens": tokenize(batch.captions, text_length, truncate=True),
    }


def prefetch(make: Callable[[int], Any], start: int, stop: int, ahead: int = 2) -> Iterator[Any]:
    """make(start), ..., make(stop - 1), made in a thread while the caller computes."""
    results: queue.Queue[Any] = queue.Queue(ahead)
    ended = threading.Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(item, timeout=0.1)

    def work() -> None:
        try:
            for i in range(start, stop):
                put((make(i), None))
                if ended.is_set():
                    return
        except BaseException as error:  # handed to the caller, who raises it
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(start, stop):
            item, error = results.get()
            if error is not None:
                raise error
            yield item
    finally:
        ended.set()


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that a resumed run will write again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with checkpoint.replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))


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


def start_or_resume(config: TrainConfig, run: Path, resume: bool, optimizer: Any) -> State:
    """A fresh state, or the one that `run` was stopped in."""
    if resume and (run / STATE).exists():
        like_model = clip.abstract(config.model, remat=config.remat)
        state = states.load(run / STATE, (like_model, jax.eval_shape(optimizer.init, like_model)))
        keep_lines_until(run / METRICS, state.step)
        return state
    model = clip.create(config.model, config.seed, remat=config.remat)
    (run / METRICS).unlink(missing_ok=True)
    return State(model, jax.jit(optimizer.init)(model), 0)


def train(
    config: TrainConfig,
    pictures: Pictures,
    run: Path,
    *,
    resume: bool = False,
    evaluate: Callable[[Any], Metrics] | None = None,
    progress: Callable[[Metrics], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Any:
    """Train from scratch, or go on, and write `run`; the trained model comes back.

    Args:
      config: the recipe.
      pictures: what to train on, images uint8 [n, h, w, 4].
      run: the run folder; must exist and hold config.json.
      resume: continue from the state in `run`.
      evaluate: model -> metrics, called every `evaluate_every` steps and at the end.
      progress: called after every step with its metrics.
      should_stop: asked after every step; True saves the state and ends the run.

    Raises:
      Diverged: loss or gradient is not a number; the state saved last stays in `run`.
      Stopped: `should_stop` said so, and the state was saved.
    """
    optimizer = adamw(
        config.learning_rate,
        config.warmup,
        config.steps,
        config.weight_decay,
        tower=type(config.model.vision),
    )
    state = start_or_resume(config, run, resume, optimizer)
    batches = Batches(pictures, config.batch_size, config.seed)
    step_fn = sharded_step(data_mesh(), optimizer)
    key = jax.random.key(config.seed)
    arrays = prefetch(
        lambda i: host_batch(batches, i, config.text_length), state.step, config.steps
    )
    began = time.monotonic()
    with contextlib.closing(arrays), open(run / METRICS, "ab", buffering=0) as log:  # type: ignore[type-var]
        for batch in arrays:
            step_key = jax.random.fold_in(key, state.step)
            model, opt_state, metrics = step_fn(state.model, state.opt_state, batch, step_key)
            done = state.step + 1
            values = {name: float(value) for name, value in metrics.items()}
            values = {"step": done, **values, "seconds": time.monotonic() - began}
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                raise Diverged(
                    f"step {done}: loss {values['loss']}, gradient norm {values['grad_norm']}; "
                    f"what was saved before it, if anything, is in {run / STATE}; "
                    "try a lower --learning-rate"
                )
            state = State(model, opt_state, done)
            if done % config.log_every == 0 or done == config.steps:
                append(log, values)
            if evaluate and (done % config.evaluate_every == 0 or done == config.steps):
                scores = evaluate(model)
                append(log, {"step": done, **scores})
                values |= scores
            progress(values)
            stop = should_stop()
            if stop or done % config.save_every == 0 or done == config.steps:
                states.save(run / STATE, state)
            if stop and done < config.steps:
                raise Stopped(f"stopped after step {done} of {config.steps}")
    notes = {"trained_by": "jaxclip train emoji", "config": json.loads(config.to_json())}
    checkpoint.save(run / MODEL, clip.to_flat(state.model), config.model, notes)
    return state.model
