"""safetensors files that lie, and checkpoints in several files: refused, in one line."""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

import jaxclip
from jaxclip import checkpoint, convert
from jaxclip.convert.archive.safetensors_file import parse
from tests.support import foreign

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(3, dtype=np.float16),
    "c": np.array(7, np.int64),
    "d": np.arange(4).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 5), np.float32),
}
SOUND = save(ARRAYS, {"format": "pt"})
FILES = 4_000  # spoilt ones, of each of two ways
SLOWEST = 5.0  # seconds of the processor for one file; the usual is a thousandth


def build(header: Any, numbers: bytes = bytes(24), length: int | None = None) -> bytes:
    """A file by hand: a header that may lie, and numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def tensor(begin: Any = 0, end: Any = 24, shape: Any = (2, 3), dtype: Any = "F32") -> Any:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_reads_bit_by_bit() -> None:
    arrays, metadata = parse(SOUND)
    assert metadata == {"format": "pt"} and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
        assert not arrays[name].flags.writeable
    assert parse(build({"a": tensor()}))[0]["a"].shape == (2, 3)


HUGE = 1 << 62
LIES: dict[str, tuple[bytes, str]] = {
    "header-past-the-end": (build({"a": tensor()}, length=1 << 20), "header claims"),
    "header-of-2**63": (build({"a": tensor()}, length=1 << 63), "header claims"),
    "header-too-long": (build(b"{" + b" " * (17 << 20) + b"}"), "more than"),
    "header-of-nothing": (build(b""), "header claims"),
    "header-cut": (build(b'{"a"'), "JSON"),
    "leading-space": (build(b'  {"a": 1}'), "brace"),
    "no-text": (build(b'{"\xff\xfe": 1}'), "UTF-8|JSON"),
    "a-name-twice": (
        build(b'{"a": %b, "a": %b}' % ((json.dumps(tensor()).encode(),) * 2)),
        "twice",
    ),
    "a-key-twice": (
        build(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [6], "data_offsets": [0, 24]}}'),
        "twice",
    ),
    "deep": (build(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), ""),
    "endless-number": (build(b'{"a": ' + b"9" * 100_000 + b"}"), ""),
    "nan": (build(b'{"a": NaN}'), ""),
    "no-object": (build(b"[1, 2]"), "brace"),
    "overlap": (build({"a": tensor(), "b": tensor(20, 44)}, bytes(44)), "overlap"),
    "the-same-bytes": (build({"a": tensor(), "b": tensor()}), "overlap"),
    "hole": (build({"a": tensor(), "b": tensor(28, 52)}, bytes(52)), "hole"),
    "trailing": (build({"a": tensor()}, bytes(25)), "goes on"),
    "past-the-end": (build({"a": tensor()}, bytes(23)), "past the end"),
    "offsets-backwards": (build({"a": tensor(24, 0)}), "bytes for"),
    "offsets-negative": (build({"a": tensor(-24, 0)}), "no whole numbers"),
    "offsets-a-fraction": (build({"a": tensor(0.0, 24.0)}), "no whole numbers"),
    "offsets-true": (build({"a": tensor(False, 24)}), "no whole numbers"),
    "offsets-three": (build({"a": {**tensor(), "data_offsets": [0, 24, 24]}}), "no whole numbers"),
    "shape-negative": (build({"a": tensor(shape=(-2, -3))}), "no whole numbers"),
    "shape-overflows": (build({"a": tensor(shape=(HUGE, 16))}), "huge"),
    "shape-empty-and-huge": (build({"a": tensor(0, 0, (0, HUGE))}, b""), "huge"),
    "shape-of-rank-9": (build({"a": tensor(0, 4, (1,) * 9)}, bytes(4)), "9 sizes"),
    "shape-larger": (build({"a": tensor(shape=(2, 4))}), "24 bytes for"),
    "dtype-unknown": (build({"a": tensor(dtype="F8_E4M3")}), "F8_E4M3"),
    "dtype-a-number": (build({"a": tensor(dtype=4)}), "dtype"),
    "key-too-many": (build({"a": {**tensor(), "stride": [1]}}), "something else"),
    "key-missing": (build({"a": {"dtype": "F32", "shape": [6]}}), "something else"),
    "name-empty": (build({"": tensor()}), "name of a tensor"),
    "name-with-control-characters": (build({"a\x1b[2J": tensor()}), "name of a tensor"),
    "name-too-long": (build({"a" * 600: tensor()}), "name of a tensor"),
    "metadata-no-texts": (build({"__metadata__": {"a": 1}, "a": tensor()}), "__metadata__"),
    "truth-values-of-two": (build({"a": tensor(0, 2, (2,), "BOOL")}, b"\1\2"), "truth values"),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie_are_refused(name: str, tmp_path: Path) -> None:
    data, message = LIES[name]
    with pytest.raises(ValueError, match=f"(?i){message}"):
        parse(data)
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.safetensors") as caught:
        convert.read(tmp_path / "a.safetensors")
    said = str(caught.value)
    assert "\n" not in said and "\x1b" not in said and len(said) < 1000


def test_a_file_cut_at_any_byte_is_refused() -> None:
    for size in range(len(SOUND)):
        with pytest.raises(ValueError):
            parse(SOUND[:size])


def spoilt_bytes(draw: random.Random) -> bytes:
    data = bytearray(SOUND)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                del data[at : at + draw.randrange(1, 9)]
            case 2:
                data[at:at] = data[: draw.randrange(1, 40)]
            case _:
                data = data[: at + 1]
        if len(data) < 2:
            break
    return bytes(data)


VALUES = [0, 1, -1, 24, 2**31, 2**53, 2**63, 10**30, 1.5, True, None, "F32", "", [], {}, [0, 24]]


def spoilt_header(draw: random.Random) -> bytes:
    """A header whose JSON is sound and whose values are anything."""
    length = int.from_bytes(SOUND[:8], "little")
    header = json.loads(SOUND[8 : 8 + length])
    for _ in range(draw.choice((1, 1, 2, 4))):
        name = draw.choice(list(header))
        entry = header[name]
        match draw.randrange(4):
            case 0:
                header[name] = draw.choice(VALUES)
            case 1 if isinstance(entry, dict):
                entry[draw.choice([*entry, "stride"])] = draw.choice(VALUES)
            case 2 if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                entry["shape"].append(draw.choice(VALUES))
            case _:
                header[draw.choice(("a", "z", "", "\x00"))] = entry
    numbers = SOUND[8 + length :]
    return build(header, numbers[: len(numbers) - draw.choice((0, 0, 0, 1))])


@pytest.mark.parametrize("spoil", [spoilt_bytes, spoilt_header])
def test_spoilt_files_load_or_are_refused(spoil: Any) -> None:
    """Anything but a ValueError ends the test by itself."""
    draw = random.Random(spoil.__name__)
    ends: Counter[str] = Counter()
    for _ in range(FILES):
        data = spoil(draw)
        began = time.process_time()
        try:
            arrays, _ = parse(data)
            assert sum(array.nbytes for array in arrays.values()) <= len(data)
            ends["read"] += 1
        except ValueError as error:
            assert "\n" not in str(error)
            ends["refused"] += 1
        assert time.process_time() - began < SLOWEST, data.hex()
    assert ends.total() == FILES and ends["refused"] > FILES // 2 and ends["read"] > 5


# Several files ------------------------------------------------------------------------------------


def sharded(folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder of two files and an index, with something in the index changed."""
    arrays = foreign.hugging_face(foreign.openai())
    names = sorted(arrays)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, own in parts.items():
        checkpoint.save_arrays(folder / file, {name: arrays[name] for name in own}, {})
    places = {name: file for file, own in parts.items() for name in own} | changes
    index = {"metadata": {}, "weight_map": {k: v for k, v in places.items() if v is not None}}
    foreign.write_json(folder / "model.safetensors.index.json", index)
    foreign.write_json(folder / "config.json", foreign.hugging_face_config())
    return folder


def test_a_checkpoint_in_several_files_is_one_model(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arrays = foreign.hugging_face(foreign.openai())
    checkpoint.save_arrays(whole / "model.safetensors", arrays, {})
    foreign.write_json(whole / "config.json", foreign.hugging_face_config())
    one, two = convert.load(whole), convert.load(sharded(parts))
    assert one.config == two.config
    assert all(np.array_equal(one.flat[name], two.flat[name]) for name in one.flat)
    assert len(two.notes["source"]["sha256"]) == 4


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../elsewhere.safetensors", "plain name"),
        ("/etc/passwd", "plain name"),
        ("https://example.invalid/a.safetensors", "plain name"),
        ("a\\b.safetensors", "plain name"),
        (".hidden.safetensors", "plain name"),
        ("model-00003-of-00002.safetensors", "disagree"),
        ("model-00001-of-00002.bin", "plain name"),
        (7, "plain name"),
        (None, "disagree"),
        ("model-00002-of-00002.safetensors", "disagree"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, place: Any, message: str) -> None:
    name = "logit_scale"  # in the first file
    with pytest.raises(ValueError, match=message):
        jaxclip.load(sharded(tmp_path, **{name: place}))
