"""Files and text as people have them: what is read, and what is refused in one line."""

import os
from pathlib import Path

import pytest

from jaxclip.checkpoint import replacing
from jaxclip.files import (
    decode_text,
    open_regular,
    read_bytes,
    read_text,
    require_writable,
    split_lines,
)


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a cat")
    assert read_bytes(path) == b"a cat"
    assert read_bytes(str(path), limit=5) == b"a cat"


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "missing", "null"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "null":
        path = Path("a\0b")
    with pytest.raises(ValueError, match="expected a"):
        open_regular(path)


def test_a_larger_file_than_allowed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a cat")
    with pytest.raises(ValueError, match="at most 4 bytes, got 5"):
        read_bytes(path, limit=4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_utf_8_and_utf_16_with_a_mark_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Kätzchen\u2028猫".encode(encoding))
    assert read_text(path) == "Kätzchen\u2028猫"


@pytest.mark.parametrize(
    "content", ["Kätzchen".encode("latin-1"), b"\xff\xfea", "ab".encode("utf-16")[:-1]]
)
def test_other_bytes_are_refused_by_name_and_position(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.txt: expected UTF-8 text .* got byte 0x.. at position"
    ):
        read_text(path)


def test_lines_end_where_editors_end_them() -> None:
    odd = "a\u2028b\u0085c\vd\fe\x1cf"
    assert split_lines(f"{odd}\r\nx\ry\n\nz") == [odd, "x", "y", "", "z"]
    assert split_lines("") == []
    assert decode_text(b"", "nowhere") == ""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_to_its_end_is_named() -> None:
    with pytest.raises(ValueError, match=r"'/proc/self/mem': expected readable bytes"):
        read_bytes("/proc/self/mem")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pipe", "expected a regular file or nothing, got a named pipe"),
        ("link", "expected a regular file or nothing, got a named pipe"),
        ("folder", "expected a regular file or nothing, got a directory"),
        ("file/a.npz", "expected a folder, got the file"),
        ("file/b/a.npz", "expected a folder, got the file"),
        ("a\0b", "null byte"),
    ],
)
def test_what_is_no_place_for_a_file_is_refused_and_stays(
    tmp_path: Path, name: str, says: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    before = {path: path.lstat().st_mode for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=says):
        require_writable(tmp_path / name)
    with pytest.raises(ValueError, match=says), replacing(tmp_path / name) as temporary:
        temporary.write_text("other")
    assert {path: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_a_file_and_a_missing_folder_are_places_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    require_writable(tmp_path / "file")
    require_writable(tmp_path / "a" / "b" / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
