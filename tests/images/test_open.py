"""Picture files are decoded in full and alike everywhere, or refused in one line."""

import ast
import io
import os
import struct
import subprocess
import sys
import types
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from experiments import zero_shot
from jaxclip import cli
from jaxclip.data.crops import random_crop, reduced_crop
from jaxclip.data.pairs import Pair
from jaxclip.data.stream import Skips, crop_and_caption
from jaxclip.images import open as pictures
from jaxclip.images.open import (
    MOST_PIXELS,
    SUFFIXES,
    check_size,
    decode_image,
    is_picture,
    open_image,
    to_rgb,
)
from tests.support.pictures import KINDS, NOISE, encoded

ROOT = Path(__file__).parents[2]


def png(width: int, height: int, rows: bytes = bytes(1000)) -> bytes:
    """A tiny PNG file that declares a size and holds a few black grey rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


PICTURE = encoded(NOISE, "PNG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"

# What is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_same_from_a_file_and_from_bytes(kind: str, tmp_path: Path) -> None:
    content = encoded(NOISE, kind)
    path = tmp_path / "picture"
    path.write_bytes(content)
    image = open_image(path)
    path.unlink()  # the file is closed
    with Image.open(io.BytesIO(content)) as expected:
        assert image.mode == decode_image(content).mode == expected.mode
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(decode_image(content), expected)


def test_an_icon_is_read_in_its_largest_size() -> None:
    icon = encoded(Image.new("RGB", (64, 64), "red"), "ICO")
    image = to_rgb(decode_image(icon))
    assert image.size == (64, 64) and image.getpixel((9, 9)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (9, 9), (grey, grey, grey)) for grey in (10, 200)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.asarray(to_rgb(decode_image(content))).max() <= 12


def test_endings_are_those_of_the_formats_that_are_read() -> None:
    registered = Image.registered_extensions()
    for suffix in SUFFIXES:
        assert suffix == suffix.lower() and is_picture(f"folder.x/A{suffix.upper()}")
        known = {"MPO": "JPEG"}.get(registered.get(suffix, ""), registered.get(suffix))
        assert known in (*pictures.FORMATS, None)  # None: HEIF without pillow-heif
    for name in ("a.eps", "a.pdf", "a.svg", "a.txt", "png", ".png", "a.png.txt", "a"):
        assert not is_picture(name)


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package, which registers a format as the real one does."""

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (3, 2), "RGB"

        def load(self) -> Any:
            self.im = Image.new("RGB", (3, 2), "red").im
            return Image.Image.load(self)

    package = types.ModuleType("pillow_heif")
    accept = lambda head: head[4:12] == b"ftypheic"  # noqa: E731
    package.register_heif_opener = lambda: Image.register_open("HEIF", Heif, accept)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    pictures.readable_formats.cache_clear()
    try:
        assert to_rgb(decode_image(HEIC)).getpixel((1, 1)) == (255, 0, 0)
    finally:
        pictures.readable_formats.cache_clear()


