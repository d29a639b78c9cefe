"""PyTorch's files come out bit by bit as they went in, without torch, and go in again."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.lib.peers import archives
from experiments.lib.peers.archives import Member, same
from jaxclip.convert.archive import torch_archive
from jaxclip.convert.archive.torch_archive import parse, read, write

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLE = archives.sample()
SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}


def numbers(arrays: dict[str, np.ndarray]) -> list[memoryview]:
    return [archives.raw(array) for array in arrays.values()]


def saved(pickle: bytes, arrays: dict[str, np.ndarray] = SMALL) -> bytes:
    """A zip of torch.save around a pickle."""
    return archives.zip_bytes(archives.save_members(pickle, numbers(arrays)))


def dumped(items: dict[str, bytes]) -> bytes:
    return archives.PROTOCOL + archives.mapping(items) + archives.STOP


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", archives.KINDS)
def test_files_that_torch_wrote_read_bit_by_bit(kind: str):
    assert same(read(GOLDEN / f"torch_{kind}.pt"), SAMPLE)


@pytest.mark.parametrize("kind", archives.KINDS)
def test_files_made_by_hand_read_bit_by_bit_in_their_order(kind: str):
    arrays = parse(archives.MAKERS[kind](SAMPLE))
    assert same(arrays, SAMPLE)
    # an archive has the attributes of a module before those of its children
    assert kind == "script" or list(arrays) == list(SAMPLE)


@pytest.mark.parametrize("kind", archives.KINDS)
def test_another_bit_would_be_noticed(kind: str):
    data = bytearray((GOLDEN / f"torch_{kind}.pt").read_bytes())
    at = data.index(SAMPLE["visual.conv1.weight"].tobytes())
    data[at] ^= 1
    assert not same(parse(bytes(data)), SAMPLE)


def test_a_file_in_the_official_layout_reads_under_any_name(tmp_path: Path):
    path = tmp_path / "ViT-B-32.v1.pt"
    archives.write_torchscript_like(path, SAMPLE)
    assert same(read(path), SAMPLE)
    names = zipfile.ZipFile(path).namelist()
    assert {"ViT-B-32.v1/data.pkl", "ViT-B-32.v1/constants.pkl", "ViT-B-32.v1/data/0"} <= {*names}


def test_the_local_header_says_where_the_numbers_start():
    """Its extra field is padded, the directory's is empty: the latter would give other bytes."""
    data = archives.script(SMALL)
    info = zipfile.ZipFile(io.BytesIO(data)).getinfo("ViT-B-32/data/0")
    wrong = info.header_offset + 30 + len(info.filename) + len(info.extra)
    right = data.index(SMALL["a"].tobytes())
    assert right % 64 == 0
    assert wrong != right
    assert same(parse(data), SMALL)


@pytest.mark.parametrize("kind", archives.KINDS)
def test_arrays_are_views_that_cannot_be_written(kind: str):
    data = archives.MAKERS[kind](SAMPLE)
    held = np.frombuffer(data, np.uint8)
    for name, array in parse(data).items():
        assert not array.flags.writeable
        assert array.size == 0 or np.shares_memory(array, held), name


def test_nothing_of_a_mapped_file_is_loaded(tmp_path: Path):
    """Five GiB of numbers, which are a hole in the file; also sizes that need 64 bits."""
    path = tmp_path / "large.pt"
    size = 5 << 28
    pickle = dumped(
        {"a": archives.view(archives.storage("FloatStorage", "0", size), 0, [size], [1])}
    )
    with open(path, "wb") as file:
        write_sparse(file, pickle, 1024, size * 4)
    array = read(path)["a"]
    assert (array.nbytes, array[0], array[-1]) == (5 << 30, 0, 0)


