"""Devices that are not there: TPU topologies and GPUs that jax can compile for.

What a compilation for a GPU needs on a machine without one stands in `compiling_for`, all of it.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from jax.sharding import AbstractMesh

GPU_EXTRA, TPU_EXTRA = "pip install 'jaxclip[gpu-plan]'", "pip install 'jaxclip[tpu]'"
GPUS_A_HOST = 8  # as in NVIDIA's own servers
CUDNN = 91200  # the oldest that jax's plugin for CUDA 13 installs; as in data_files/gpus
CUDA_PLUGIN = "jax-cuda13-plugin"
LIBTPU_ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device to guard: several plans may run at once
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    name: str
    """As given: h100:8 or v5e:16x16."""
    devices: list[Any]
    memory: int | None
    """Bytes of a GPU; None for a TPU, whose compiler refuses what does not fit."""

    @property
    def kind(self) -> str:
        """The family: h100 or v5e."""
        return self.name.partition(":")[0]

    @property
    def is_gpu(self) -> bool:
        return self.memory is not None


def gpus() -> list[str]:
    """The GPUs that can be planned for."""
    files = resources.files("jaxclip").joinpath("data_files", "gpus").iterdir()
    return sorted(file.name.removesuffix(".txtpb") for file in files)


def is_gpu(topology: str) -> bool:
    """Whether a topology's name is that of a GPU, such as h100 or h100:8."""
    return topology.partition(":")[0] in gpus()


def find(topology: str) -> Target:
    """The devices of a topology such as v5e:16x16, h100 or h100:8.

    Raises:
      ValueError: no such topology, or the compiler for it is not installed.
    """
    return _gpu_target(topology) if is_gpu(topology) else _tpu_target(topology)


# TPUs ---------------------------------------------------------------------------------------------


def _tpu_target(topology: str) -> Target:
    from jax.experimental import topologies

    # a v4 chip is then one device, as jax wants it for a mesh, and not two
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # what libtpu raises has no type of its own
        raise ValueError(
            f"topology: expected one like v5e:16x16, v4:2x2x4 or h100:8 "
            f"({', '.join(gpus())}), got {topology!r} ({_short(error)}); "
            f"TPUs need libtpu: {TPU_EXTRA}"
        ) from None
    return Target(topology, list(found.devices), None)


# GPUs ---------------------------------------------------------------------------------------------


def _gpu_shape(topology: str) -> str:
    """XLA's name of so many GPUs: slices x hosts x GPUs a host."""
    name, colon, count = topology.partition(":")
    number = int(count) if count.isdecimal() and len(count) < 6 else 0 if colon else 1
    hosts = max(1, number // GPUS_A_HOST)
    if number < 1 or number != hosts * min(number, GPUS_A_HOST):
        raise ValueError(
            f"topology: expected {name} or {name}:N, N up to {GPUS_A_HOST} or a multiple of it, "
            f"got {topology!r}"
        )
    return f"1x{hosts}x{number // hosts}"


def _check_plugin() -> None:
    """ValueError unless jax's CUDA plugin is installed in jax's own version."""
    try:
        found = version(CUDA_PLUGIN)
    except PackageNotFoundError:
        raise ValueError(
            f"expected {CUDA_PLUGIN} {jax.__version__} to plan for GPUs, got none; {GPU_EXTRA}"
        ) from None
    if found != jax.__version__:
        raise ValueError(
            f"expected {CUDA_PLUGIN} {jax.__version__}, the version of jax, got {found}; "
            f"pip install {CUDA_PLUGIN}=={jax.__version__}"
        )


def _gpu_target(topology: str) -> Target:
    from jax.experimental import topologies

    shape = _gpu_shape(topology)
    _check_plugin()
    name = topology.partition(":")[0]
    file = resources.files("jaxclip").joinpath("data_files", "gpus", f"{name}.txtpb")
    text = file.read_text(encoding="utf-8")
    memory = re.search(r"device_memory_size: (\d+)", text)
    assert memory is not None
    found = topologies.get_topology_desc(name, platform="cuda", topology=shape, target_config=text)
    return Target(topology, list(found.devices), int(memory[1]))


# Compiling ----------------------------------------------------------------------------------------


def use_no_accelerator() -> None:
    """Keep jax on the CPU in this process; call it before jax looks for devices.

    Otherwise the CUDA plugin looks for a driver, and jax takes the memory of the devices it finds.
    libtpu would ask the network which TPU this machine is, and let one process in at a time.
    """
    jax.config.update("jax_platforms", "cpu")
    for name, value in LIBTPU_ALONE.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[dict[str, Any]]:
    """Trace, lower and compile for `target` in here; gives the compiler options it needs.

    For a GPU on a machine without one:
      - jax asks the loaded cuDNN for its version before it lowers cuDNN's attention. The small
        install has none, so jax is given the version that the description names. (Restored after.)
      - XLA tunes its own Triton products by running them. Without a GPU some lengths (77, 257)
        fail, so all products go to cuBLAS here. Which kernel a product gets is thus not planned.
      - From jax 0.11 on Pallas asks which GPU it compiles for; an empty mesh says so.
    """
    if not target.is_gpu:
        yield {}
        return
    from jax._src.cudnn import fused_attention_stablehlo as fused

    kind = target.devices[0].device_kind
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="cuda")
    before = fused.check_cudnn_version
    fused.check_cudnn_version = lambda: CUDNN
    try:
        with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
            yield {"xla_gpu_enable_triton_gemm": False}
    finally:
        fused.check_cudnn_version = before


def out_of_memory(error: RuntimeError, target: Target) -> str:
    """What a compiler said of memory, in short.

    Raises:
      ValueError: it failed for another reason.
    """
    message = str(error)
    if "No PTX compilation provider" in message:
        raise ValueError(f"expected ptxas, NVIDIA's assembler, got none; {GPU_EXTRA}") from None
    if "RESOURCE_EXHAUSTED" not in message:
        raise ValueError(
            f"the step cannot be compiled for {target.name}: {_short(error)}"
        ) from error
    found = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", message)
    found = found or re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", message)
    if found is None:
        return message.splitlines()[0]
    return f"needs {found[1]} GiB, the chip has {found[2]} GiB"


def program_text(compiled: Any, target: Target) -> str:
    """The HLO of a compiled program.

    Raises:
      ValueError: jaxlib cannot read what a newer compiler wrote.
    """
    try:
        return str(compiled.as_text())
    except RuntimeError as error:
        reader = version("jaxlib")
        raise ValueError(
            f"expected a program for {target.name} that jaxlib {reader} can read, got "
            f"one of another compiler's version; pip install -U 'jax[tpu]=={jax.__version__}' "
            f"({_short(error)})"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
