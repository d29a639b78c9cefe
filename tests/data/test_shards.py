"""Tar shards whatever their headers claim: records, faults, or a ValueError; bounded memory."""

from __future__ import annotations

import io
import json
import random
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxclip.data.labelled import LabelShards
from jaxclip.data.pairs import TarShards
from jaxclip.data.spec import parse_spec
from jaxclip.data.tar_headers import Bad, Member, read_headers
from tests.support.pictures import png
from tests.support.planted import shard
from tests.support.tars import header

PICTURE = png(width=3, height=2)


def tar(*members: tuple[str, bytes], before: bytes = b"", after: bytes = b"") -> bytes:
    content = before
    for name, data in members:
        content += header(name, len(data)) + data + bytes(-len(data) % 512)
    return content + after + bytes(1024)


def pairs_of(count: int) -> list[tuple[str, bytes]]:
    members = []
    for i in range(count):
        members += [(f"{i}.png", PICTURE), (f"{i}.txt", f"caption {i}".encode())]
    return members


SIZES = {
    "2^50": header("evil.png", 2**50),
    "2^80": header("evil.png", 2**80),
    "-1024": header("evil.png", -1024),
    "no number": header("evil.png", 0, field=b"zzzzzzzzzzz\0"),
    "octal minus": header("evil.png", 0, field=b"-0000002000\0"),
    "sparse": header("evil.png", 0, kind=b"S"),
    "long name of 2^50": header("evil.png", 2**50, kind=b"L"),
    "long name of -512": header("evil.png", -512, kind=b"L"),
    "pax of 2^50": header("evil.png", 2**50, kind=b"x"),
}


