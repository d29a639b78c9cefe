"""Hostile and broken checkpoint files: each is refused in one line, and nothing in it runs."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.lib.peers import archives
from experiments.lib.peers.archives import (
    ORDERED_DICT,
    PROTOCOL,
    STOP,
    integer,
    mapping,
    named,
    same,
    sequence,
    text,
)
from jaxclip.convert.archive import pickles, state_dicts, zip_records
from jaxclip.convert.archive.torch_archive import parse
from tests.support.hostile import (
    ALLOWED,
    FLOATS,
    OBJECT,
    SMALL,
    TENSOR,
    in_script,
    in_zip,
    pickled,
    refused,
)

# Code ---------------------------------------------------------------------------------------------


def payload(path: Path) -> bytes:
    """A value that makes a file when Python's own unpickler reads it."""
    return named("os", "mkdir") + sequence(text(str(path))) + b"R"


def legacy_with(slot: int, value: bytes) -> bytes:
    """An old file with a payload in one of its pickles after the first."""
    tree = archives.state_dict(SMALL, legacy=True)
    data = archives.legacy_file(tree, archives.legacy_numbers(SMALL))
    cut, parts = 0, []
    for _ in range(5):
        stream = io.BytesIO(data[cut:])
        for code, _, at in pickletools.genops(stream):
            if code.name == "STOP":
                parts.append(data[cut : cut + at + 1])
        cut += len(parts[-1])
    parts[slot] = PROTOCOL + value + STOP
    return b"".join(parts) + data[cut:]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: in_zip(pickled(value)),
        lambda value: in_script(pickled(value)),
        lambda value: in_zip(PROTOCOL + value + STOP),
        *[lambda value, slot=slot: legacy_with(slot, value) for slot in range(1, 5)],
    ],
    ids=["zip", "script", "whole", "legacy-2", "legacy-3", "legacy-4", "legacy-5"],
)
def test_code_is_not_executed(tmp_path: Path, wrap: Callable[[bytes], bytes]):
    made = tmp_path / "made"
    refused(wrap(payload(made)), "the name 'os.mkdir'.*nothing was executed")
    assert not made.exists()
    pickle.loads(PROTOCOL + payload(made) + STOP)  # the attack is a real one
    assert made.exists()


def test_a_file_whose_first_pickle_is_a_payload_is_refused(tmp_path: Path):
    made = tmp_path / "made"
    refused(legacy_with(0, payload(made)), "torch.save did not write")
    assert not made.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "exec"),
        ("__builtin__", "eval"),
        ("operator", "attrgetter"),
        ("importlib", "import_module"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "Counter"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch", "ComplexFloatStorage"),
        ("torch.storage", "UntypedStorage"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
        ("clip.model", "CLIP"),
        ("__torch__os", "mkdir"),
        ("__torch__", "Module"),
        ("torch.jit._pickle", "build_intlist"),
    ],
)
def test_names_that_are_not_on_the_list_are_refused(module: str, name: str):
    value = pickled(named(module, name))
    refused(in_zip(value), f"the name '{module}.{name}'")
    if not module.startswith(("__torch__", "torch.jit")) or module == "__torch__os":
        refused(in_script(value), f"the name '{module}.{name}'")


def test_only_the_opcodes_that_pytorch_writes_are_known():
    assert len(ALLOWED) == 32
    for code in range(256):
        if code not in ALLOWED:
            value = bytes([code]) + bytes(16)
            refused(in_zip(PROTOCOL + value + STOP), f"opcode {code:#04x}")
    refused(in_zip(PROTOCOL + b"\x80\x02" + STOP), "opcode 0x80")  # only at the start
    for protocol in (0, 1, 6, 255):
        head = bytes([0x80, protocol])
        refused(in_zip(head + ORDERED_DICT + STOP), "a pickle of protocol 2 to 5")


CALL = named("torch._utils", "_rebuild_tensor_v2")
PARAMETER = named("torch._utils", "_rebuild_parameter")
HOOKS = ORDERED_DICT + b"(" + text("h") + b"Nu"

