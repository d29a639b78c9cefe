"""The device never waits for the host: by a device, an input and a disk that this test holds back.

Each is slow until what the loop owes it has happened; a loop that waits first runs into PATIENCE.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import future

from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.training import distributed, from_recipe, loop
from jaxclip.training.checkpoints import Checkpoints
from jaxclip.training.input_pipeline import DrawingStream
from jaxclip.training.metrics_log import MetricsLog
from jaxclip.training.recipe import Recipe
from jaxclip.training.sharding import data_mesh

pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs")

STEPS = 9
RECIPE = Recipe(
    steps=STEPS,
    batch_size=4,
    save_every=100,
    evaluate_every=100,
    log_every=1,
    text_length=8,
    model=ClipConfig(
        VisionConfig(image_size=16, patch_size=8, width=8, layers=1, heads=1),
        TextConfig(width=8, kind="cbow", context_length=8),
        embed_dim=8,
    ),
)
PATIENCE = 0.5  # seconds, of the negative twins; otherwise nothing waits that long


class SlowDevice:
    """Ends a step only when the next one is dispatched and the batch after that one is placed."""

    def __init__(self, steps: int = STEPS, patience: float = 30) -> None:
        self.steps, self.patience = steps, patience
        self.dispatched = self.placed = self.read = self.most_in_flight = 0
        self.happened = threading.Condition()

    def place(self, mesh: Any, batch: Any) -> Any:
        with self.happened:
            self.placed += 1
            self.happened.notify_all()
        return batch

    def step(self, state: Any, batch: Any, key: Any) -> Any:
        with self.happened:
            self.dispatched += 1
            self.most_in_flight = max(self.most_in_flight, self.dispatched - self.read)
            self.happened.notify_all()
            names = ("loss", "grad_norm", "logit_scale")
            return state, {name: SlowNumber(self, self.dispatched) for name in names}

    def wait_for(self, step: int) -> None:
        """Return when the step has ended."""

        def ended() -> bool:
            dispatched, placed = min(step + 1, self.steps), min(step + 2, self.steps)
            return self.dispatched >= dispatched and self.placed >= placed

        with self.happened:
            if not self.happened.wait_for(ended, self.patience):
                raise TimeoutError(f"step {step} was waited for too early")
            self.read = max(self.read, step)


class SlowNumber:
    """A metric of a step that still runs."""

    def __init__(self, device: SlowDevice, step: int) -> None:
        self.device, self.step = device, step

    def copy_to_host_async(self) -> None:
        pass

    def __float__(self) -> float:
        self.device.wait_for(self.step)
        return 1.0


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train with a fake step."""

    def run(step: Any, recipe: Recipe = RECIPE, **options: Any) -> None:
        monkeypatch.setattr(from_recipe, "compiled_step", lambda *_: step)
        pictures = load_emoji("validation")
        stream = DrawingStream(
            pictures, size=16, batch_size=4, seed=0, text_length=recipe.text_length
        )
        loop.train(recipe, stream, tmp_path, mesh=data_mesh(jax.devices()[:1]), **options)

    return run


