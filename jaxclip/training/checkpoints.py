"""The whole state of a run, by Orbax: saved while training goes on, each device its own part.

A checkpoint holds model, optimiser state, step, random key, position in the data and config. It can
be restored on another number of devices, as what is read is cut anew. One that was not finished
does not count, and if the newest cannot be read, the one before it is taken, which is logged.
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
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxclip import checkpoint
from jaxclip.models.parameters import named_leaves

logger = logging.getLogger(__name__)
PARTS = ("model", "opt_state")


class RunState(NamedTuple):
    """What a run goes on from; `step` updates have been made."""

    model: Any
    opt_state: Any
    step: int
    key: jax.Array  # from jax.random.key
    position: Any  # of the data, JSON: of every process, as `streams.Stream` counts
    config: Any  # JSON


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _checked(rest: dict[str, Any]) -> tuple[jax.Array, list[int], Any]:
    """(random key, positions, config) of a stored state; some error where they are damaged."""
    position = rest["position"]
    if not position or any(type(i) is not int or i < 0 for i in position):
        raise ValueError(f"position: expected whole numbers, got {position!r}")
    return jax.random.wrap_key_data(jnp.array(rest["key"], jnp.uint32)), position, rest["config"]


class Checkpoints:
    """The checkpoints of a run in one folder, of which the newest `keep` stay.

    All processes of a run make and call it together.

    ValueError where the folder's name is taken by something else: Orbax would wait for minutes.
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

    def save(self, state: RunState) -> None:
        """Begin to save; the arrays may be donated as soon as it returns."""
        arrays = {
            "model": named_leaves(state.model),
            "opt_state": named_leaves(state.opt_state),
        }
        rest = {
            "key": jax.random.key_data(state.key).tolist(),
            "position": state.position,
            "config": state.config,
        }
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), rest=ocp.args.JsonSave(rest)
        )
        with self._writing():
            self.manager.save(state.step, args=args)

    def finish(self) -> None:
        """Wait until what was begun is on disk."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """End Orbax's threads; what `finish` was not called for may be lost."""
        with contextlib.suppress(Exception):  # told by save or finish, or the run fails anyway
            self.manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of Orbax and its storage, also of a save before this one
            raise OSError(
                f"cannot save to {self.folder}: {_cause(error)}; what was saved before is untouched"
            ) from None

    def restore(self, like: tuple[Any, Any], placement: tuple[Any, Any]) -> RunState | None:
        """The newest state that can be read, or None where no checkpoint is.

        Args:
          like: model and optimiser state, or their shapes.
          placement: the shardings that they shall have (`sharding.placement`), on this run's mesh.

        Raises:
          ValueError: there are checkpoints, and none can be read, or one is of another config.
        """
        expected = {
            name: dict(
                zip(
                    named_leaves(tree),
                    map(_abstract, jax.tree.leaves(tree), jax.tree.leaves(places)),
                    strict=True,
                )
            )
            for name, tree, places in zip(PARTS, like, placement, strict=True)
        }
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                stored = self.manager.item_metadata(step)["arrays"]
                came = {name: dict(stored[name]) for name in PARTS}
            except Exception as error:  # what Orbax and its storage raise has no type in common
                self._tell(step, error)
                continue
            # before anything is read: another config is no damage
            for name in PARTS:
                shapes = {path: leaf.shape for path, leaf in expected[name].items()}
                checkpoint.check(shapes, came[name])
            try:
                read, rest = self._read(step, expected)
                key, position, config = _checked(rest)
            except Exception as error:
                self._tell(step, error)
                continue
            model, opt_state = (
                jax.tree.unflatten(
                    jax.tree.structure(tree), [read[name][n] for n in expected[name]]
                )
                for name, tree in zip(PARTS, like, strict=True)
            )
            self._set_aside([newer for newer in steps if newer > step])
            return RunState(model, opt_state, step, key, position, config)
        if steps:
            raise ValueError(f"none of the checkpoints {steps} in {self.folder} can be read")
        return None

    def _read(self, step: int, expected: Any) -> tuple[Any, Any]:
        read = self.manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(expected), rest=ocp.args.JsonRestore()
            ),
        )
        return read["arrays"], read["rest"]

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

    def _tell(self, step: int, error: Exception) -> None:
        logger.warning(
            "checkpoint %d in %s cannot be read (%s); the one before it is tried",
            step,
            self.folder,
            _cause(error),
        )
