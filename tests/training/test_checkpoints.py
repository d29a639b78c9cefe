"""State by Orbax: everything comes back, on any number of devices, from the newest sound one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.models import clip, parameters
from jaxclip.training.checkpoints import Checkpoints, RunState
from jaxclip.training.optimizer import adamw
from jaxclip.training.sharding import data_mesh, placement

BAG = TextConfig(16, context_length=13, vocab_size=101, kind="cbow")
CONFIG = ClipConfig(VisionConfig(20, 5, 24, 2, 3), BAG, 8)
ADAMW = adamw(1e-3, 1, 10)

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")


def shapes() -> tuple[Any, Any]:
    model = clip.abstract(CONFIG)
    return model, jax.eval_shape(ADAMW.init, model)


def places(devices: int, fsdp: int) -> Any:
    mesh = data_mesh(jax.devices()[:devices], fsdp=fsdp)
    return tuple(placement(tree, mesh) for tree in shapes())


def state(step: int, where: Any) -> RunState:
    """Arrays that tell their step and place."""

    def filled(tree: Any) -> Any:
        arrays = [
            np.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype) + step
            for leaf in jax.tree.leaves(tree)
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), arrays)

    model, opt_state = jax.device_put(tuple(map(filled, shapes())), where)
    return RunState(model, opt_state, step, jax.random.key(step), [step], {"seed": 1})


def assert_same(got: RunState | None, expected: RunState) -> None:
    assert got is not None
    assert got.step == expected.step
    assert (got.position, got.config) == (expected.position, expected.config)
    assert (jax.random.key_data(got.key) == jax.random.key_data(expected.key)).all()
    for one, other in zip(got[:2], expected[:2], strict=True):
        left, right = parameters.named_leaves(one), parameters.named_leaves(other)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert (np.asarray(left[name]) == np.asarray(right[name])).all(), name


def saved(folder: Path, steps: list[int], keep: int = 2) -> Any:
    where = places(8, 4)
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(state(step, where))
    checkpoints.finish()
    return checkpoints


def test_a_run_goes_on_on_another_number_of_devices(tmp_path):
    checkpoints = saved(tmp_path, [3, 5, 8])
    assert sorted(checkpoints.manager.all_steps()) == [5, 8]  # `keep` of them
    checkpoints.close()
    for devices, fsdp in ((2, 2), (1, 1)):
        again = Checkpoints(tmp_path)
        got = again.restore(shapes(), places(devices, fsdp))
        assert_same(got, state(8, places(devices, fsdp)))
        kernel = parameters.named_leaves(got.model)["visual.proj"]
        assert len(kernel.sharding.device_set) == devices
        again.close()


def test_the_one_before_a_damaged_checkpoint_is_taken_and_it_says_so(tmp_path, caplog):
    saved(tmp_path, [5, 8]).close()
    # what is on disk of the newest is cut in half, files of metadata and all
    for file in sorted((tmp_path / "8").rglob("*")):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, "jaxclip"):
        got = checkpoints.restore(shapes(), places(8, 4))
    assert_same(got, state(5, places(8, 4)))
    assert f"checkpoint 8 in {tmp_path} cannot be read" in caplog.text
    for file in (tmp_path / "5").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the checkpoints \[5\]"):
        checkpoints.restore(shapes(), places(8, 4))
    checkpoints.close()


def test_an_empty_folder_has_no_state_and_another_config_s_is_refused(tmp_path):
    empty = Checkpoints(tmp_path / "empty")
    assert empty.restore(shapes(), places(1, 1)) is None
    empty.close()
    checkpoints = saved(tmp_path / "run", [1])
    other = ClipConfig(CONFIG.vision, CONFIG.text, 12)
    like = clip.abstract(other), jax.eval_shape(ADAMW.init, clip.abstract(other))
    mesh = data_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match=r"visual.proj: expected shape \(24, 12\), got \(24, 8\)"):
        checkpoints.restore(like, tuple(placement(tree, mesh) for tree in like))
    checkpoints.close()
