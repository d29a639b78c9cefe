"""Pixels equal the plain Pillow pipeline in every mode; photos are seen as people do."""

import io
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.lib.peers.parity_support import official_transform
from jaxclip.images import preprocess as module
from jaxclip.images.open import open_image, to_rgb
from jaxclip.images.preprocess import Preprocess

EIGHT_BIT = ["L", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
MODES = ["1", "P", *EIGHT_BIT, "I;16", "I;16L", "I;16B", "I", "F"]
SIZES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (31, 29),
    (32, 32),
    (33, 32),
    (40, 97),
    (97, 40),
    (64, 35),
    (7, 120),
]


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    dice = np.random.default_rng([seed, width, height])
    if mode == "1":
        return Image.fromarray(dice.integers(0, 2, (height, width)).astype(bool))
    if mode == "F":
        return Image.fromarray(dice.normal(100, 120, (height, width)).astype(np.float32))
    if mode == "I":
        return Image.fromarray(dice.integers(-99, 70_000, (height, width), dtype=np.int32))
    if mode.startswith("I;16"):  # above 255 all turns white in RGB
        values = dice.integers(0, 600, (height, width)).astype("<u2")
        return Image.frombytes(mode, (width, height), values.tobytes())
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, (width, height), dice.bytes(width * height * bands))
    if mode in ("P", "PA"):
        image.putpalette(list(dice.bytes(768)))
    return image


def plain(image: Image.Image, size: int, convert_first: bool = False) -> np.ndarray:
    """The released steps, spelled out: resize, crop, RGB, /255, mean, deviation."""
    if convert_first:
        image = image.convert("RGB")
    short, long = sorted(image.size)
    length = int(size * long / short)
    wide, high = (size, length) if image.width <= image.height else (length, size)
    left, top = (round((side - size) / 2.0) for side in (wide, high))
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    pixels = np.array(image).astype(np.float32) / np.float32(255)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    return (pixels - mean) / std


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# The official policy