def test_a_step_is_dispatched_and_a_batch_placed_before_the_step_before_ends(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SlowDevice()
    monkeypatch.setattr(distributed, "global_batch", device.place)
    told: list[int] = []
    train(device.step, progress=lambda values: told.append(values["step"]))
    assert told == list(range(1, STEPS + 1))
    assert device.most_in_flight == 2  # bounded: what is dispatched holds memory


def test_metrics_read_at_once_would_hold_the_device(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SlowDevice(patience=PATIENCE)
    monkeypatch.setattr(distributed, "global_batch", device.place)
    log_step = MetricsLog.log_step

    def at_once(self: MetricsLog, step: int, metrics: Any) -> None:
        log_step(self, step, metrics)
        self.flush()

    monkeypatch.setattr(MetricsLog, "log_step", at_once)
    with pytest.raises(TimeoutError, match="step 1 was waited for too early"):
        train(device.step)


def test_batches_placed_by_the_loop_itself_would_hold_the_device(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SlowDevice(patience=PATIENCE)
    monkeypatch.setattr(distributed, "global_batch", device.place)

    def lazily(stream: Any, steps: int, place: Any) -> Iterator[tuple[Any, int]]:
        for _ in range(steps):
            yield place(next(stream)), stream.position

    monkeypatch.setattr(loop, "prefetch", lazily)
    with pytest.raises(TimeoutError, match="step 1 was waited for too early"):
        train(device.step)


class SlowDisk:
    """A store whose saves end only when the step `until` has been dispatched."""

    def __init__(self, until: int, patience: float = 30) -> None:
        self.until, self.patience = until, patience
        self.dispatched, self.reached = 0, threading.Event()

    def step(self, state: Any, batch: Any, key: Any) -> Any:
        self.dispatched += 1
        if self.dispatched == self.until:
            self.reached.set()
        return state, {name: jnp.ones(()) for name in ("loss", "grad_norm", "logit_scale")}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make Orbax wait for this disk before it declares a checkpoint whole."""
        disk, save = self, ocp.JsonCheckpointHandler.async_save

        class Slow(future.Future):
            def result(self, timeout: float | None = None) -> None:
                if not disk.reached.wait(disk.patience):
                    raise TimeoutError  # Orbax words it

        async def slowly(handler: Any, *args: Any, **kwargs: Any) -> list[future.Future]:
            return [*(await save(handler, *args, **kwargs) or ()), Slow()]

        monkeypatch.setattr(ocp.JsonCheckpointHandler, "async_save", slowly)


SAVING = dataclasses.replace(RECIPE, save_every=3)


def test_steps_go_on_while_a_checkpoint_is_written(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The save after step 3 ends only when step 6 has been dispatched."""
    disk = SlowDisk(until=6)
    disk.install(monkeypatch)
    train(disk.step, SAVING)
    assert {path.name for path in (tmp_path / loop.STATE).iterdir()} == {"3", "6", "9"}


# Orbax's thread complains a second time, of what `Checkpoints` has raised
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_is_waited_for_would_hold_the_loop(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(until=6, patience=PATIENCE)
    disk.install(monkeypatch)
    save = Checkpoints.save

    def waited_for(self: Checkpoints, step: int, snapshot: Any) -> None:
        save(self, step, snapshot)
        self.finish()

    monkeypatch.setattr(Checkpoints, "save", waited_for)
    with pytest.raises(OSError, match=r"cannot save to .*timed out"):
        train(disk.step, SAVING)
    assert disk.dispatched == 3


def test_a_snapshot_is_of_its_step_although_the_next_overwrites_it(tmp_path: Path) -> None:
    """The step donates its state: its memory is written anew while the save may still run."""
    mesh = data_mesh(jax.devices()[:1])
    state = from_recipe.first_state(RECIPE, mesh)
    add = jax.jit(
        lambda state: state._replace(params=jax.tree.map(lambda x: x + 1, state.params)),
        donate_argnums=0,
    )
    expected = [np.array(leaf) for leaf in jax.tree.leaves(state.params)]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, loop.Snapshot(state, [0], {}))
    later = state
    for _ in range(5):
        later = add(later)
    checkpoints.finish()
    shapes = from_recipe.abstract_state(RECIPE, mesh)[1]
    found = checkpoints.restore(shapes, from_recipe.state_shardings(RECIPE, mesh))
    checkpoints.close()
    assert found is not None
    read = jax.tree.leaves(found.state.params)
    assert all(np.array_equal(*pair) for pair in zip(read, expected, strict=True))
    overwritten = jax.tree.leaves(later.params)
    assert not any(np.array_equal(*pair) for pair in zip(overwritten, expected, strict=True))


def test_a_token_that_the_model_does_not_have_ends_the_run(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Placing checks it, in a thread; the loop raises what it raises."""
    make = DrawingStream.__next__
    monkeypatch.setattr(
        DrawingStream, "__next__", lambda self: {**make(self), "tokens": np.full((4, 8), 60_000)}
    )
    with pytest.raises(ValueError, match="49408"):
        train(SlowDevice().step)
