"""Saves and restores the whole state of a run with Orbax, while training goes on.

A checkpoint holds the train state, the position in the data and the recipe. It can be restored on
another number of devices: each device reads its own part of every array. A checkpoint that was not
finished does not count. If the newest cannot be read, the one before it is taken, with a warning.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxclip import checkpoint
from jaxclip.models.parameters import named_leaves
from jaxclip.training.distributed import replicate
from jaxclip.training.state import TrainState

logger = logging.getLogger(__name__)
Named = dict[str, dict[str, Any]]  # {"model" or "opt_state": {dotted path: leaf}}


class Snapshot(NamedTuple):
    """What a run continues from."""

    state: TrainState
    position: list[int]  # in the data, of every process, as `input_pipeline.Stream` counts
    recipe: Any  # JSON


def _named(state: TrainState) -> Named:
    """The leaves as they are stored: parameters and statistics together, under their names."""
    model = named_leaves(state.params) | named_leaves(state.stats)
    return {"model": model, "opt_state": named_leaves(state.opt_state)}


def _refill(tree: Any, leaves: dict[str, Any]) -> Any:
    """A tree like `tree` with the leaves of those names."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[n] for n in named_leaves(tree)])


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _parse_rest(rest: dict[str, Any]) -> tuple[jax.Array, list[int], Any]:
    """(random key's data, positions, recipe) of a stored state; an error where it is damaged."""
    position = rest["position"]
    if not position or any(type(i) is not int or i < 0 for i in position):
        raise ValueError(f"position: expected whole numbers, got {position!r}")
    return jnp.array(rest["key"], jnp.uint32), position, rest["config"]


class Checkpoints:
    """The checkpoints of a run in one folder, of which the newest `keep` stay.

    All processes of a run make and call it together.

    ValueError where a file has the folder's name: Orbax would wait for minutes.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(
                f"{folder}: expected a folder of checkpoints, got a file; move it away"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        self.folder = folder.absolute()
        handlers = {
            "arrays": ocp.StandardCheckpointHandler(),
            "rest": ocp.JsonCheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Begin to save the state after `step` updates; it may be donated once this returns."""
        rest = {
            "key": jax.random.key_data(snapshot.state.key).tolist(),
            "position": snapshot.position,
            "config": snapshot.recipe,
        }
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(_named(snapshot.state)), rest=ocp.args.JsonSave(rest)
        )
        with self._storage_errors():
            self.manager.save(step, args=args)

    def finish(self) -> None:
        """Wait until every save that was begun is on disk."""
        with self._storage_errors():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """End Orbax's threads; a save that `finish` was not called for may be lost."""
        with contextlib.suppress(Exception):  # save or finish raised it, or the run fails anyway
            self.manager.close()

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of Orbax and its storage, also of a save before this one
            raise OSError(
                f"cannot save to {self.folder}: {_cause(error)}; what was saved before is untouched"
            ) from None

    def restore(self, like: TrainState, shardings: Any) -> Snapshot | None:
        """The newest state that can be read, or None where there is no checkpoint.

        Args:
          like: a state, or the shapes of one.
          shardings: how its leaves shall lie on this run's mesh (`sharding.shardings`).

        Raises:
          ValueError: there are checkpoints, and none can be read, or one is of another model.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                stored = self.manager.item_metadata(step)["arrays"]
                found = {name: dict(stored[name]) for name in ("model", "opt_state")}
            except Exception as error:  # what Orbax and its storage raise has no type in common
                self._warn(step, error)
                continue
            # before anything is read: a state of another model is not damaged, and is an error
            for name, leaves in _named(like).items():
                checkpoint.check({path: leaf.shape for path, leaf in leaves.items()}, found[name])
            try:
                snapshot = self._read(step, like, shardings)
            except Exception as error:
                self._warn(step, error)
                continue
            self._set_aside([newer for newer in steps if newer > step])
            return snapshot
        if steps:
            raise ValueError(f"none of the checkpoints {steps} in {self.folder} can be read")
        return None

    def _read(self, step: int, like: TrainState, shardings: Any) -> Snapshot:
        def wanted(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        shapes = _named(jax.tree.map(wanted, like, shardings))
        read = self.manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(shapes), rest=ocp.args.JsonRestore()
            ),
        )
        key, position, recipe = _parse_rest(read["rest"])
        model, opt_state = read["arrays"]["model"], read["arrays"]["opt_state"]
        state = TrainState(
            _refill(like.params, model),
            _refill(like.stats, model),
            _refill(like.opt_state, opt_state),
            *replicate(shardings.step.mesh, (np.int32(step), jax.random.wrap_key_data(key))),
        )
        return Snapshot(state, position, recipe)

    def _set_aside(self, steps: list[int]) -> None:
        """Move what cannot be read: Orbax saves nothing below a newer step."""
        if steps and jax.process_index() == 0:
            aside = self.folder.with_name(f"{self.folder.name}-damaged")
            aside.mkdir(exist_ok=True)
            for step in steps:
                target = aside / f"{step}"
                shutil.rmtree(target, ignore_errors=True)
                (self.folder / f"{step}").rename(target)
                logger.warning("checkpoint %d is now in %s", step, aside)
        if steps:
            multihost_utils.sync_global_devices("damaged checkpoints are aside")
            self.manager.reload()

    def _warn(self, step: int, error: Exception) -> None:
        logger.warning(
            "checkpoint %d in %s cannot be read (%s); the one before it is tried",
            step,
            self.folder,
            _cause(error),
        )
