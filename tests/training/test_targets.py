"""Devices to compile for, found without having them."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import jax
import pytest

from jaxclip.training import targets

NO_PLUGIN = find_spec("jax_cuda13_plugin") is None
NO_LIBTPU = find_spec("libtpu") is None
TPU = targets.Target("v5e:2x2", [], None)


@pytest.mark.parametrize(
    ("topology", "shape"),
    [("h100", "1x1x1"), ("h100:1", "1x1x1"), ("h100:6", "1x1x6"), ("a100:32", "1x4x8")],
)
def test_gpus_are_counted_by_hosts_of_eight(topology, shape):
    assert targets._gpu_shape(topology) == shape


@pytest.mark.parametrize("topology", ["h100:0", "h100:", "h100:9", "h100:-8", "h100:2x2", "h100:²"])
def test_other_numbers_of_gpus_are_refused(topology):
    with pytest.raises(ValueError, match="expected h100 or h100:N"):
        targets.find(topology)


def test_the_cards_are_those_with_a_description():
    assert targets.gpus() == ["a100", "h100", "h200"]
    assert targets.is_gpu("h200:4") and not targets.is_gpu("v5e:2x2")


def test_a_missing_or_another_plugin_is_named_in_one_line(monkeypatch):
    def none(name):
        raise targets.PackageNotFoundError(name)

    monkeypatch.setattr(targets, "version", none)
    with pytest.raises(ValueError, match=r"got none; pip install 'jaxclip\[gpu-plan\]'") as error:
        targets.find("h100")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(targets, "version", lambda name: "0.0.1")
    ours = jax.__version__.replace(".", r"\.")
    with pytest.raises(ValueError, match=f"got 0.0.1; pip install jax-cuda13-plugin=={ours}"):
        targets.find("h100")
    monkeypatch.setattr(targets, "version", lambda name: jax.__version__)
    targets._check_plugin()


def test_cudnns_version_and_the_kind_are_given_for_a_gpu_alone_and_taken_back():
    from jax._src.cudnn import fused_attention_stablehlo as fused

    before = fused.check_cudnn_version
    gpu = targets.Target("h100", [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")], 1)
    empty = jax.sharding.get_abstract_mesh()
    with targets.compiling_for(TPU) as options:
        assert options == {} and fused.check_cudnn_version is before
    with pytest.raises(RuntimeError, match="in here"), targets.compiling_for(gpu) as options:
        assert fused.check_cudnn_version() == targets.CUDNN
        assert options == {"xla_gpu_enable_triton_gemm": False}
        device = jax.sharding.get_abstract_mesh().abstract_device
        assert device is not None and device.device_kind == gpu.devices[0].device_kind
        raise RuntimeError("in here")
    assert jax.sharding.get_abstract_mesh() == empty
    assert fused.check_cudnn_version is before


def test_the_memory_that_is_needed_is_said_in_short():
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    message += "temporaries (41.97G) exceeds available HBM (15.75G)."
    other = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 16.9G of 15.75G hbm. more"
    for text, expected in (
        (message, "needs 41.97 GiB, the chip has 15.75 GiB"),
        (other, "needs 16.9 GiB, the chip has 15.75 GiB"),
        ("RESOURCE_EXHAUSTED: otherwise\nmore", "RESOURCE_EXHAUSTED: otherwise"),
    ):
        assert targets.out_of_memory(jax.errors.JaxRuntimeError(text), TPU) == expected
    for text, expected in (
        ("UNAVAILABLE: No PTX compilation provider", "expected ptxas"),
        (
            "INTERNAL: a fault\nof the compiler",
            "cannot be compiled for v5e:2x2: INTERNAL: a fault of",
        ),
    ):
        with pytest.raises(ValueError, match=expected):
            targets.out_of_memory(jax.errors.JaxRuntimeError(text), TPU)


def test_a_program_that_jaxlib_cannot_read_is_refused():
    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update")

    with pytest.raises(
        ValueError, match=r"v5e:2x2 that jaxlib .* can read.*jax\[tpu\]==.*RET_CHECK"
    ):
        targets.program_text(Unreadable(), TPU)


@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
@pytest.mark.parametrize(
    ("topology", "kind", "gib"),
    [("h100", "H100", 79), ("h200:2", "H200", 141), ("a100", "A100", 79)],
)
def test_gpus_are_described_as_they_call_themselves(topology, kind, gib):
    target = targets.find(topology)
    assert kind in target.devices[0].device_kind and target.devices[0].platform in ("gpu", "cuda")
    assert target.memory is not None and round(target.memory / 2**30) == gib and target.is_gpu
    assert len(target.devices) == (2 if ":" in topology else 1)


@pytest.mark.skipif(NO_LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_v4_chip_is_one_device():
    target = targets.find("v4:2x2x1")
    assert len(target.devices) == 4 and not target.is_gpu and target.kind == "v4"
