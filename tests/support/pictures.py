"""Pictures for tests, as files in memory."""

import io
from typing import Any

import numpy as np
from PIL import Image, features


def png(seed: int = 0, width: int = 12, height: int = 9) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def grey_png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), 20 * i, np.uint8)).save(file, "png")
    return file.getvalue()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(mode: str) -> Image.Image:
    """A ramp over the whole range of the mode."""
    ramp = np.arange(1 << 16).reshape(256, 256)
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16))
    return Image.fromarray((ramp / 65535).astype(np.float32) if mode == "F" else ramp.astype("i4"))


NOISE = Image.frombytes("RGB", (60, 50), np.random.default_rng(0).bytes(60 * 50 * 3))
KINDS = ["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG", "PPM", "JPEG2000", "MPO"]
KINDS += ["AVIF"] if features.check("avif") else []
