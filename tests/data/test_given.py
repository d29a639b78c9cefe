"""The pictures that a command line names: files, folders, patterns, standard input."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from jaxclip.data.given import given_pictures


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("b.png", "a.JPG", "in/c.png", "in/deep/d.png", ".hidden.png", "in/.h/e.png")
    for name in (*names, "notes.txt", "a[1].png", "two\nlines.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(*arguments: str, stdin: bytes = b"") -> list[str]:
    return [str(path) for path in given_pictures(arguments, io.BytesIO(stdin))]


def test_files_come_as_named_and_folders_are_walked(tree: Path) -> None:
    assert given("notes.txt", "in", "b.png") == ["notes.txt", "in/c.png", "in/deep/d.png", "b.png"]
    assert given("b.png", "b.png") == ["b.png", "b.png"]
    assert given("gone.png") == ["gone.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a[1].png", "b.png", "two\nlines.png"]),
        ("*", ["a.JPG", "a[1].png", "b.png", "in/c.png", "in/deep/d.png", "two\nlines.png"]),
        ("?.png", ["b.png"]),
        ("[ab].*", ["a.JPG", "b.png"]),
        ("in/*/*.png", ["in/deep/d.png"]),
        ("in/**/*.png", ["in/c.png", "in/deep/d.png"]),
        ("**/d*", ["in/deep/d.png"]),
        ("**/deep", ["in/deep/d.png"]),
        ("./in/../in/*.png", ["in/../in/c.png"]),
    ],
)
def test_a_pattern_means_its_pictures_but_no_hidden_ones(
    tree: Path, pattern: str, expected: list[str]
) -> None:
    assert given(pattern) == expected


def test_a_name_that_exists_is_no_pattern(tree: Path) -> None:
    assert given("a[1].png") == ["a[1].png"]
    (tree / "a[1].png").unlink()
    (tree / "a1.png").write_bytes(png())
    assert given("a[1].png") == ["a1.png"]


def test_links_in_circles_end(tree: Path) -> None:
    for name in ("one", "two"):
        (tree / "in" / name).symlink_to(tree / "in")
    assert given("in/**/*.png") == ["in/c.png", "in/deep/d.png"]


def test_standard_input_has_a_name_a_line(tree: Path) -> None:
    assert given("-", stdin=b"b.png\r\n\n in/c.png\nin/deep\n*.png\n") == [
        *("b.png", " in/c.png", "in/deep/d.png", "*.png")
    ]
    assert given("-", stdin=b"two\nlines.png\0b.png\0") == ["two\nlines.png", "b.png"]
    (name,) = given("-", stdin=b"\xff.png")
    assert os.fsencode(name) == b"\xff.png"
    assert given("-", stdin=b"BMW.png") == ["BMW.png"]  # which begins like a BMP file


def test_a_picture_on_standard_input_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match="expected names of pictures, one a line, got a PNG pict"):
        given("-", stdin=png())


def test_arguments_without_a_picture_are_told(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "empty").mkdir()
    assert given("empty", "b.png", "*.tif") == ["b.png"]
    assert "'empty' holds no picture" in caplog.text and "'*.tif' holds no" in caplog.text
    for arguments in (["empty"], ["*.tif"], ["**/x*"], ["none/**"], ["-"], []):
        with pytest.raises(ValueError, match=r"no picture.*; name one or more picture files"):
            given(*arguments)
