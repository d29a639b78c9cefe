"""What torch itself writes and reads, bit by bit: state dicts, old files, official archives."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from experiments.lib.peers import archives
from experiments.lib.peers.archives import same
from experiments.lib.peers.parity_support import official_module
from jaxclip.convert.archive.torch_archive import read, write

SAMPLE = archives.sample()


def arrays_of(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Torch's tensors with their bits; torch cannot make bfloat16 arrays itself."""
    torch = pytest.importorskip("torch")
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            found[name] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            found[name] = tensor.numpy()
    return found


def tensors() -> dict[str, Any]:
    """All number formats, views of one storage, a parameter and the metadata of a module."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4)).half()
    state = layers.state_dict()
    shared = torch.randn(3, 5)
    state.update(
        {"whole": shared, "turned": shared.t(), "part": shared[1:, :2], "scale": shared[0, 0]}
    )
    for name in ("float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8"):
        state[name] = (10 * torch.rand(2, 3)).to(getattr(torch, name))
    state["bool"] = torch.tensor([True, False])
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    return state


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_equals_what_torch_loads(tmp_path: Path, new: bool):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    torch.save(tensors(), path, _use_new_zipfile_serialization=new)
    expected = arrays_of(torch.load(path, weights_only=True))
    assert same(read(path), expected)
    expected["whole"] = np.nextafter(expected["whole"], np.float32(9))
    assert not same(read(path), expected)


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_of_torch_reads(tmp_path: Path, new: bool):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = OrderedDict((f"module.{name}", value) for name, value in layer.state_dict().items())
    whole = {"epoch": 3, "name": "x", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert same(read(tmp_path / "a.pt"), arrays_of(layer.state_dict()))


@pytest.mark.parity
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_an_archive_of_the_official_model_equals_its_state_dict(tmp_path: Path, tower: str):
    """Traced with fp16 weights, as the released ones are; torch reads it by compiling its code."""
    torch = pytest.importorskip("torch")
    official = official_module("model")
    vision = (2, 64, 16) if tower == "vit" else ((1, 1, 1, 1), 8, None)
    torch.manual_seed(0)
    model = official.CLIP(16, 32, *vision, 7, 50, 64, 1, 2).eval()
    for name in ("input_resolution", "context_length", "vocab_size"):
        model.__dict__.pop(name, None)  # plain numbers in the published code
        model.register_buffer(name, torch.tensor(7))
    path = tmp_path / "tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated and warns about constants
        example = (torch.rand(1, 3, 32, 32), torch.arange(7)[None])
        traced = torch.jit.trace(model, example, check_trace=False)
        official.convert_weights(model)  # the traced module shares the parameters
        traced.save(str(path))
        expected = arrays_of(torch.jit.load(str(path)).state_dict())
    arrays = read(path)
    assert same(arrays, expected)
    assert {"float16", "float32"} <= {array.dtype.name for array in arrays.values()}
    assert ("visual.layer1.0.downsample.0.weight" in arrays) == (tower == "resnet")


@pytest.mark.parity
@pytest.mark.parametrize("mapped", [False, True], ids=["loaded", "mapped"])
def test_torch_loads_what_we_write(tmp_path: Path, mapped: bool):
    torch = pytest.importorskip("torch")
    write(tmp_path / "a.pt", SAMPLE)
    loaded = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
    assert type(loaded) is OrderedDict
    assert same(arrays_of(loaded), SAMPLE)
    assert not same(arrays_of(loaded), SAMPLE | {"logit_scale": np.array(4.6, np.float32)})


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_torch_loads_what_the_tests_make_by_hand(tmp_path: Path, kind: str):
    """So that the hostile files are wrong in one respect alone."""
    torch = pytest.importorskip("torch")
    (tmp_path / "a.pt").write_bytes(archives.MAKERS[kind](SAMPLE))
    loaded = torch.load(tmp_path / "a.pt", weights_only=True, map_location="cpu")
    assert same(arrays_of(loaded), SAMPLE)