@pytest.mark.parametrize("mode", MODES)
def test_official_equals_the_released_steps(mode: str) -> None:
    for width, height in SIZES:
        for size in (8, 32, 33):
            image = picture(mode, width, height)
            pixels = Preprocess(size)(image)
            assert pixels.shape == (size, size, 3) and pixels.dtype == np.float32
            np.testing.assert_array_equal(pixels, plain(image, size), f"{width} x {height}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 100), (100, 1), (3, 299)])
def test_official_equals_the_released_steps_up_to_the_limit(
    mode: str, shape: tuple[int, int]
) -> None:
    image = picture(mode, *shape)
    for size in (32, 224):
        np.testing.assert_array_equal(Preprocess(size)(image), plain(image, size))


@pytest.mark.parametrize("shape", [(10_000, 1), (70_000, 1), (1, 101), (5, 501)])
@pytest.mark.parametrize("mode", ["P", "RGB", "I;16"])
def test_a_picture_beyond_the_limit_is_refused_before_it_is_resized(
    mode: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new(mode, shape)
    monkeypatch.setattr(Image.Image, "resize", None)
    for policy in (Preprocess(224), Preprocess(224).safe):
        with pytest.raises(ValueError, match=f"100 times as long as wide, got {shape[0]} x"):
            policy(image)


def test_a_picture_that_pillow_opened_is_judged_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = Image.open(io.BytesIO(encoded(Image.new("L", (10_000, 1)), "PNG")))
    monkeypatch.setattr(type(image), "load", None)
    for policy in (Preprocess(224), Preprocess(224).safe):
        with pytest.raises(ValueError, match="got 10000 x 1"):
            policy(image)


def test_a_damaged_picture_that_pillow_opened_is_refused() -> None:
    content = encoded(picture("RGB", 60, 50), "PNG")
    for policy in (Preprocess(16), Preprocess(16).safe):
        with pytest.raises(ValueError, match="got a truncated PNG"):
            policy(Image.open(io.BytesIO(content[:2000])))


def test_crop_offset_rounds_halves_to_even() -> None:
    """At 224, 635 leaves 411: half of it is 205.5, and the released code starts at 206."""
    image = picture("RGB", 2162 // 4, 762 // 4)
    wide, _ = module._resized_size(*image.size, 56)
    assert (wide - 56) % 4 == 3  # where rounding down starts one pixel earlier
    right = Preprocess(56)(image)
    np.testing.assert_array_equal(right, plain(image, 56))
    resized = image.resize((wide, 56), Image.Resampling.BICUBIC)
    floored = resized.crop(((wide - 56) // 2, 0, (wide - 56) // 2 + 56, 56))
    assert not np.array_equal(Preprocess(56)(floored), right)
    rounded = resized.crop(((wide - 56) // 2 + 1, 0, (wide - 56) // 2 + 57, 56))
    np.testing.assert_array_equal(Preprocess(56)(rounded), right)


@pytest.mark.parametrize(
    ("shape", "size", "resized"),
    [((2162, 762), 224, (635, 224)), ((640, 480), 224, (298, 224)), ((3, 7), 5, (5, 11))],
)
def test_the_long_side_is_truncated(
    shape: tuple[int, int], size: int, resized: tuple[int, int]
) -> None:
    assert module._resized_size(*shape, size) == resized
    assert module._resized_size(*shape[::-1], size) == resized[::-1]


@pytest.mark.parametrize("mode", ["P", "PA", "RGBA", "LA"])
def test_converting_first_would_differ(mode: str) -> None:
    image = picture(mode, 61, 47)
    pixels = Preprocess(32)(image)
    assert not np.array_equal(pixels, plain(image, 32, convert_first=True))


def test_palettes_with_transparency_raise_no_warning() -> None:
    image = picture("P", 40, 30)
    image.info["transparency"] = bytes(range(256))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plain steps do warn
        expected = plain(image, 32)
    np.testing.assert_array_equal(Preprocess(32)(image), expected)
    assert "transparency" in image.info  # the picture is left as it was


def test_official_ignores_orientation() -> None:
    image = picture("RGB", 40, 30)
    turned = Image.open(io.BytesIO(encoded(image, "PNG", exif=orientation(6))))
    np.testing.assert_array_equal(Preprocess(16)(turned), Preprocess(16)(image))


def test_calls_are_deterministic_and_leave_the_picture_alone() -> None:
    for mode in MODES:
        image = picture(mode, 50, 40)
        before = image.tobytes()
        first = Preprocess(16)(image), Preprocess(16).safe(image)
        again = Preprocess(16)(image), Preprocess(16).safe(image)
        np.testing.assert_array_equal(first, again)
        assert image.tobytes() == before and image.mode == mode


# The safe policy


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_safe_turns_photos_upright(number: int, kind: str, tmp_path: Path) -> None:
    upright = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3)
    undo = {  # how a camera would have stored the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    path = tmp_path / "photo"
    stored = Image.fromarray(np.ascontiguousarray(undo[number]))
    options = {"lossless": True} if kind == "WEBP" else {}
    path.write_bytes(encoded(stored, kind, exif=orientation(number), **options))
    pixels = Preprocess(8).safe(open_image(path))
    np.testing.assert_array_equal(pixels, plain(Image.fromarray(upright), 8))


def test_safe_takes_a_photo_with_a_broken_exif_block_as_it_is() -> None:
    image = picture("RGB", 12, 8)
    image.info["exif"] = b"Exif\0\0no tags here"
    np.testing.assert_array_equal(Preprocess(8).safe(image), plain(image, 8))


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa", "P", "RGB", "L"])
def test_safe_lays_transparency_on_white(mode: str) -> None:
    if mode in ("P", "RGB", "L"):  # transparency by key
        image = Image.new(mode, (12, 8), 0)
        image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    else:
        image = Image.new(mode, (12, 8))
    white = Preprocess(8)(Image.new("RGB", (12, 8), "white"))
    np.testing.assert_array_equal(Preprocess(8).safe(image), white)
    if mode not in ("La", "PA"):  # Pillow cannot convert the one and loses the other's palette
        assert not np.array_equal(Preprocess(8)(image), white)


def test_safe_mixes_half_transparent_colours_with_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 51))  # a fifth
    pixels = Preprocess(8).denormalise(Preprocess(8).safe(image))
    np.testing.assert_array_equal(pixels[0, 0], [255, 204, 204])


def test_safe_converts_palettes_before_resizing() -> None:
    image = picture("P", 61, 47)
    np.testing.assert_array_equal(Preprocess(32).safe(image), plain(image, 32, convert_first=True))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_safe_equals_converting_first_elsewhere(mode: str) -> None:
    image = picture(mode, 61, 47)
    np.testing.assert_array_equal(Preprocess(32).safe(image), plain(image, 32, convert_first=True))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 32639, 65535]], "<u2"), [0, 1, 127, 255]),
        (np.array([[0, 257, 32639, 65535]], ">u2"), [0, 1, 127, 255]),
        (np.array([[0, 1, 2, 3]], "<u2"), [0, 0, 0, 0]),  # 16 bits are 16 bits, however dark
        (np.array([[0, 1, 200, 255]], np.int32), [0, 1, 200, 255]),
        (np.array([[0, 257, 32639, 65535]], np.int32), [0, 1, 127, 255]),
        (np.array([[-1000, 0, 0, 1000]], np.int32), [0, 128, 128, 255]),
        (np.array([[0, 0.2, 0.6, 1]], np.float32), [0, 51, 153, 255]),
        (np.array([[0, 1, 200, 255]], np.float32), [0, 1, 200, 255]),
        (np.array([[-1, 0, 1, 3]], np.float32), [0, 64, 128, 255]),
        (np.array([[-7, -7, -7, -7]], np.float32), [0, 0, 0, 0]),
        (np.array([[-3e38, 0, 0, 3e38]], np.float32), [0, 128, 128, 255]),
    ],
)
def test_safe_scales_deep_pictures(values: np.ndarray, expected: list[int]) -> None:
    seen = to_rgb(Image.fromarray(values))
    assert seen.mode == "RGB"
    np.testing.assert_allclose(np.asarray(seen)[0, :, 0], expected, atol=1)
    np.testing.assert_array_equal(np.asarray(seen)[0, [0, 3], 0], [expected[0], expected[3]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_safe_refuses_values_that_are_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Preprocess(8).safe(Image.new("F", (8, 8), value))


# Arguments


@pytest.mark.parametrize("image", ["cat.png", None, np.zeros((8, 8, 3))])
def test_what_is_no_picture_is_refused(image: object) -> None:
    for policy in (Preprocess(8), Preprocess(8).safe):
        with pytest.raises(ValueError, match=r"expected a PIL.Image \(.*\), got \w+"):
            policy(image)  # type: ignore[arg-type]


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 x 5"):
        Preprocess(8)(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "arguments",
    [(0,), (-1,), (1.5,), (True,), (8, (0.5, 0.5)), (8, (0, 0, np.nan)), (8, (0, 0, 0), (1, 1, 0))],
)
def test_settings_out_of_range_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="expected"):
        Preprocess(*arguments)


def test_other_constants_are_used() -> None:
    image = Image.new("RGB", (8, 8), "white")
    assert (Preprocess(8, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))(image)[0, 0] == [2, 1, 0.5]).all()