def test_heic_names_the_package_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pictures.readable_formats.cache_clear()
    try:
        with pytest.raises(ValueError, match="got a HEIC picture; install pillow-heif"):
            decode_image(HEIC)
    finally:
        pictures.readable_formats.cache_clear()


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file; fetch it again"),
        (PICTURE[:2000], "a truncated PNG; fetch it again"),
        (encoded(NOISE, "JPEG")[:900], "a truncated JPEG"),
        (encoded(NOISE, "JPEG")[:-2], "a truncated JPEG"),
        (encoded(NOISE, "GIF")[:900], "a truncated GIF"),
        (PICTURE[:20], "a truncated PNG"),
        (b"\xff\xd8\xff and no more", "a damaged JPEG of 15 bytes"),
        (PICTURE[:300] + bytes(2000) + PICTURE[2300:], "a damaged PNG"),
        (b"\n <!DOCTYPE html><html><body>not found</body></html>", "an HTML page"),
        (b"<html></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b'{"error": 404}', "a JSON text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (EPS, "a PostScript drawing (EPS)"),
        (b"\xc5\xd0\xd3\xc6" + bytes(30) + EPS, "a PostScript drawing (EPS)"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x1f\x8b\x08\0\0\0", "a gzip archive"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video (MP4)"),
        (b"just words", "a text file"),
        (bytes(range(50)), "an unknown format (00 01 02"),
        (encoded(NOISE, "TGA"), "an unknown format"),
    ],
)
def test_a_refusal_says_what_was_found(content: bytes, got: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        decode_image(content)
    message = str(caught.value)
    assert message.startswith(f"expected a picture (PNG, JPEG, ...), got {got}")
    assert "\n" not in message
    with pytest.raises(ValueError) as caught:
        open_image(path)
    assert str(caught.value) == f"{str(path)!r}: {message}"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    cases = {
        tmp_path: "got a directory",
        tmp_path / "none.png": "got none of that name",
        tmp_path / "pipe.png": "got a named pipe",
        Path("/dev/zero"): "got a device",
    }
    for path, got in cases.items():
        with pytest.raises(ValueError, match=got) as caught:
            open_image(path)
        assert str(path) in str(caught.value)


def test_commands_do_not_wait_for_a_pipe_or_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, got in ((tmp_path / "pipe.png", "a named pipe"), (Path("/dev/zero"), "a device")):
        for arguments in (
            ["classify", str(path), "--labels", "a", "b"],
            ["embed", str(path), "--out", str(tmp_path / "out.npz")],
            ["verify", "--picture", str(path)],
        ):
            assert cli.main(arguments) == 1
            told = capsys.readouterr().err
            assert got in told and "Traceback" not in told


def test_truncated_pictures_would_pass_if_pillow_were_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error above comes from decoding all of the file, not from its first bytes."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (tmp_path / "half.png").write_bytes(PICTURE[:2000])
    assert open_image(tmp_path / "half.png").size == (60, 50)


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), struct.error("x"), SyntaxError("y"), OSError()]
)
def test_whatever_a_decoder_raises_is_a_value_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match="got a damaged JPEG"):
        decode_image(encoded(NOISE, "JPEG"))