@pytest.mark.parametrize("block", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("first", [True, False])
def test_a_header_that_claims_too_much_costs_its_record_only(tmp_path, block, first):
    """It was believed: MemoryError, or an endless loop."""
    content = tar(*pairs_of(3), **({"before": block} if first else {"after": block}))
    (tmp_path / "s.tar").write_bytes(content)
    tracemalloc.start()
    source = TarShards([tmp_path / "s.tar"])
    found = [source[i] for i in range(len(source))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [pair.captions for pair in found[:3]] == [(f"caption {i}",) for i in range(3)]
    (bad,) = found[3:]
    assert bad.fault.kind == "damaged tar entry" and bad.where == f"{tmp_path}/s.tar, evil.png"
    assert peak < 10_000_000


def test_a_shard_that_was_cut_off_has_its_whole_pictures(tmp_path):
    content = tar(*pairs_of(2))
    (tmp_path / "s.tar").write_bytes(content[: 512 * 5 + 30])  # within the second picture
    source = TarShards([tmp_path / "s.tar"])
    assert [source[i].fault is None for i in range(len(source))] == [True, False]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_what_tarfile_reads(tmp_path, form):
    names = ["a.png", "é/猫.png", f"{'d' * 90}/{'n' * 90}.png", "./b.JPG", "c/" + "e" * 90 + ".txt"]
    if form != tarfile.USTAR_FORMAT:
        names += [f"{'p' * 300}/{'q' * 200}.png"]
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as archive:
        for i, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size = 100 * i
            entry.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # a setting of no interest
            archive.addfile(entry, io.BytesIO(bytes(100 * i)))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with tarfile.open(tmp_path / "s.tar") as archive:
        expected = [Member(x.name, x.offset_data, x.size) for x in archive if x.isfile()]
    with open(tmp_path / "s.tar", "rb") as file:
        assert list(read_headers(file)) == expected


def test_links_and_devices_are_told(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            entry = tarfile.TarInfo("x.png")
            entry.type, entry.linkname = kind, "y" * 150
            archive.addfile(entry)
    with open(tmp_path / "s.tar", "rb") as file:
        found = list(read_headers(file))
    assert [type(x) for x in found] == [Bad] * 4
    with pytest.raises(ValueError, match=r"no pictures in it; .*a link or a device"):
        TarShards([tmp_path / "s.tar"])


def test_a_compressed_shard_is_refused_as_that(tmp_path, caplog):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match="no pictures in it"):
        TarShards([tmp_path / "s.tar"])
    assert "it is compressed, unpack it" in caplog.text


def test_members_follow_the_rule_of_folders(tmp_path, caplog):
    members = {
        "1.JPG": png(1),
        "1.TXT": b"one",
        "2.tif": png(2),
        "2.txt": b"two",
        "a.b.png": png(3),
        "a.b.txt": b"three",
        "a.c.png": png(4),
        "a.c.txt": b"four",
        "x/._1.png": b"hidden",
        "__MACOSX/1.png": b"hidden",
        "5.jpg": png(5),
        "5.seg.png": b"a mask",
        "5.txt": b"five",
        "notes.xyz": b"",
        "LICENSE": b"",
    }
    source = TarShards([shard(tmp_path / "s.tar", members)])
    found = [(source[i].captions, source[i].image) for i in range(len(source))]
    words = ("one", "two", "three", "four", "five")
    assert found == [((word,), png(i)) for i, word in enumerate(words, start=1)]
    assert "4 names without picture left out: hidden 2, .xyz 1, no ending 1" in caplog.text


CAPTIONS = {
    "number": (b'{"caption": 5}', "got a number"),
    "list": (b'{"caption": [1, 2]}', "a list with a number"),
    "object": (b'{"caption": {"a": "b"}}', "an object"),
    "array": (b'["caption"]', "expected an object"),
    "deep": (b'{"caption": ' + b"[" * 100_000, "nested too deeply"),
    "no json": (b"no json", "expected JSON"),
    "latin-1": (b'{"caption": "K\xe4tzchen"}', "expected UTF-8"),
}


@pytest.mark.parametrize(("content", "says"), CAPTIONS.values(), ids=CAPTIONS)
def test_a_bad_caption_costs_its_record_only(tmp_path, content, says):
    members = {"1.png": png(1), "1.json": content, "2.png": png(2), "2.json": b'{"caption": "ok"}'}
    source = TarShards([shard(tmp_path / "s.tar", members)])
    assert source[1].captions == ("ok",) and source[1].fault is None
    assert source[0].fault.kind == "bad caption" and says in source[0].fault.detail


def test_a_text_in_another_encoding_is_told_and_not_replaced(tmp_path):
    members = {"1.png": png(1), "1.txt": b"K\xe4tzchen", "2.png": png(2), "2.cls": b"\xe4"}
    path = shard(tmp_path / "s.tar", {**members, "3.png": png(3), "3.cls": b"cat"})
    pair = TarShards([path])[0]
    assert pair.captions == () and "got byte 0xe4 at position 1" in pair.fault.detail
    source = LabelShards([path])
    assert source.names == ("cat",) and source[2].fault is None
    assert [source[i].fault.kind for i in range(2)] == ["bad class", "bad class"]


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x0bb", "a\x0cb", "a\x1cb"])
def test_other_separators_never_split_a_caption(tmp_path, text):
    members = {"1.png": png(1), "1.txt": text.encode(), "2.png": png(2)}
    members["2.json"] = json.dumps({"caption": text}).encode()
    source = TarShards([shard(tmp_path / "s.tar", members)])
    assert source[0].captions == source[1].captions == (text,)


def test_any_bytes_give_records_or_a_value_error(tmp_path, caplog):
    rng = random.Random(0)
    whole = tar(*pairs_of(2), ("1.json", b'{"caption": "x", "label": 2}'), ("0.cls", b"1"))
    whole += header("long", 20, kind=b"L") + b"name.png".ljust(512, b"\0")
    pax = b"19 path=other.png\n\n12 size=300\n"
    whole += header("pax", len(pax), kind=b"x") + pax.ljust(512, b"\0")
    path: Path = tmp_path / "s.tar"
    tracemalloc.start()
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 8)):
            at = 512 * rng.randrange(len(whole) // 512) + rng.choice([0, 124, 135, 148, 156, 300])
            content[at : at + rng.randrange(20)] = rng.randbytes(rng.randrange(20))
        for at in range(0, len(content) - 511, 512):  # most checksums are right, then
            if rng.random() < 0.8 and content[at + 257 : at + 262] == b"ustar":
                content[at + 148 : at + 156] = b" " * 8
                content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        path.write_bytes(content)
        for read in (TarShards, LabelShards):
            try:
                source = read([path])
                assert all(source[i].where for i in range(len(source)))
            except ValueError as error:
                assert str(error)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert np.isfinite(len(caplog.messages))


# What is left out is told -------------------------------------------------------------------------


def test_members_of_one_name_are_told_and_the_last_counts(tmp_path, caplog):
    path = tmp_path / "s.tar"
    path.write_bytes(tar(*pairs_of(2), ("0.PNG", PICTURE), ("0.txt", b"again")))
    source = TarShards([path])
    assert [source[i].captions for i in range(2)] == [("again",), ("caption 1",)]
    assert "2 members left out, as later ones have their name, the first: '0.PNG'" in caplog.text


def test_a_second_picture_of_one_name_is_told(tmp_path, caplog):
    path = tmp_path / "s.tar"
    path.write_bytes(tar(*pairs_of(2), ("0.jpg", PICTURE)))
    assert len(TarShards([path])) == 2
    assert "1 pictures left out beside another of their name" in caplog.text


def test_an_archive_behind_another_is_told(tmp_path, caplog):
    path = tmp_path / "s.tar"
    path.write_bytes(tar(*pairs_of(1)) + tar(("9.png", PICTURE)))
    assert len(TarShards([path])) == 1
    assert "another archive behind it" in caplog.text


def test_a_shard_without_pictures_is_named(tmp_path, caplog):
    good, empty = tmp_path / "a.tar", tmp_path / "b.tar"
    good.write_bytes(tar(*pairs_of(1)))
    empty.write_bytes(b"")
    assert len(TarShards([good, empty])) == 1
    assert f"{empty}: no pictures in it" in caplog.text
    with pytest.raises(ValueError, match=r"b\.tar: no pictures in it"):
        TarShards([empty])


def test_what_lies_beside_shards_is_told(tmp_path, caplog):
    (tmp_path / "a.tar").write_bytes(tar(*pairs_of(1)))
    (tmp_path / "a_stats.json").write_text("{}")
    (tmp_path / "x.jpg").write_bytes(PICTURE)
    assert parse_spec(str(tmp_path)).kind == "tar"
    assert "left out beside its tar files: .jpg 1" in caplog.text


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.zip"])
def test_a_compressed_file_is_there_and_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=f"{name}': expected .* got another file; unpack it"):
        parse_spec(str(tmp_path / name))