def write_sparse(file: Any, pickle: bytes, start: int, size: int) -> None:
    """A zip with 64-bit sizes whose second record is a hole in the file."""
    directory = io.BytesIO()
    first = Member("x/data.pkl", pickle)
    archives._write_record(file, first, directory)
    at = file.tell()
    padding = start - at - 30 - len("x/data/0") - 24
    wide = struct.pack("<HHQQ", 1, 16, size, size)
    local = wide + struct.pack("<2sH", b"FB", padding) + bytes(padding)
    full = 0xFFFFFFFF
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, full, full, 8, len(local))
    file.write(head + b"x/data/0" + local)
    assert file.tell() == start
    file.seek(start + size)
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, full, full, 8, 20, 0, 0, 0, 0, at
    )
    entries = directory.getvalue() + central + b"x/data/0" + wide
    file.write(entries)
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(entries), start + size)
    file.write(end + struct.pack("<4sIQI", b"PK\6\7", 0, start + size + len(entries), 1))
    file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(entries), full, 0))


def test_sizes_of_64_bits_read():
    members = archives.save_members(archives.state_dict(SMALL), numbers(SMALL))
    for member in members:
        member.wide, member.local_size = True, 0xFFFFFFFF
    assert same(parse(archives.zip_bytes(members)), SMALL)


def test_strided_and_shared_views_read_without_copies():
    held = archives.storage("FloatStorage", "0", 6)
    views = {
        "whole": archives.view(held, 0, [2, 3], [3, 1]),
        "transposed": archives.view(held, 0, [3, 2], [1, 3]),
        "last": archives.view(held, 5, [1, 1], [10**12, 7]),  # where the size is 1, any stride
        "none": archives.view(held, 6, [0, 4], [4, 1]),
        "repeated": archives.view(held, 2, [3, 2], [1, 0]),
    }
    arrays, a = parse(saved(dumped(views))), SMALL["a"]
    expected = [a, a.T, [[5]], np.zeros((0, 4)), [[2, 2], [3, 3], [4, 4]]]
    for (name, array), value in zip(arrays.items(), expected, strict=True):
        np.testing.assert_array_equal(array, value, err_msg=name)
    assert np.shares_memory(arrays["whole"], arrays["transposed"])


def test_parameters_and_metadata_read():
    tensors = archives.wholes(SMALL)
    rebuild = archives.named("torch._utils", "_rebuild_parameter")
    wrapped = archives.sequence(tensors["a"], b"\x88", archives.ORDERED_DICT)
    tensors["a"] = rebuild + wrapped + b"R"
    versions = archives.mapping({"_metadata": archives.mapping({"": b"N"}, archives.ORDERED_DICT)})
    state = archives.mapping(tensors, archives.ORDERED_DICT) + versions + b"b"
    assert same(parse(saved(archives.PROTOCOL + state + b".")), SMALL)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_of_a_training_checkpoint_the_weights_alone_come(wrapper: str):
    """As open_clip writes it: epoch, name, weights of DistributedDataParallel, optimizer."""
    renamed = {f"module.{name}": tensor for name, tensor in archives.wholes(SMALL).items()}
    moments = archives.storage("FloatStorage", "0", 6)
    average = archives.mapping({"exp_avg": archives.view(moments, 0, [6], [1])})
    states = b"}" + archives.integer(0) + average + b"s"
    checkpoint = {
        "epoch": archives.integer(32),
        "name": archives.text("run"),
        wrapper: archives.mapping(renamed, archives.ORDERED_DICT),
        "optimizer": archives.mapping({"state": states, "param_groups": archives.listing(b"}")}),
    }
    assert same(parse(saved(dumped(checkpoint))), SMALL)


def test_a_prefix_that_not_all_names_carry_stays():
    tensors = archives.wholes(SMALL)
    arrays = parse(saved(dumped({"module.a": tensors["a"], "b": tensors["b"]})))
    assert list(arrays) == ["module.a", "b"]


def test_numbers_and_texts_beside_the_tensors_are_left_out():
    beside = {"epoch": b"K\x03", "loss": b"G" + bytes(8), "name": archives.text("x"), "none": b"N"}
    assert same(parse(saved(dumped({**beside, **archives.wholes(SMALL)}))), SMALL)


