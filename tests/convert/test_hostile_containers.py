"""Zips and old files that lie about what they hold, cut at every byte, or are something else."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from experiments.lib.peers import archives
from experiments.lib.peers.archives import Member, same, zip_bytes
from jaxclip import convert
from jaxclip.convert.archive.torch_archive import parse, read
from tests.support.hostile import BYTES, SMALL, in_legacy, in_script, in_zip, members, refused

GOLDEN = Path(__file__).parents[1] / "golden"
TREES = {
    "script": archives.module_tree(SMALL),
    "zip": archives.state_dict(SMALL),
    "legacy": archives.state_dict(SMALL, legacy=True),
}
WRAPS = {"script": in_script, "zip": in_zip, "legacy": in_legacy}
SOUND = {kind: WRAPS[kind](tree) for kind, tree in TREES.items()}


def changed(index: int, **fields: object) -> bytes:
    """A sound zip (pickle, byte order, two storages, version) but for some fields of a record."""
    records = members()
    for name, value in fields.items():
        setattr(records[index], name, value)
    return zip_bytes(records)


def patched(kind: str, at: int, value: bytes) -> bytes:
    """A sound file but for some bytes; from its end where `at` is negative."""
    data = bytearray(SOUND[kind])
    start = at % len(data)
    data[start : start + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize("kind", archives.KINDS)
def test_the_files_that_are_spoilt_below_are_sound(kind: str):
    assert same(parse(SOUND[kind]), SMALL)
    assert same(parse(changed(0)), SMALL)


# Zips ---------------------------------------------------------------------------------------------


def without(index: int) -> bytes:
    records = members()
    del records[index]
    return zip_bytes(records)


def with_more(*more: Member) -> bytes:
    return zip_bytes([*members(), *more])


def renamed(name: str) -> bytes:
    return with_more(Member(name, b"x"))


HUGE = 1 << 28  # bytes that a deflated record of 260 kB claims to become
START64 = -20 - 22 - 56  # of the 64-bit end record, from the end of the file

ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "duplicate": (
        lambda: with_more(Member("tiny.v1/data/0", bytes(24))),
        "'tiny.v1/data/0' is .*twice",
    ),
    "duplicate-pickle": (lambda: with_more(members()[0]), "data.pkl' is there twice"),
    "two-roots": (lambda: renamed("other/data.pkl"), "one folder that holds data.pkl"),
    "no-root": (lambda: renamed("data.pkl"), "one folder that holds data.pkl"),
    "traversal": (lambda: renamed("tiny.v1/../../etc/passwd"), "leads out of its folder"),
    "dot": (lambda: renamed("tiny.v1/./data/3"), "leads out"),
    "absolute": (lambda: renamed("/etc/passwd"), "leads out"),
    "backslash": (lambda: renamed("tiny.v1\\..\\x"), "leads out"),
    "drive": (lambda: renamed("C:/x"), "leads out"),
    "nul": (lambda: renamed("tiny.v1/data/3\0.txt"), "leads out"),
    "folder": (lambda: renamed("tiny.v1/data/"), "leads out"),
    "no-pickle": (lambda: without(0), "expected 'data.pkl' in the zip"),
    "no-storage": (lambda: without(2), "expected 'data/0' in the zip"),
    "packed-storage": (
        lambda: changed(2, packed=True),
        "'data/0' stored in the zip, .* got it compressed",
    ),
    "packed-pickle": (
        lambda: changed(0, packed=True),
        "'data.pkl' stored in the zip, .* got it compressed",
    ),
    "bomb": (lambda: changed(0, data=bytes(HUGE // 64), packed=True), "got it compressed"),
    "encrypted": (lambda: changed(2, flags=0x0809), "encrypted"),
    "checksum": (lambda: changed(0, crc=1), "checksum of data.pkl is wrong"),
    "big-endian": (lambda: changed(1, data=b"big"), "byte order b'little', got b'big'"),
    "odd-endian": (lambda: changed(1, data=b"little\n"), "byte order"),
    "local-name": (lambda: changed(2, local_name="tiny.v1/data/1"), "differently by its own"),
    "local-size": (lambda: changed(2, local_size=23), "two sizes"),
    "claimed-size": (lambda: changed(2, size=1 << 31), "overlaps|past the end"),
    "claimed-size-64": (lambda: changed(2, size=1 << 62, wide=True), "has two|overlaps|past"),
    "size-of-4-gib": (lambda: changed(4, size=0xFFFFFFF0), "past the end|two sizes"),
    "overlap": (lambda: changed(3, header=members_at(2)), "overlaps the one before"),
    "header-outside": (lambda: changed(3, header=1 << 30), "expected a 0304 header|leaves a gap"),
    "header-of-64-bits": (
        lambda: changed(3, header=1 << 63, wide=True),
        "expected a 0304 header|gap",
    ),
    "gap": (lambda: changed(2, gap=b"hidden"), "leaves a gap"),
    "gap-before-directory": (lambda: changed(4, gap=b"hidden"), "between the records and"),
    "prefix": (lambda: b"PK\3\4" + SOUND["zip"], "64-bit end record"),
    "suffix": (lambda: SOUND["zip"] + b"\n", "cut off, or something was appended"),
    "comment": (lambda: zip_bytes(members(), comment=b"hi"), "cut off, or something"),
    "end-in-comment": (
        lambda: zip_bytes(members(), comment=SOUND["zip"][-22:]),
        "directory|end record",
    ),
    "zip-and-zip": (lambda: SOUND["zip"] + SOUND["zip"], "64-bit end record"),
    "zip-and-legacy": (lambda: SOUND["zip"] + SOUND["legacy"], "cut off, or something"),
    "legacy-and-zip": (lambda: SOUND["legacy"] + SOUND["zip"], "goes on for"),
    "counts": (lambda: zip_bytes(members(), wide_count=4), "disagree|longer"),
    "count-of-many": (lambda: patched("zip", START64 + 24, b"\xff" * 16), "disagree"),
    "no-records": (lambda: b"PK\3\4" + b"PK\5\6" + bytes(18), "0 records"),
    "parts": (lambda: patched("zip", -18, b"\1\0"), "several parts"),
    "end64-moved": (lambda: patched("zip", -22 - 20 + 8, bytes(8)), "64-bit end record"),
    "pickle-and-more": (
        lambda: in_zip(TREES["zip"] + b"more"),
        "goes on for 4 bytes after its pickle",
    ),
    "name-not-utf8": (lambda: SOUND["zip"].replace(b"tiny", b"t\xffny"), "not UTF-8"),
}


def members_at(index: int) -> int:
    records = members()
    zip_bytes(records)
    return records[index].at


@pytest.mark.parametrize("name", ZIPS)
def test_zips_that_lie_are_refused(name: str):
    make, message = ZIPS[name]
    refused(make(), message)


def test_zips_of_other_programs_are_named():
    file = io.BytesIO()
    np.savez(file, a=np.ones(3), b=np.ones(2))
    refused(file.getvalue(), "if this is an .npz read it with numpy.load")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as outer:
        outer.writestr("ViT-B-32.pt", SOUND["zip"])
    refused(file.getvalue(), "unpack it first")
    with zipfile.ZipFile(io.BytesIO(), "w") as empty:
        pass
    assert empty.namelist() == []
    refused(b"PK\5\6" + bytes(18), "an empty or split zip")


# Old files ----------------------------------------------------------------------------------------


def old(**options: object) -> bytes:
    numbers = archives.legacy_numbers(SMALL)
    return archives.legacy_file(TREES["legacy"], numbers, **options)  # type: ignore[arg-type]


OLD: dict[str, tuple[Callable[[], bytes], str]] = {
    "listed-twice": (lambda: old(listed=["0", "1", "1"]), "not those that its pickle uses"),
    "not-listed": (lambda: old(listed=["0"]), "not those"),
    "one-more": (lambda: old(listed=["0", "1", "2"]), "not those"),
    "big-endian": (lambda: old(little_endian=b"\x89"), "expected a little-endian file"),
    "not-said": (lambda: old(little_endian=b"K\x01"), "expected a little-endian file"),
    "version": (
        lambda: old(version=b"K\x07"),
        "expected version 1001, got 7",
    ),
    "count": (
        lambda: archives.legacy_file(TREES["legacy"], {"0": (5, BYTES[0]), "1": (1, BYTES[1])}),
        "another size",
    ),
    "negative-count": (
        lambda: archives.legacy_file(TREES["legacy"], {"0": (-6, BYTES[0]), "1": (1, BYTES[1])}),
        "another size",
    ),
    "suffix": (lambda: old() + b"\n", "goes on for 1 bytes"),
    "keys-not-texts": (
        lambda: old().replace(
            archives.listing(archives.text("0"), archives.text("1")),
            archives.listing(b"K\x00", b"K\x01"),
        ),
        "expected a list of storages",
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_old_files_that_lie_are_refused(name: str):
    make, message = OLD[name]
    refused(make(), message)


# Cut off, or something else -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", archives.KINDS)
def test_a_file_cut_at_any_byte_is_refused(kind: str):
    for data in (SOUND[kind], (GOLDEN / f"torch_{kind}.pt").read_bytes()):
        parse(data)
        for size in range(len(data)):
            with pytest.raises(ValueError):
                parse(data[:size])


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return file.getvalue()


def high_safetensors() -> bytes:
    """One whose header is 128 bytes more than a multiple of 256: it starts as a pickle does."""
    for size in range(256):
        data = save({"a" * (1 + size): np.ones(2, np.float32)})
        if data[0] == 0x80:
            return data
    raise AssertionError("none found")


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "page": (lambda: b"\n<!DOCTYPE html><html>Log in", "an HTML page"),
    "error": (lambda: b"<?xml version='1.0'?><Error>", "an XML text"),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "git lfs pull",
    ),
    "gzip": (lambda: gzip.compress(SOUND["zip"]), "a gzip file; unpack it"),
    "tar": (tar, "a tar file"),
    "safetensors": (lambda: save({"a": np.ones(2)}), "a safetensors file"),
    "safetensors-like-a-pickle": (high_safetensors, "a safetensors file"),
    "pickle": (lambda: b"\x80\x04K\x01.", "a pickle that torch.save did not write"),
    "start": (lambda: SOUND["legacy"][:9], "a file of a few bytes"),
    "zeros": (lambda: bytes(1000), r"one that starts with b'\\x00"),
    "text": (lambda: b"weights: none", "one that starts with b'weights:'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_named(tmp_path: Path, name: str):
    make, message = WRONG[name]
    data = make()
    refused(data, message)
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=f"a.pt: expected a checkpoint of PyTorch, got .*{message}"
    ):
        read(path)


@pytest.mark.parametrize("name", ["empty", "page", "error", "pointer", "gzip"])
def test_other_files_named_as_safetensors_are_named(tmp_path: Path, name: str):
    make, message = WRONG[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(make())
    with pytest.raises(
        ValueError, match=f"a.safetensors: expected a safetensors file, got .*{message}"
    ):
        convert.read(path)


def test_a_header_that_begins_as_a_gzip_file_is_read(tmp_path: Path):
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(0x8B1F)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.ones(2, "<f4").tobytes())
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert np.array_equal(convert.read(path)["a"], [1, 1])


def test_paths_that_are_no_file_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected a regular file, got a directory"):
        read(tmp_path)
    with pytest.raises(ValueError, match="expected a file, got none"):
        read(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected a regular file, got a named pipe"):
        read(tmp_path / "pipe")


def test_the_error_of_a_file_names_it_in_one_line(tmp_path: Path):
    path = tmp_path / "bad.pt"
    path.write_bytes(struct.pack("<4s", b"PK\3\4") + bytes(99))
    with pytest.raises(ValueError, match=r"bad\.pt: the zip does not end") as caught:
        read(path)
    assert "\n" not in str(caught.value)
