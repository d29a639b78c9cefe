"""Training's square by two decoders: the same square of nearly the same pixels, and by no other.

The photographs are smooth fields with some noise on them, as a JPEG of a camera is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

import jaxclip
from jaxclip.config import PictureConfig, Sides
from jaxclip.data import crops
from jaxclip.data.crops import CROPS, random_crop, reduced_crop
from jaxclip.data.pairs import Pair
from jaxclip.data.stream import Skips
from jaxclip.images import reduced
from jaxclip.images.open import decode_image, open_image, to_rgb
from jaxclip.images.preprocess import Preprocess
from jaxclip.images.reduced import decode_reduced
from jaxclip.training.input_pipeline import PairStream
from jaxclip.training.recipe import Decoder
from tests.support.pictures import KINDS, encoded
from tests.support.sources import Memory

ROOT = Path(jaxclip.__file__).parent
# Mean over a square of |reduced - full| in steps of 8 bits. Measured: 0.76 at most; a box that is
# off by one decoded pixel 3.5, a picture not turned 66.
NEARLY = 1.5


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.frombytes("RGB", (8, 6), rng.bytes(8 * 6 * 3))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 4, smooth.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph(width, height), "JPEG", quality=90, exif=exif)


def square(name: str, content: bytes, size: Sides, seed: int = 0) -> np.ndarray:
    return CROPS[name](content, size, np.random.default_rng(seed)).astype(np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


SIZES = [(640, 427), (333, 501), (1000, 700), (257, 255), (131, 900), (90, 61)]


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("shape", SIZES)
def test_the_square_is_nearly_that_of_the_full_decode(size: int, shape: tuple[int, int]) -> None:
    content = jpeg(*shape)
    for seed in range(3):
        full = square("full", content, size, seed)
        assert difference(full, square("reduced", content, size, seed)) < NEARLY


def test_a_box_that_is_off_by_a_pixel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(1000, 700)

    def off(content: bytes, shortest: int) -> reduced.Reduced:
        image, size, (left, top, right, bottom) = decode_reduced(content, shortest)
        return reduced.Reduced(image, size, (left + 1, top + 1, right, bottom))

    monkeypatch.setattr(crops, "decode_reduced", off)
    for size in (32, 64):
        full = square("full", content, size)
        assert difference(full, square("reduced", content, size)) > NEARLY


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_gives_the_same_square(orientation: int) -> None:
    """Of odd sides, so that the part of the last pixel that is beyond the picture changes sides."""
    content = jpeg(643, 429, orientation)
    for size in (48, 64):
        full = square("full", content, size)
        assert difference(full, square("reduced", content, size)) < NEARLY
        if orientation > 1:
            unturned = square("reduced", jpeg(643, 429), size)
            assert difference(full, unturned) > NEARLY


def test_the_decoder_changes_no_random_number() -> None:
    """So captions, other pictures and a resumed run are the same but for the pixels."""
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    for shape in SIZES:
        content = jpeg(*shape)
        CROPS["full"](content, 32, one)
        CROPS["reduced"](content, 32, other)
    assert one.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize("shortest", [20, 31, 64, 224])
@pytest.mark.parametrize("shape", SIZES)
def test_a_picture_is_never_smaller_than_the_square(shape: tuple[int, int], shortest: int) -> None:
    """And not twice as large either, unless it would be smaller at a half, or is at an eighth."""
    image, size, (left, top, right, bottom) = decode_reduced(jpeg(*shape), shortest)
    assert size == shape
    scale = size[0] / (right - left)
    assert scale in (1, 2, 4, 8) and size[1] / (bottom - top) == scale
    assert scale == 1 or min(size) / scale >= shortest
    assert scale == 8 or min(size) / (2 * scale) < shortest
    assert image.size == tuple(-(-side // int(scale)) for side in size)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read(kind: str) -> None:
    """Those without scales in full: the same pixels, but for where the resize rounds."""
    content = encoded(photograph(120, 80), kind)
    full, got = (square(name, content, 24) for name in ("full", "reduced"))
    if kind in ("JPEG", "MPO"):
        assert 0 < difference(full, got) < NEARLY
    else:
        assert np.abs(full - got).max() <= 1


def test_damage_is_noticed() -> None:
    content = jpeg(640, 427)
    for broken in (content[: len(content) // 2], content[:-200], b"", content[:40]):
        with pytest.raises(ValueError, match="expected a picture"):
            reduced_crop(broken, 32, np.random.default_rng(0))


def test_there_is_a_square_for_every_decoder_of_a_recipe() -> None:
    assert set(CROPS) == set(get_args(Decoder))


def pairs(decoder: str) -> PairStream:
    """Of JPEG files that are large enough to be reduced."""
    pictures = [encoded(photograph(90, 70, seed), "JPEG") for seed in range(8)]
    contents = {i: Pair(picture, (f"caption {i}",), f"{i}") for i, picture in enumerate(pictures)}
    options: dict[str, Any] = {"size": 16, "batch_size": 4, "seed": 5, "text_length": 16}
    return PairStream([Memory(8, contents)], skips=Skips(0), decoder=decoder, **options)


def test_a_stream_decodes_as_it_is_told_and_goes_on_to_the_bit() -> None:
    full, reduced_, again = pairs("full"), pairs("reduced"), pairs("reduced")
    for _ in range(3):
        one, other = next(full), next(reduced_)
        assert np.array_equal(one["tokens"], other["tokens"])
        assert not np.array_equal(one["image"], other["image"])
    again.seek([reduced_.position])
    assert np.array_equal(next(reduced_)["image"], next(again)["image"])


# Evaluation, `embed` and `classify` --------------------------------------------------------------


def test_evaluation_decodes_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: Pillow's own full decode. A picture at half its size is another."""
    content = jpeg(640, 427)
    (tmp_path / "a.jpg").write_bytes(content)
    plain = Image.open(io.BytesIO(content))
    plain.load()
    half = Image.open(io.BytesIO(content))
    half.draft(None, (320, 213))
    preprocess = Preprocess(96)
    expected = preprocess(plain)
    assert not np.array_equal(preprocess(half), expected)
    monkeypatch.setattr(JpegImageFile, "draft", None)  # nobody calls it
    for image in (decode_image(content), open_image(tmp_path / "a.jpg")):
        assert np.array_equal(preprocess(image), expected)
        assert np.array_equal(preprocess.safe(image), preprocess(to_rgb(plain)))
    random_crop(content, 32, np.random.default_rng(0))
    with pytest.raises(TypeError):
        reduced_crop(content, 32, np.random.default_rng(0))