def test_attributes_of_an_archive_that_are_no_tensors_are_left_out():
    lists = archives.named("torch.jit._pickle", "build_intlist")
    lists += archives.sequence(archives.listing(b"K\x01")) + b"R"
    tensors = archives.wholes(SMALL)
    child = archives.named("__torch__.torch.nn.modules.___torch_mangle_7", "Linear") + b")\x81"
    child += archives.mapping({"sizes": lists, "b": tensors["b"], "eps": b"G" + bytes(8)}) + b"b"
    root = archives.named("__torch__", "Model") + b")\x81"
    root += archives.mapping({"a": tensors["a"], "-1": child, "again": child}) + b"b"
    pickle = archives.PROTOCOL + root + archives.STOP
    arrays = parse(archives.zip_bytes(archives.script_members(pickle, numbers(SMALL))))
    assert same(arrays, {"a": SMALL["a"], "-1.b": SMALL["b"], "again.b": SMALL["b"]})


def test_what_an_archive_holds_beside_data_is_never_read():
    """Payloads in constants.pkl, in the code and in other pickles: loads as if they were not."""
    payload = (
        archives.PROTOCOL + archives.named("os", "_exit") + archives.sequence(b"K\x07") + b"R."
    )
    members = list(archives.script_members(archives.module_tree(SMALL), numbers(SMALL)))
    for member in members:
        if "constants" in member.name or "code" in member.name:
            member.data = payload
    members.append(Member("ViT-B-32/extra/evil.pkl", payload))
    assert same(parse(archives.zip_bytes(members)), SMALL)


def test_reading_imports_neither_torch_nor_jax():
    code = (
        "import sys, pathlib; from jaxclip.convert.archive.torch_archive import read; "
        "print(len(read(pathlib.Path(sys.argv[1])))); "
        "print(sorted({'torch', 'jax', 'flax'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(GOLDEN / "torch_script.pt")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert answer.split() == [str(len(SAMPLE)), "[]"]


# Writing ------------------------------------------------------------------------------------------


def test_written_arrays_read_back_in_their_order(tmp_path: Path):
    write(tmp_path / "a.pt", SAMPLE)
    arrays = read(tmp_path / "a.pt")
    assert same(arrays, SAMPLE)
    assert list(arrays) == list(SAMPLE)


def test_written_bytes_depend_on_the_arrays_alone(tmp_path: Path):
    for name in ("a.pt", "folder/b.pt"):
        write(tmp_path / name, SAMPLE)
    first = (tmp_path / "a.pt").read_bytes()
    assert first == (tmp_path / "folder/b.pt").read_bytes()
    write(tmp_path / "a.pt", SAMPLE | {"bytes": SAMPLE["bytes"] + 1})
    assert first != (tmp_path / "a.pt").read_bytes()


@pytest.mark.parametrize("threshold", [None, 0], ids=["sizes-32", "sizes-64"])
def test_written_records_are_stored_and_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int | None
):
    if threshold is not None:
        monkeypatch.setattr(torch_archive, "LARGE", threshold)
    path = tmp_path / "a.pt"
    write(path, SAMPLE)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        for info in file.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.header_offset + 30 + name + extra) % 64 == 0
    assert same(read(path), SAMPLE)


def test_arrays_of_any_layout_are_written(tmp_path: Path):
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path / "a.pt", {"turned": a.T, "sliced": a[:, ::2], "big": a.astype(">f4")})
    arrays = read(tmp_path / "a.pt")
    assert same(arrays, {"turned": a.T.copy(), "sliced": a[:, ::2].copy(), "big": a})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(2, np.complex64)}, "got complex64"),
        ({"a": np.zeros(2, np.uint16)}, "got uint16"),
        ({"a": np.array(["x"])}, "got <U1"),
        ({"": np.zeros(2)}, "name of a tensor, got ''"),
        ({"a\n": np.zeros(2)}, "name of a tensor"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_writing(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.pt", arrays)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.pt"
    write(path, SMALL)
    add = torch_archive._add

    def full_disk(file: zipfile.ZipFile, name: str, data: memoryview | bytes) -> None:
        if name == "data/1":
            raise OSError("no space left on device")
        add(file, name, data)

    monkeypatch.setattr(torch_archive, "_add", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(path, SAMPLE)
    assert same(read(path), SMALL)
    assert list(tmp_path.iterdir()) == [path]
