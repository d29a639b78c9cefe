"""Many processes, one program: how they find each other, and how each brings its share of the data.

    distributed.start("10.0.0.1:1234", processes=16, index=3)
    mesh = data_mesh()  # the devices of all processes
    state = distributed.replicate(mesh, state)
    rows = distributed.own_rows(batch_size)  # read these and no others
    batch = distributed.global_batch(mesh, my_part_of_the_batch)

After that every step of `training.step` but `pmap_step` works as in one process, and all processes
must call it, with the same key, and `replicate` too. On TPU and under Slurm `start()` without
arguments finds everything.
"""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.terminal import PrintableFormatter
from jaxclip.training.sharding import BATCH

TIMEOUT = 300  # seconds until processes that wait for each other give up


def start(
    address: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> None:
    """Wait for the other processes, `timeout` seconds at most, and tag this one's log lines.

    One that dies later is noticed after as long a time, and then the others end as well.

    Args:
      address: host and port of process 0.
      processes: how many there are.
      index: this one's number, from 0.
      timeout: seconds.
    """
    jax.distributed.initialize(
        address,
        processes,
        index,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=timeout,
    )
    tag_logs(jax.process_index(), jax.process_count())


def tag_logs(index: int, processes: int) -> None:
    """Every line that jaxclip logs begins with the number of its process; the others' stay."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(f"[process {index} of {processes}] %(message)s"))
    logger = logging.getLogger("jaxclip")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def own_rows(batch_size: int) -> slice:
    """Which rows of a global batch this process reads."""
    processes = jax.process_count()
    if batch_size % processes:
        raise ValueError(
            f"batch_size: expected a multiple of {processes}, the number of processes, "
            f"got {batch_size}"
        )
    share = batch_size // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def global_batch(mesh: Mesh, own: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Each process's rows, put on its devices, as arrays of the whole batch."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in own.items()
    }


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A tree of host arrays, the same in every process, replicated over the mesh."""
    sharding = NamedSharding(mesh, P())

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)
