"""Whatever the bytes of a picture file are: pixels or a ValueError of one line, never else."""

import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.crops import random_crop, reduced_crop
from jaxclip.images.open import decode_image
from jaxclip.images.preprocess import Preprocess
from tests.support.pictures import KINDS, deep, encoded


def seeds() -> dict[str, bytes]:
    """A small picture in every format and the ways it is stored."""
    dice = np.random.default_rng(2)
    rgba = Image.fromarray(dice.integers(0, 256, (20, 24, 4), dtype=np.uint8))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette = rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {kind: encoded(rgb, kind) for kind in KINDS}
    found |= {
        "PNG, EXIF": encoded(rgba, "PNG", exif=exif),
        "PNG, palette": encoded(palette, "PNG", transparency=bytes(range(16))),
        "PNG, 16 bits": encoded(deep("I;16").resize((24, 20)), "PNG"),
        "JPEG, EXIF": encoded(rgb, "JPEG", exif=exif, progressive=True),
        "JPEG, CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
        "WEBP, moving": encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)]),
        "GIF, moving": encoded(palette, "GIF", save_all=True, append_images=[grey]),
        "TIFF, LZW": encoded(rgba, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF, float": encoded(Image.new("F", (24, 20), 0.5), "TIFF"),
        "PPM, text": b"P3\n4 3\n255\n" + b" ".join(b"%d" % x for x in range(36)),
        "ICO": encoded(rgba.resize((32, 32)), "ICO"),
        "ICO, bitmap": encoded(rgba.resize((32, 32)), "ICO", bitmap_format="bmp"),
    }
    return found


def with_right_sums(content: bytes) -> bytes:
    """A PNG whose checksums hold again, so that what was changed is looked at."""
    out, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        body = content[at + 4 : at + 8 + size]
        out += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Bytes changed, taken out, set to extreme numbers, or cut off; half of it near the front."""
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 4, 10])):
        place = dice.randrange(min(len(changed), dice.choice([120, 1 << 20])))
        kind = dice.randrange(5)
        if kind == 0:
            changed[place] = dice.randrange(256)
        elif kind == 1:
            changed[place] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del changed[place : place + dice.randrange(1, 9)]
        elif kind == 3:
            number = dice.choice([0, 1, 10_000, 70_000, 0x7FFF_FFFF, 0xFFFF_FFFF])
            changed[place : place + 4] = number.to_bytes(4, dice.choice(["big", "little"]))
        else:
            changed = changed[: place + 1]
        changed = changed or bytearray(1)
    return bytes(changed)


@pytest.mark.parametrize(("name", "content"), seeds().items(), ids=list(seeds()))
def test_any_bytes_give_a_picture_or_a_value_error(name: str, content: bytes) -> None:
    dice, rng, preprocess = random.Random(name), np.random.default_rng(0), Preprocess(16)
    ways: list[Callable[[bytes], np.ndarray]] = [
        lambda x: preprocess(decode_image(x)),
        lambda x: preprocess.safe(decode_image(x)),
        lambda x: random_crop(x, 16, rng),
        lambda x: reduced_crop(x, 16, rng),
    ]
    read = 0
    for way in ways:
        assert way(content).shape == (16, 16, 3)
    for turn in range(120):
        bytes_ = mutated(content, dice)
        if name.startswith("PNG") and turn % 2:
            bytes_ = with_right_sums(bytes_)
        for way in ways:
            try:
                read += way(bytes_).shape == (16, 16, 3)
            except ValueError as error:
                assert str(error).startswith("expected ") and "\n" not in str(error)
    assert read > 0 or name.startswith("PNG")
