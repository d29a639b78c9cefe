"""The metrics of a run: metrics.jsonl, and how the numbers of each step reach it and the screen."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import jax

from jaxclip import checkpoint
from jaxclip.files import read_text, split_lines
from jaxclip.training.recipe import Recipe

Metrics = dict[str, Any]


class Diverged(ValueError):
    """The loss or a gradient is no longer finite."""


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


class MetricsLog:
    """Logs the metrics of each step one step late, so that the device never waits for the host."""

    def __init__(
        self,
        recipe: Recipe,
        checkpoints: Path,
        sinks: Sequence[Callable[[Metrics], None]],
        progress: Callable[[Metrics], None],
    ) -> None:
        self.recipe, self.checkpoints = recipe, checkpoints
        self.sinks, self.progress = sinks, progress
        self.began = time.monotonic()
        self.seconds_for_data = 0.0
        self.pending: tuple[int, Metrics] | None = None  # of a step that may still be running

    def time_data(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; how long each is waited for counts as `seconds_for_data`."""
        began = time.monotonic()
        for batch in batches:
            self.seconds_for_data += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def log_step(self, step: int, metrics: Metrics) -> None:
        """Remember the metrics of a step that has just begun; log those of the one before."""
        for value in metrics.values():
            value.copy_to_host_async()  # once the step ends, all of them; `flush` finds them here
        self.flush()
        self.pending = step, metrics

    def log_eval(self, step: int, scores: Metrics) -> None:
        """Log the scores of an evaluation; `flush` first."""
        self._write({"step": step, **scores})
        self.progress({"step": step, **scores})

    def flush(self) -> None:
        """Wait for the newest step and log it; Diverged if its loss or gradient is not finite."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        values["seconds"] = time.monotonic() - self.began
        values["seconds_for_data"] = self.seconds_for_data
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise Diverged(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; "
                f"what was saved before it, if anything, is in {self.checkpoints}; "
                "try a lower --learning-rate"
            )
        if step % self.recipe.log_every == 0 or step == self.recipe.steps:
            self._write(values)
        self.progress(values)

    def _write(self, values: Metrics) -> None:
        for sink in self.sinks:
            sink(values)


@contextlib.contextmanager
def open_log(path: Path, step: int) -> Iterator[Callable[[Metrics], None]]:
    """A function that appends a line to metrics.jsonl, whose lines after `step` are dropped.

    In processes other than 0 it does nothing.
    """
    if jax.process_index():
        yield lambda values: None
        return
    if step:
        keep_lines_until(path, step)
    else:
        path.unlink(missing_ok=True)  # it may be a pipe: opening that would wait
    with open(path, "ab" if step else "wb", buffering=0) as log:
        yield lambda values: append(log, values)
