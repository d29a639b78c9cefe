"""Training sees the pictures that evaluation sees: upright, 8 bits a channel, on white."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.crops import random_crop
from jaxclip.images.open import decode_image, to_rgb
from jaxclip.images.preprocess import Preprocess
from tests.support.pictures import NOISE, deep, encoded


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I", "PPM")])
def test_a_16_bit_ramp_has_the_same_mean_in_training_and_evaluation(mode: str, kind: str) -> None:
    """127.5; clipped at 255, as `convert` does, it is 254.5."""
    content = encoded(deep(mode), kind)
    trained = random_crop(content, 256, np.random.default_rng(0))
    assert trained.mean() == pytest.approx(127.5, abs=0.01)
    clipped = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert clipped.mean() == pytest.approx(254.5, abs=0.01)


def odd_pictures() -> Iterator[tuple[str, bytes]]:
    """Pictures of 32 x 32 that `convert("RGB")` shows otherwise than a viewer does."""
    dice = np.random.default_rng(1)
    pixels = dice.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    palette = rgba.convert("RGB").quantize(16)
    key = tuple(pixels[0, 0, :3].tolist())
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "RGBA", encoded(rgba, "PNG")
    yield "RGBA, WebP", encoded(rgba, "WEBP", lossless=True)
    yield "LA", encoded(rgba.convert("LA"), "PNG")
    yield "palette, one transparent", encoded(palette, "PNG", transparency=3)
    yield "palette, opacities", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    yield "GIF", encoded(palette, "GIF", transparency=3)
    yield "key colour", encoded(rgba.convert("RGB"), "PNG", transparency=key)
    yield "key grey", encoded(rgba.convert("L"), "PNG", transparency=128)
    yield "turned", encoded(rgba.convert("RGB"), "JPEG", exif=turned)
    yield "turned PNG", encoded(rgba.convert("RGB"), "PNG", exif=turned)
    yield "16 bits", encoded(deep("I;16").resize((32, 32), Image.Resampling.NEAREST), "PNG")
    yield "32 bits", encoded(deep("I").resize((32, 32), Image.Resampling.NEAREST), "TIFF")
    yield "float", encoded(deep("F").resize((32, 32), Image.Resampling.NEAREST), "TIFF")


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the plain way
@pytest.mark.parametrize(("name", "content"), list(odd_pictures()), ids=lambda x: str(x)[:24])
def test_training_sees_what_evaluation_sees(name: str, content: bytes) -> None:
    trained = random_crop(content, 32, np.random.default_rng(0))
    preprocess = Preprocess(32)
    seen = preprocess.denormalise(preprocess.safe(decode_image(content)))
    np.testing.assert_array_equal(trained, seen)
    plainly = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert not np.array_equal(trained, plainly)  # what training saw before


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L", "1", "RGB"])
def test_other_modes_are_converted_by_pillow(mode: str) -> None:
    content = encoded(NOISE.convert(mode), "TIFF")
    plainly = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(to_rgb(decode_image(content)), plainly)


def test_transparency_is_white() -> None:
    for content in (
        encoded(Image.new("RGBA", (9, 9), (200, 0, 0, 0)), "PNG"),
        encoded(Image.new("LA", (9, 9), (7, 0)), "PNG"),
        encoded(Image.new("P", (9, 9), 0), "GIF", transparency=0),
        encoded(Image.new("L", (9, 9), 5), "PNG", transparency=5),
        encoded(Image.new("I;16", (9, 9), 500), "PNG", transparency=500),
    ):
        assert (random_crop(content, 9, np.random.default_rng(0)) == 255).all()


def test_a_dark_16_bit_picture_is_dark_in_every_format() -> None:
    """Of a PGM, Pillow's mode "I", all values fit into 0..255; they count in 65,535ths too."""
    dark = np.linspace(0, 200, 1024).reshape(32, 32)
    png = encoded(Image.fromarray(dark.astype(np.uint16)), "PNG")
    pgm = encoded(Image.fromarray(dark.astype("i4")), "PPM")
    shown = [np.asarray(to_rgb(decode_image(content))) for content in (png, pgm)]
    assert np.array_equal(*shown) and shown[0].max() == 1