def test_denormalise_undoes_every_value() -> None:
    values = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.repeat(values.reshape(16, 16, 1), 3, axis=2))
    np.testing.assert_array_equal(Preprocess(16).denormalise(Preprocess(16)(image)), image)


# The released code itself


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # theirs, not ours
@pytest.mark.parametrize("mode", MODES)
def test_official_equals_torchvision(mode: str) -> None:
    dice = random.Random(mode)
    for seed in range(200):
        width, height = dice.randint(1, 300), dice.randint(1, 300)
        size = dice.choice([16, 17, 32, 50, 64, 224])
        image = picture(mode, width, height, seed)
        if mode == "P" and seed % 2:
            image.info["transparency"] = bytes(range(256))
        expected = official_transform(size)(image).numpy().transpose(1, 2, 0)  # [h, w, c]
        np.testing.assert_array_equal(Preprocess(size)(image), expected, f"{image.size} {size}")


@pytest.mark.parity
def test_long_pictures_equal_torchvision() -> None:
    for shape in ((1, 100), (100, 1), (30, 2997), (2997, 30)):
        image = picture("RGB", *shape)
        expected = official_transform(112)(image).numpy().transpose(1, 2, 0)  # [h, w, c]
        np.testing.assert_array_equal(Preprocess(112)(image), expected)


# Height and width that differ ---------------------------------------------------------------------


def plain_oblong(image: Image.Image, height: int, width: int) -> np.ndarray:
    """open_clip's steps, spelled out: the picture just covers the size, the middle is cut out."""
    ratio = min(image.height / height, image.width / width)
    wide, high = round(image.width / ratio), round(image.height / ratio)
    left, top = round((wide - width) / 2), round((high - height) / 2)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    return np.array(image.crop((left, top, left + width, top + height)).convert("RGB"))


@pytest.mark.parametrize("size", [(30, 18), (17, 64), (5, 90)])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK"])
def test_pixels_that_are_not_square_equal_the_plain_steps(
    mode: str, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    image, preprocess = picture(mode, *shape), Preprocess(size)
    got = preprocess(image)
    assert got.shape == (*size, 3) and got.dtype == np.float32
    np.testing.assert_array_equal(preprocess.denormalise(got), plain_oblong(image, *size))
    if min(shape) > 9:
        turned = plain_oblong(image, *size[::-1]).swapaxes(0, 1)
        assert not np.array_equal(preprocess.denormalise(got), turned)
    if mode == "RGB":
        np.testing.assert_array_equal(preprocess.safe(image), got)


@pytest.mark.parametrize("size", [0, -1, True, 8.0, "8", (8, 8), (8, 0), (8, 9, 3), [8, 9]])
def test_a_wrong_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size: expected"):
        Preprocess(size)
