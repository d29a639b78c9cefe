"""Picture files are decoded in full, or refused in one line that says what came."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from jaxclip.preprocess import open_image


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A tiny PNG file that declares a size and holds a few black grey rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


NOISE = Image.frombytes("RGB", (60, 50), np.random.default_rng(0).bytes(60 * 50 * 3))
PICTURE = encoded(NOISE, "PNG")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG"])
def test_open_image_decodes_all_and_lets_go_of_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(NOISE, kind))
    image = open_image(path)
    path.unlink()
    with Image.open(io.BytesIO(encoded(NOISE, kind))) as expected:
        assert image.mode == expected.mode
        np.testing.assert_array_equal(image, expected)


def test_open_image_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (9, 9), grey) for grey in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "moving.gif").convert("L")).max() == 10


@pytest.mark.parametrize(
    ("content", "came"),
    [
        (b"", "an empty file"),
        (PICTURE[:2000], "truncated PNG after 2000 bytes"),
        (encoded(NOISE, "JPEG")[:900], "truncated JPEG after 900 bytes"),
        (PICTURE[:20], "truncated PNG after 20 bytes"),
        (b"\xff\xd8\xff and no more", "a damaged JPEG of 15 bytes"),
        (PICTURE[:300] + bytes(2000) + PICTURE[2300:], "a damaged PNG"),
        (b"\n <!DOCTYPE html><html><body>not found</body></html>", "an HTML page"),
        (b"<html></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b'{"error": 404}', "a JSON text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x1f\x8b\x08\0\0\0", "a gzip archive"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "an MP4 video or a HEIC picture (brand 'heic')"),
        (b"just words", "a text file"),
        (bytes(range(50)), "no picture that Pillow knows (it starts with 00 01 02"),
        (png(60_000, 70_000), "a decompression bomb: 60000 x 70000 pixels"),
    ],
)
def test_open_image_says_what_came(content: bytes, came: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_image(path)
    message = str(caught.value)
    assert message.startswith(f"{str(path)!r}: {came}")
    assert "; expected a picture" in message and "\n" not in message


def test_open_image_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, came in (("", "a directory"), ("none", "no such file"), ("pipe", "not a regular")):
        with pytest.raises(ValueError, match=came):
            open_image(tmp_path / name)


def test_open_image_takes_large_pictures_without_a_warning(tmp_path: Path) -> None:
    """Pillow warns above 89 million pixels; warnings are errors in these tests."""
    path = tmp_path / "large.png"
    path.write_bytes(encoded(Image.new("1", (10_000, 9_000)), "PNG"))
    filters = list(warnings.filters)
    assert open_image(path).size == (10_000, 9_000)
    assert list(warnings.filters) == filters


def test_truncated_pictures_would_pass_if_pillow_were_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error above comes from decoding all of the file, not from its first bytes."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (tmp_path / "half.png").write_bytes(PICTURE[:2000])
    assert open_image(tmp_path / "half.png").size == (60, 50)