def users(module: str) -> Iterator[str]:
    for path in sorted(ROOT.rglob("*.py")):
        if f"from jaxclip.{module} import" in path.read_text(encoding="utf-8"):
            yield path.relative_to(ROOT).as_posix()


def test_only_training_uses_the_reduced_decode() -> None:
    assert list(users("images.reduced")) == ["data/crops.py"]
    assert list(users("data.crops")) == ["data/stream.py"]
    readers = set(users("data.stream"))
    # the evaluations take its counter of skipped pictures
    for path in readers - {"training/input_pipeline.py"}:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert "batches" not in text.split("from jaxclip.data.stream import")[1].splitlines()[0]


# Pictures that are not square ---------------------------------------------------------------------

OBLONG = [(64, 40), (40, 64), (31, 90)]


@pytest.mark.parametrize("size", OBLONG)
@pytest.mark.parametrize("shape", SIZES)
def test_the_crop_has_the_height_and_width_of_the_model(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    """Of the picture resized until it just covers the crop: one of its sides is the crop's."""
    content = jpeg(*shape)
    for seed in range(3):
        full, got = (square(name, content, size, seed) for name in ("full", "reduced"))
        assert full.shape == (*size, 3) and difference(full, got) < NEARLY
    width, height, left, top = crops._draw_crop(shape, size, np.random.default_rng(0))
    assert width == size[1] or height == size[0]
    assert 0 <= left <= width - size[1] and 0 <= top <= height - size[0]
    assert abs(width / height - shape[0] / shape[1]) < shape[0] / shape[1] / min(size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_gives_the_same_oblong_crop(orientation: int) -> None:
    """A JPEG is reduced by the sides that it is seen with, not by those in the file."""
    content = jpeg(643, 429, orientation)
    for size in ((150, 20), (20, 150)):
        full = square("full", content, size)
        assert difference(full, square("reduced", content, size)) < NEARLY


@pytest.mark.parametrize("orientation", [1, 6])
def test_no_side_is_decoded_shorter_than_the_crop(orientation: int) -> None:
    """900 x 300 as seen, of which (70, 400) takes a half and (140, 70) too."""
    stored = (900, 300) if orientation == 1 else (300, 900)
    for least, scale in (((70, 400), 2), ((140, 70), 2), ((70, 200), 4), ((200, 70), 1)):
        found = decode_reduced(jpeg(*stored, orientation), least)
        assert found.size == (900, 300)
        assert found.image.size == (900 // scale, 300 // scale)


@pytest.mark.parametrize("resize", ["squash", "longest"])
def test_a_whole_picture_is_as_evaluation_prepares_it(resize: Any) -> None:
    how = PictureConfig(resize=resize, fill=90)
    image = photograph(90, 61)
    content = encoded(image, "PNG")
    for size in OBLONG:
        preprocess = Preprocess(size, **vars(how))
        expected = preprocess.denormalise(preprocess.safe(image))
        for name in CROPS:
            got = CROPS[name](content, size, np.random.default_rng(0), how)
            assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1


def test_a_stream_s_batches_have_both_sides() -> None:
    options = {"batch_size": 4, "seed": 0, "text_length": 9, "skips": Skips(0)}
    stream = PairStream([Memory(8)], size=(20, 30), **options)  # type: ignore[arg-type]
    batch = next(stream)
    assert batch["image"].shape == (4, 20, 30, 3) and batch["image"].dtype == np.uint8
    pixels = stream.batch_to_pixels(batch, jax.random.key(0))
    assert pixels.shape == (4, 20, 30, 3)
