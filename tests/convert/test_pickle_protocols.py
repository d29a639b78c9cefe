"""Files of `torch.save(..., pickle_protocol=3, 4, 5)`: read as those of 2, and as inert."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
import types
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest

from experiments.lib.peers import archives
from experiments.lib.peers.archives import same
from jaxclip.convert.archive import pickles
from jaxclip.convert.archive.torch_archive import parse

SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}
BYTES = [archives.raw(array) for array in SMALL.values()]
PROTOCOLS = [2, 3, 4, 5]


class _Stored:
    """What the pickler is to write as a reference to a storage."""

    def __init__(self, reference: tuple[Any, ...]) -> None:
        self.reference = reference


class _Tensor:
    """Pickles as a tensor of PyTorch does."""

    def __init__(self, stored: _Stored, array: np.ndarray) -> None:
        self.stored, self.array = stored, array

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        arguments = (self.stored, 0, self.array.shape, strides, False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, _Stored) else None


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Empty modules with the names that PyTorch's pickles mention, for Python's own pickler."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2() -> None:
        raise AssertionError("called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    kinds = {}
    for name in archives.STORAGES.values():
        kinds[name] = type(name, (), {"__module__": "torch"})
        setattr(torch, name, kinds[name])
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return kinds


def dumped(value: Any, protocol: int) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def state(kinds: dict[str, type], arrays: dict[str, np.ndarray], legacy: bool) -> OrderedDict:
    tensors: OrderedDict[str, Any] = OrderedDict()
    for i, (name, array) in enumerate(arrays.items()):
        kind = kinds[archives.STORAGES[array.dtype.name]]
        reference = ("storage", kind, str(i), "cpu", array.size, *([None] if legacy else []))
        tensors[name] = _Tensor(_Stored(reference), array)
    tensors._metadata = OrderedDict({"": {"version": 1}})
    return tensors


def zipped(tree: bytes) -> bytes:
    return archives.zip_bytes(archives.save_members(tree, BYTES))


def old(kinds: dict[str, type], protocol: int) -> bytes:
    """What torch.save wrote before 1.6, each of its five pickles in that protocol."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    parts = [0x1950A86A20F9469CFC6C, 1001, system, state(kinds, SMALL, True), ["0", "1"]]
    tail = [struct.pack("<q", a.size) + bytes(archives.raw(a)) for a in SMALL.values()]
    return b"".join([*(dumped(part, protocol) for part in parts), *tail])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gives_the_same_arrays(torch_names, protocol):
    tree = dumped(state(torch_names, SMALL, False), protocol)
    assert tree[1] == protocol
    assert same(parse(zipped(tree)), SMALL)
    training = {"epoch": 3, "best": -0.5, "state_dict": state(torch_names, SMALL, False)}
    assert same(parse(zipped(dumped(training, protocol))), SMALL)
    assert same(parse(old(torch_names, protocol)), SMALL)


@pytest.mark.parametrize("protocol", [4, 5])
def test_more_than_one_frame_is_read(torch_names, protocol):
    """The pickler begins a new one every 64 KiB; long texts stand outside of them."""
    held = state(torch_names, SMALL, False)
    beside = {f"note {i}": f"{i:200d}" for i in range(1000)} | {"long": "y" * 300_000}
    tree = dumped({**beside, "state_dict": held}, protocol)
    assert sum(code.name == "FRAME" for code, _, _ in pickletools.genops(tree)) > 2
    assert same(parse(zipped(tree)), SMALL)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_Evil(), "exec'.*nothing was executed"),
        ({1, 2}, "a set|the name '(__builtin__|builtins).set'"),
        (frozenset("a"), "a frozen set|frozenset'"),
        (b"bytes", "bytes|_codecs.encode"),
        (bytearray(9), "an array of bytes|bytearray"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_one_line(torch_names, protocol, value, message):
    tree = dumped({"state_dict": state(torch_names, SMALL, False), "x": value}, protocol)
    with pytest.raises(ValueError, match=message) as caught:
        parse(zipped(tree))
    assert "\n" not in str(caught.value)


HEAD = b"\x80\x04"
LIES = {
    "frame past the end": (HEAD + b"\x95" + struct.pack("<Q", 1 << 62) + b"N.", "a frame"),
    "frame in a frame": (HEAD + (b"\x95" + struct.pack("<Q", 9)) * 2 + b"N.", "a frame"),
    "frame cut off": (HEAD + b"\x95\0\0", "ends in its middle"),
    "text of 2**63": (HEAD + b"\x8d" + struct.pack("<Q", 1 << 63) + b"x.", "ends in its middle"),
    "text not UTF-8": (HEAD + b"\x8c\x01\xff.", "not UTF-8"),
    "nothing memoized": (HEAD + b"\x94.", "before it put something"),
    "a name of numbers": (HEAD + b"K\x01K\x02\x93.", "no short text"),
    "a name of lists": (HEAD + b"]]\x93.", "no short text"),
    "a long name": (HEAD + b"\x8c\x05torch" + archives.text("x" * 300) + b"\x93.", "no short text"),
    "a name that is not allowed": (HEAD + b"\x8c\x02os\x8c\x06system\x93.", "the name 'os.system'"),
    "protocol 3 has no frames": (b"\x80\x03\x95" + struct.pack("<Q", 2) + b"N.", "opcode 0x95"),
}


@pytest.mark.parametrize(("tree", "message"), LIES.values(), ids=LIES.keys())
def test_opcodes_of_protocol_4_that_lie_are_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        parse(zipped(tree))


def test_a_million_memos_take_memory_in_proportion_to_the_file():
    data = zipped(HEAD + b"N" + b"\x94" * 300_000 + b".")
    tracemalloc.start()
    with pytest.raises(ValueError):
        parse(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150 * len(data) + (16 << 20)
    with pytest.raises(ValueError, match="more than 1000000 steps"):
        parse(zipped(HEAD + b"N" + b"\x94" * pickles.MOST_STEPS + b"."))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_spoilt_pickles_load_or_are_refused(torch_names, protocol):
    draw = random.Random(protocol)
    sound = dumped(state(torch_names, SMALL, False), protocol)
    outcomes: Counter[str] = Counter()
    for i in range(3000):
        tree = bytearray(sound)
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.randrange(2, len(tree))
            way = draw.random()
            if way < 0.5:
                tree[at] = draw.choice(b"\x8c\x8d\x93\x94\x95\x8f\x92\x96()}]NRbQu.\x00\xff")
            elif way < 0.75:
                tree[at] = draw.randrange(256)
            else:
                del tree[at : at + draw.choice((1, 2, 9))]
        try:
            arrays = parse(zipped(bytes(tree)))
        except ValueError as error:
            assert "\n" not in str(error), i
            outcomes[str(error)[:24]] += 1
            continue
        outcomes["loaded"] += 1
        assert all(len(array.tobytes()) <= len(tree) + 64 for array in arrays.values()), i
    assert outcomes["loaded"] > 30 and len(outcomes) > 10


@pytest.mark.parametrize("protocol", [0, 1])
def test_older_protocols_are_refused_by_name(torch_names, protocol):
    tree = pickle.dumps({"a": 1}, protocol)
    for data in (zipped(tree), pickle.dumps(0x1950A86A20F9469CFC6C, protocol) + tree):
        with pytest.raises(ValueError, match="protocol 0 or 1") as refusal:
            parse(data)
        assert "hostile" not in str(refusal.value) and "save it anew" in str(refusal.value)
