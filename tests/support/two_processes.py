"""One of several processes that train together.

Run as python -m tests.support.two_processes INDEX COUNT PORT OUT.

`test_distributed.py` starts it, and calls `train` itself for the parameters of one process.
"""

import logging
import sys
from pathlib import Path

import jax
import numpy as np

from jaxclip import checkpoint
from jaxclip.models import parameters
from jaxclip.training import distributed, optimizer
from jaxclip.training.global_losses import ring_contrastive_loss
from jaxclip.training.sharding import data_mesh
from jaxclip.training.step import clip_loss_fn, shard_map_step

STEPS = 3


def train(devices: list[jax.Device]) -> checkpoint.Flat:
    """Some steps, in float64, of which this process reads its own rows only."""
    # here, as it counts the devices, which is too early at the top
    from tests.support.steps import BATCH_OF_16, noisy, state_of, tiny_model

    with jax.enable_x64(True):
        mesh, adamw = data_mesh(devices), optimizer.adamw(1e-2, 1, 10)
        graphdef, state = state_of(tiny_model(), adamw)
        loss_fn = clip_loss_fn(graphdef, ring_contrastive_loss)
        step = shard_map_step(mesh, loss_fn, adamw, batch_to_pixels=noisy)
        state = distributed.replicate(mesh, state)
        rows = distributed.own_rows(16)
        own = {name: array[rows] for name, array in BATCH_OF_16.items()}
        for i in range(STEPS):
            key = distributed.replicate(mesh, jax.random.key(i))
            batch = distributed.global_batch(mesh, own)
            state, metrics = step(state, batch, key)
        logging.getLogger("jaxclip").info("loss %.6f", float(metrics["loss"]))
        return parameters.to_flat(state.params)


if __name__ == "__main__":
    index, count, port, out = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    distributed.start(f"localhost:{port}", int(count), int(index), timeout=20)
    np.savez(Path(out) / f"{index}.npz", **train(jax.devices()))
    jax.distributed.shutdown()
