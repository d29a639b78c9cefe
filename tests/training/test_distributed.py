"""Two processes that train together end with the parameters of one; one alone gives up in time."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclip.training import distributed
from tests.support.ports import PATIENCE, free_port
from tests.support.tolerances import departure, within

ROOT = Path(__file__).parents[2]


def start(index: int, port: int, out: Path) -> "subprocess.Popen[str]":
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        "-m",
        "tests.support.two_processes",
        str(index),
        "2",
        str(port),
        str(out),
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices: see conftest.py")
def test_two_processes_give_the_parameters_of_one(tmp_path: Path) -> None:
    from tests.support.two_processes import train

    port = free_port()
    processes = [start(index, port, tmp_path) for index in (0, 1)]
    try:
        alone = train(jax.devices()[:4])
        told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    for index in (0, 1):
        together = np.load(tmp_path / f"{index}.npz")
        assert set(together) == set(alone)
        assert max(departure(together[n], alone[n]) for n in alone) < within("three steps float64")
        lines = [line for line in told[index].splitlines() if "loss" in line]
        assert lines and all(line.startswith(f"[process {index} of 2] loss") for line in lines)


def test_a_process_whose_partner_never_comes_gives_up(tmp_path: Path) -> None:
    began = time.monotonic()
    process = start(0, free_port(), tmp_path)
    try:
        _, told = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode != 0 and time.monotonic() - began < PATIENCE
    assert "DEADLINE_EXCEEDED" in told or "imed out" in told
    assert not list(tmp_path.iterdir())


def test_every_row_of_a_batch_has_one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    seen: list[int] = []
    for index in range(4):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        seen += range(12)[distributed.own_rows(12)]
    assert seen == list(range(12))
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 4"):
        distributed.own_rows(14)


def test_log_lines_name_their_process(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("jaxclip")
    before = logger.handlers, logger.level, logger.propagate
    try:
        distributed.tag_logs(3, 8)
        logging.getLogger("jaxclip.data").info("2 broken pictures")
    finally:
        logger.handlers, logger.level, logger.propagate = before
    assert capsys.readouterr().err == "[process 3 of 8] 2 broken pictures\n"