# Only the formats of the list --------------------------------------------------------------------


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A program of that name, first on the path; says whether it was started."""
    program, mark = tmp_path / "bin" / "gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not yet looked for
    return mark.exists


def test_pillow_itself_starts_ghostscript(ghostscript: Callable[[], bool]) -> None:
    with pytest.raises(Exception):  # noqa: B017
        Image.open(io.BytesIO(EPS)).load()
    assert ghostscript()


def test_no_command_starts_ghostscript_for_an_eps_named_png(
    ghostscript: Callable[[], bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "data" / "cat" / "eps.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(EPS)
    out = str(tmp_path / "out")
    data = ["--data", str(picture.parents[1]), "--model", "emoji", "--skip-limit", "0"]
    for main, arguments in (
        (cli.main, ["classify", str(picture), "--labels", "a", "b"]),
        (cli.main, ["embed", str(picture), "--out", f"{out}.npz"]),
        (cli.main, ["verify", "--picture", str(picture)]),
        (zero_shot.main, [*data, "--out", out]),
    ):
        capsys.readouterr()
        assert main(arguments) == 1, arguments
        told = capsys.readouterr().err
        assert "PostScript drawing" in told and "Traceback" not in told, told
    assert not ghostscript()


def test_training_leaves_out_an_eps_named_png(ghostscript: Callable[[], bool]) -> None:
    skips = Skips(1)
    assert (
        crop_and_caption(Pair(EPS, ("a cat",), "eps.png"), 32, np.random.default_rng(0), skips)
        is None
    )
    assert skips.counts == {"broken picture": 1} and not ghostscript()


def test_formats_outside_the_list_are_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("tried")

    pictures.readable_formats()
    others = {name: (never, never) for name in Image.OPEN if name not in pictures.FORMATS}
    assert {"EPS", "WMF", "FITS", "PSD", "TGA"} <= others.keys()
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN, **others})
    for content in (EPS, b"8BPS" + bytes(60), bytes(range(60)), PICTURE[:8]):
        with pytest.raises(ValueError, match="expected a picture"):
            decode_image(content)


def test_pictures_are_opened_in_one_place() -> None:
    """Elsewhere only what draws its own pictures, and the programs that we compare with."""
    own = {
        "jaxclip/images/open.py",
        "experiments/recipes/artwork.py",
        "experiments/bench/preprocess.py",
        "experiments/lib/peers/official_run.py",
    }
    found = set()
    for folder in ("jaxclip", "convert", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                opens = isinstance(node, ast.Attribute) and node.attr == "open"
                if opens and isinstance(node.value, ast.Name) and node.value.id == "Image":
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == own


# Size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(10_000, 1), (70_000, 1), (1, 70_000), (1, 101), (505, 5)])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "JPEG"])
def test_a_picture_too_long_is_refused_before_it_is_decoded(
    shape: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind in ("GIF", "JPEG") and max(shape) > 65_000:
        shape = (min(shape[0], 65_000), min(shape[1], 65_000))
    content = encoded(Image.new("L", shape), kind)
    (tmp_path / "long").write_bytes(content)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    rng = np.random.default_rng(0)
    got = f"expected a picture at most 100 times as long as wide, got {shape[0]} x {shape[1]}"
    for read in (
        lambda: decode_image(content),
        lambda: open_image(tmp_path / "long"),
        lambda: random_crop(content, 224, rng),
        lambda: reduced_crop(content, 224, rng),
    ):
        with pytest.raises(ValueError, match=got):
            read()


def test_a_long_picture_is_a_broken_picture_in_training() -> None:
    content = encoded(Image.new("1", (10_000, 1)), "PNG")
    assert len(content) == 75
    skips = Skips(1)
    pair = Pair(content, ("a line",), "line.png")
    assert crop_and_caption(pair, 224, np.random.default_rng(0), skips) is None
    assert skips.counts == {"broken picture": 1}


@pytest.mark.parametrize("shape", [(100, 1), (1, 100), (5, 500), (4000, 40)])
def test_pictures_up_to_the_limit_are_read(shape: tuple[int, int]) -> None:
    content = encoded(Image.new("RGB", shape, "red"), "PNG")
    assert decode_image(content).size == shape
    square = random_crop(content, 32, np.random.default_rng(0))
    assert square.shape == (32, 32, 3) and (square[:, :, 0] == 255).all()


@pytest.mark.parametrize("shape", [(60_000, 70_000), (14_000, 13_000), (1 << 31, 1 << 31)])
def test_too_many_pixels_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"at most {MOST_PIXELS:,} pixels, got"):
        check_size(*shape)
    if max(shape) < 1 << 31:
        with pytest.raises(ValueError, match=f"at most {MOST_PIXELS:,} pixels, got"):
            decode_image(png(*shape))


def test_the_limit_is_ours_whatever_pillow_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match=f"at most {MOST_PIXELS:,} pixels, got 14000 x 13000"):
        decode_image(png(14_000, 13_000))


def test_a_tile_of_too_many_pixels_is_refused() -> None:
    """1,134 bytes that declare 100 x 100 pixels in one tile of 30,000 x 30,000 took 860 MB."""
    tags = [(256, 100), (257, 100), (258, 8), (259, 5), (262, 1), (277, 1)]
    tags += [(322, 30_000), (323, 30_000), (324, 134), (325, 1000)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + directory + bytes(1004)
    assert len(content) == 1134
    with pytest.raises(ValueError, match="pixels, got tiles of 30000 x 30000"):
        decode_image(content)


def test_extreme_pictures_cost_no_memory_in_training() -> None:
    """10,000 x 1 took 2 GB a thread, 70,000 x 1 more than 6.5; here 600 MB are there in all."""
    code = """if True:
        import resource
        import numpy as np
        from tests.images.test_open import png
        from jaxclip.data.pairs import Pair
        from jaxclip.data.stream import Skips, crop_and_caption
        kind = resource.RLIMIT_DATA
        used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(kind, (used + 300_000_000, resource.RLIM_INFINITY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        skips = Skips(9)
        rng = np.random.default_rng(0)
        for shape in ((10_000, 1), (70_000, 1), (1, 70_000)):
            assert crop_and_caption(Pair(png(*shape), ("a",), "x"), 336, rng, skips) is None
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 20_000  # KiB


# Warnings ----------------------------------------------------------------------------------------


def test_pillow_warns_of_nothing_from_any_thread() -> None:
    """It does above 89 million pixels, of bad EXIF, of palettes; here warnings are errors."""
    palette = Image.new("P", (20, 10))
    palette.putpalette(list(range(48)))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"
    contents = [
        encoded(Image.new("1", (10_000, 9_000)), "PNG"),
        encoded(palette, "PNG", transparency=bytes(range(16))),
        encoded(NOISE, "JPEG", exif=exif),
        encoded(NOISE, "TIFF")[:-40],
    ]
    with pytest.warns(UserWarning):  # what is kept quiet
        Image.open(io.BytesIO(contents[2])).getexif()
    filters = list(warnings.filters)

    def read(content: bytes) -> bool:
        try:
            to_rgb(decode_image(content))
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(read, contents[1:] * 20 + contents[:1]))
    assert done == [True, True, False] * 20 + [True]
    assert list(warnings.filters) == filters
