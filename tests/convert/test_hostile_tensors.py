"""Tensors and state dicts that claim what the file does not hold are refused."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.lib.peers import archives
from experiments.lib.peers.archives import (
    PROTOCOL,
    STOP,
    integer,
    listing,
    mapping,
    named,
    sequence,
    storage,
    text,
    view,
)
from jaxclip.convert.archive.torch_archive import parse
from tests.support.hostile import BYTES, FLOATS, OBJECT, TENSOR, in_script, in_zip, pickled, refused

# Geometry -----------------------------------------------------------------------------------------

SOUND = [(0, [2, 3], [3, 1]), (5, [], []), (5, [1], [1 << 70]), (6, [0], [1]), (0, [3, 2], [1, 0])]
WRONG = [
    (1, [2, 3], [3, 1], "reaches past its 6"),
    (6, [], [], "reaches past"),
    (-1, [2], [1], "negative"),
    (0, [-1], [1], "negative"),
    (5, [2], [-1], "negative"),
    (0, [7], [0], "reaches past"),
    (0, [10**12], [0], "reaches past"),
    (0, [1 << 62, 4], [1, 1], "reaches past"),
    (0, [2], [6], "reaches past"),
    (0, [2, 2], [1 << 63, 1 << 63], "reaches past"),
    ((1 << 64) - 1, [2], [1], "reaches past"),
    (0, [2, 3], [1], "2 sizes and 1 strides"),
    (0, [1] * 9, [1] * 9, "9 sizes"),
    (7, [0], [1], "lies outside"),
    (0, [0, 1 << 62], [1, 1], "claims a huge size"),
]


@pytest.mark.parametrize(("offset", "shape", "strides"), SOUND)
def test_sound_geometry_reads(offset: int, shape: list[int], strides: list[int]):
    arrays = parse(in_zip(pickled(view(FLOATS, offset, shape, strides))))
    assert arrays["b"].shape == tuple(shape)
    assert arrays["b"].size == 0 or arrays["b"].ravel()[0] == offset


@pytest.mark.parametrize(("offset", "shape", "strides", "message"), WRONG)
def test_geometry_past_the_storage_is_refused(
    offset: int, shape: list[int], strides: list[int], message: str
):
    value = view(FLOATS, offset, shape, strides)
    refused(in_zip(pickled(value)), message)
    refused(in_script(PROTOCOL + OBJECT + mapping({"a": value}) + b"b" + STOP), message)
    old = view(storage("FloatStorage", "0", 6, legacy=True), offset, shape, strides)
    numbers = {"0": (6, BYTES[0])}
    refused(archives.legacy_file(PROTOCOL + mapping({"a": old}) + STOP, numbers), message)


def test_storages_shared_beyond_reason_are_refused():
    """Views cost nothing until somebody stacks or converts them: then a small file fills memory."""
    numbers = np.ones(10_000, np.float32)
    held = storage("FloatStorage", "0", numbers.size)

    def sharing(times: int) -> bytes:
        tensors = {f"t{i}": view(held, 0, [numbers.size], [1]) for i in range(times)}
        pickle = PROTOCOL + mapping(tensors) + STOP
        return archives.zip_bytes(archives.save_members(pickle, [numbers.tobytes()]))

    assert len(parse(sharing(4))) == 4
    refused(sharing(6), "lie over each other")


@pytest.mark.parametrize("size", [0, 5, 7, 10**12, 1 << 62, 1 << 200])
def test_a_storage_of_another_size_than_its_bytes_is_refused(size: int):
    value = view(storage("FloatStorage", "0", size), 0, [min(size, 5)], [1])
    refused(in_zip(PROTOCOL + mapping({"a": value}) + STOP), "data/0 has 24 bytes")


@pytest.mark.parametrize(
    "key", ["", "../version", "../../etc/passwd", "0a", "-1", "\u0663", "1" * 21, "0\n", "archive"]
)
def test_a_storage_key_that_is_no_number_is_refused(key: str):
    refused(
        in_zip(pickled(view(storage("FloatStorage", key, 6), 0, [6], [1]))),
        "name of a storage, got",
    )


def test_references_that_are_no_storages_are_refused():
    parts = [text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), integer(6)]
    for i, wrong in (
        (0, text("module")),
        (1, text("x")),
        (3, b"N"),
        (4, b"\x88"),
        (4, integer(-1)),
    ):
        changed = [*parts[:i], wrong, *parts[i + 1 :]]
        refused(in_zip(pickled(sequence(*changed) + b"Q")), "storage")
    refused(in_zip(pickled(sequence(*parts, text("view")) + b"Q")), "is a view of another")
    refused(in_zip(pickled(sequence(*parts[:4]) + b"Q")), "reference to a storage")
    refused(in_zip(pickled(view(storage("HalfStorage", "0", 12), 0, [6], [1]))), "in two ways")
    refused(
        in_zip(pickled(view(storage("FloatStorage", "9", 6), 0, [6], [1]))),
        "expected 'data/9' in the zip",
    )


def test_truth_values_that_are_neither_are_refused():
    arrays = {"a": np.array([1, 2], np.uint8)}
    tree = PROTOCOL + mapping({"a": view(storage("BoolStorage", "0", 2), 0, [2], [1])}) + STOP
    data = archives.zip_bytes(archives.save_members(tree, [archives.raw(arrays["a"])]))
    refused(data, "truth values")


# State dicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (TENSOR, "got a single tensor"),
        (listing(TENSOR), "got a list"),
        (b"N", "got a NoneType"),
        (mapping({}), "got 0 entries without a tensor"),
        (mapping({"epoch": b"K\x01", "net": mapping({"a": TENSOR})}), "'epoch', 'net'"),
        (
            mapping({"model": mapping({"a": TENSOR}), "state_dict": mapping({"a": TENSOR})}),
            "exactly one of",
        ),
        (mapping({"state_dict": mapping({"x": b"K\x01"})}), "got 0"),
        (
            mapping({"a": TENSOR, "more": mapping({"b": TENSOR})}),
            "'more': expected a tensor, got a dict",
        ),
        (mapping({"a": TENSOR, "list": b"]"}), "'list': expected a tensor, got a list"),
        (mapping({"": TENSOR}), "name of a tensor, got ''"),
        (mapping({"a\nb": TENSOR}), r"name of a tensor, got 'a\\nb'"),
        (mapping({"x" * 600: TENSOR}), "name of a tensor, got"),
        (b"}" + integer(3) + TENSOR + b"s", "name of a tensor, got 3"),
    ],
)
def test_trees_that_are_no_state_dict_are_refused(value: bytes, message: str):
    refused(in_zip(PROTOCOL + value + STOP), message)