MISUSES = {
    "build-on-a-function": (CALL + mapping({"__defaults__": b"N"}) + b"b", "sets the state"),
    "build-on-a-dict": (mapping({}) + mapping({}) + b"b", "sets the state"),
    "build-on-a-tensor": (TENSOR + mapping({}) + b"b", "sets the state"),
    "build-with-a-tuple": (ORDERED_DICT + b")b", "state of an object to a tuple"),
    "items-of-a-list": (b"](" + text("a") + b"Nu", "sets items of a list"),
    "items-of-a-function": (CALL + b"(" + text("a") + b"Nu", "sets items of a Global"),
    "odd-items": (b"}(" + text("a") + b"u", "sets items"),
    "append-to-a-dict": (b"}Na", "appends to a dict"),
    "append-to-a-text": (text("x") + b"Na", "appends to 'x'"),
    "call-an-instance": (ORDERED_DICT + b")R", "calls a OrderedDict"),
    "call-with-a-list": (named("collections", "OrderedDict") + b"]R", "calls"),
    "call-with-pairs": (named("collections", "OrderedDict") + sequence(b"]") + b"R", "calls"),
    "call-a-storage": (named("torch", "FloatStorage") + b")R", "calls 'FloatStorage'"),
    "new-dict": (named("collections", "OrderedDict") + b")\x81", "makes an instance"),
    "new-text": (text("x") + b")\x81", "makes an instance"),
    "too-few": (CALL + sequence(FLOATS) + b"R", "five values, got 1"),
    "negated": (CALL + sequence(FLOATS, *[b"K\x00"] * 6) + b"R", "five values, got 7"),
    "no-storage": (CALL + sequence(*[b"K\x00"] * 6) + b"R", "five values, got 6"),
    "hooks": (CALL + sequence(FLOATS, b"K\x00))\x89", HOOKS) + b"R", "has hooks"),
    "parameter-of-none": (PARAMETER + sequence(b"N", b"\x88", ORDERED_DICT) + b"R", "a parameter"),
    "parameter-hooks": (PARAMETER + sequence(TENSOR, b"\x88", HOOKS) + b"R", "has hooks"),
    "bool-offset": (CALL + sequence(FLOATS, b"\x88))\x89", ORDERED_DICT) + b"R", "no integers"),
    "float-size": (
        CALL + sequence(FLOATS, b"K\x00", sequence(b"G" + bytes(8)), b")\x89", ORDERED_DICT) + b"R",
        "no integers",
    ),
    "key-twice": (b"}(" + text("a") + b"N" + text("a") + b"Nu", "the key 'a' twice"),
    "key-of-a-tuple": (b"}()Nu", "key of a dict, got a tuple"),
    "key-of-a-bool": (b"}(\x88Nu", "key of a dict, got True"),
    "keys-of-equal-hash": (
        b"}(" + integer((1 << 61) - 1) + b"Nu",
        "expected a text or a small integer",
    ),
    "empty-stack": (b"a", "before it put something|takes more"),
    "no-mark": (b"t", "a mark that it did not set"),
    "mark-left": (b"(N", "more than one value"),
    "memo-unset": (b"h\x07", "entry 7 of its memo"),
    "memo-of-nothing": (b"(q\x00", "before it put something"),
    "text-too-long": (b"X\xff\xff\xff\xffab", "ends in its middle"),
    "text-not-utf8": (b"X\x01\x00\x00\x00\xff", "not UTF-8"),
    "long-too-long": (b"\x8a\xff\x00", "ends in its middle"),
    "endless-name": (b"cos\n" + b"a" * 400 + b"\n", "ASCII letters in a pickle"),
    "name-not-ascii": (b"c\xc3\xb6s\nx\n", "ASCII letters in a pickle"),
    "nothing": (b"]" * 3, "more than one value"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misused_opcodes_are_refused(name: str):
    value, message = MISUSES[name]
    tree = PROTOCOL + value + STOP
    refused(in_zip(tree), message)
    refused(in_script(tree), message)


def test_an_object_is_filled_once_and_only_in_an_archive():
    twice = OBJECT + mapping({"a": TENSOR}) + b"b" + mapping({"a": TENSOR}) + b"b"
    refused(in_script(PROTOCOL + twice + STOP), "sets the state of a Object")
    refused(in_script(PROTOCOL + mapping({"a": TENSOR}) + STOP), "the model of a TorchScript")
    refused(in_script(PROTOCOL + OBJECT + mapping({"a.b": TENSOR}) + b"b" + STOP), "attribute")


# Bombs --------------------------------------------------------------------------------------------


def cascade(start: bytes, end: bytes) -> bytes:
    """Sixty levels, each holding the one below twice: 2**60 things when walked."""
    value = start + mapping({"x": TENSOR}) + end + b"q\x00"
    for i in range(60):
        value = start + b"}(" + text("l") + value + text("r") + b"h" + bytes([i]) + b"u" + end
        value += b"q" + bytes([i + 1])
    return value


def deep(value: bytes, times: int) -> bytes:
    return PROTOCOL + value * times + STOP


CYCLE = b"}q\x00" + text("state_dict") + b"h\x00s"
CYCLIC_OBJECT = OBJECT + b"q\x00" + mapping({"a": TENSOR, "self": b"h\x00"}) + b"b"

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deep-tuples": (lambda: in_zip(PROTOCOL + b")" + b"\x85" * 100_000 + STOP), "got a tuple"),
    "deep-value": (
        lambda: in_zip(pickled(b")" + b"\x85" * 100_000)),
        "expected a tensor, got a tuple",
    ),
    "deep-lists": (
        lambda: in_zip(PROTOCOL + b"]" * 100_000 + b"a" * 99_999 + STOP),
        "got a list",
    ),
    "deep-key": (lambda: in_zip(pickled(b"})" + b"\x85" * 100_000 + b"Ns")), "key of a dict"),
    "marks": (lambda: in_zip(deep(b"(", 100_000)), "takes more"),
    "lists": (lambda: in_zip(deep(b"]", 100_000)), "more than one value"),
    "dicts": (lambda: in_zip(deep(b"}", 100_000)), "more than one value"),
    "objects": (
        lambda: in_script(PROTOCOL + OBJECT[:-2] + b"q\x00" + b"h\x00)\x81" * 40_000 + STOP),
        "more than one value",
    ),
    "memo": (
        lambda: in_zip(
            PROTOCOL
            + b"N"
            + b"".join(b"r" + struct.pack("<I", i << 12) for i in range(40_000))
            + STOP
        ),
        "got a NoneType",
    ),
    "cycle": (lambda: in_zip(PROTOCOL + CYCLE + STOP), "expected a tensor, got a dict"),
    "cyclic-object": (lambda: in_script(PROTOCOL + CYCLIC_OBJECT + STOP), "a module inside itself"),
    "cascade": (lambda: in_zip(PROTOCOL + cascade(b"", b"") + STOP), "entries without a tensor"),
    "cascade-of-objects": (
        lambda: in_script(PROTOCOL + cascade(OBJECT, b"b") + STOP),
        "expected at most 65536 attributes",
    ),
    "large-pickle": (
        lambda: in_zip(PROTOCOL + text("x" * pickles.LARGEST) + STOP),
        "expected at most 16777216 bytes of data.pkl",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_memory_in_proportion_to_their_file(name: str):
    make, message = BOMBS[name]
    data = make()
    tracemalloc.start()
    refused(data, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # an empty container takes one byte in the file and about 100 here; 16 MiB for the cascade
    assert peak < 150 * len(data) + (16 << 20)


def test_a_memo_of_four_thousand_million_places_is_not_made():
    tree = PROTOCOL + b"Nr\xff\xff\xff\xff" + text("x") + b"r\xfe\xff\xff\xff"
    refused(in_zip(tree + b"\x86" + STOP), "got a tuple")
    assert same(parse(in_zip(archives.state_dict(SMALL)[:-1] + b"r\xff\xff\xff\xff.")), SMALL)


def test_steps_records_and_tensors_have_a_limit(monkeypatch: pytest.MonkeyPatch):
    data = in_zip(archives.state_dict(SMALL))
    assert same(parse(data), SMALL)
    monkeypatch.setattr(pickles, "MOST_STEPS", 20)
    refused(data, "more than 20 steps")
    monkeypatch.undo()
    monkeypatch.setattr(state_dicts, "MOST_ENTRIES", 1)
    refused(data, "expected 1 to 1 tensors, got 2")
    monkeypatch.setattr(zip_records, "MOST_RECORDS", 4)
    refused(data, "5 records")
