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
from jaxclip.training.checkpoints import Checkpoints, Snapshot
from jaxclip.training.optimizer import adamw
from jaxclip.training.sharding import data_mesh, shardings
from jaxclip.training.state import TrainState

BAG = TextConfig(16, context_length=13, vocab_size=101, kind="cbow")
CONFIG = ClipConfig(VisionConfig(20, 5, 24, 2, 3), BAG, 8)
ADAMW = adamw(1e-3, 1, 10)

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")


def shapes(config: ClipConfig = CONFIG) -> TrainState:
    model = clip.abstract(config)
    _, params, stats = parameters.split_statistics(model)
    opt_state = jax.eval_shape(ADAMW.init, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return TrainState(params, stats, opt_state, jax.ShapeDtypeStruct((), np.int32), key)


def where(devices: int, fsdp: int) -> Any:
    return shardings(shapes(), data_mesh(jax.devices()[:devices], fsdp=fsdp))


def snapshot(step: int, shardings: Any) -> Snapshot:
    """Arrays that tell their step and position."""

    def filled(leaf: Any) -> Any:
        return np.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype) + step

    arrays = jax.tree.map(filled, tuple(shapes()[:3]))
    state = TrainState(*arrays, np.int32(step), jax.random.key(step))
    return Snapshot(jax.device_put(state, shardings), [step], {"seed": 1})


def assert_same(got: Snapshot | None, expected: Snapshot) -> None:
    assert got is not None
    assert (got.position, got.recipe) == (expected.position, expected.recipe)
    assert got.state.step == expected.state.step
    keys = (jax.random.key_data(found.state.key) for found in (got, expected))
    assert np.array_equal(*keys)
    for one, other in zip(got.state[:3], expected.state[:3], strict=True):
        left, right = parameters.named_leaves(one), parameters.named_leaves(other)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert (np.asarray(left[name]) == np.asarray(right[name])).all(), name


def saved(folder: Path, steps: list[int], keep: int = 2) -> Any:
    on_eight = where(8, 4)
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, snapshot(step, on_eight))
    checkpoints.finish()
    return checkpoints


def test_a_run_goes_on_on_another_number_of_devices(tmp_path):
    checkpoints = saved(tmp_path, [3, 5, 8])
    assert sorted(checkpoints.manager.all_steps()) == [5, 8]  # `keep` of them
    checkpoints.close()
    for devices, fsdp in ((2, 2), (1, 1)):
        again = Checkpoints(tmp_path)
        got = again.restore(shapes(), where(devices, fsdp))
        assert_same(got, snapshot(8, where(devices, fsdp)))
        kernel = parameters.named_leaves(got.state.params)["visual.proj"]
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
        got = checkpoints.restore(shapes(), where(8, 4))
    assert_same(got, snapshot(5, where(8, 4)))
    assert f"checkpoint 8 in {tmp_path} cannot be read" in caplog.text
    for file in (tmp_path / "5").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the checkpoints \[5\]"):
        checkpoints.restore(shapes(), where(8, 4))
    checkpoints.close()


def test_an_empty_folder_has_no_state_and_another_config_s_is_refused(tmp_path):
    empty = Checkpoints(tmp_path / "empty")
    assert empty.restore(shapes(), where(1, 1)) is None
    empty.close()
    checkpoints = saved(tmp_path / "run", [1])
    other = ClipConfig(CONFIG.vision, CONFIG.text, 12)
    like = shapes(other)
    mesh = data_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match=r"visual.proj: expected shape \(24, 12\), got \(24, 8\)"):
        checkpoints.restore(like, shardings(like, mesh))
    checkpoints.close()
