"""Pictures to pixels and texts to tokens, with the mistakes that programs make."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxclip import tokenizer
from jaxclip.convert.layouts.positions import cubic
from jaxclip.doctor.knobs import Pixels, Words

Array = np.ndarray
Picture = bytes  # of an array [h, w, 3]
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
LARGER = 256 / 224  # of torchvision's ImageNet recipe: resize to 256, crop 224


# Pictures -----------------------------------------------------------------------------------------


def resize_matrix(before: int, centres: Array, resample: str, a: float) -> Array:
    """[after, before]: how the pixels at `centres` are mixed from old ones, not antialiased."""
    after = len(centres)
    if resample == "nearest":  # torch's: the pixel that holds the left edge of the new one
        taps = np.floor(np.arange(after) * before / after).astype(int)[:, None]
        weights = np.ones((after, 1))
    elif resample == "bilinear":
        first = np.floor(centres).astype(int)
        taps = first[:, None] + np.arange(2)
        weights = 1 - np.abs(centres[:, None] - taps)
    else:
        first = np.floor(centres).astype(int) - 1
        taps = first[:, None] + np.arange(4)
        weights = cubic(centres[:, None] - taps, a)
    matrix = np.zeros((after, before))
    rows = np.repeat(np.arange(after), taps.shape[1])
    np.add.at(matrix, (rows, np.clip(taps, 0, before - 1).ravel()), weights.ravel())
    return matrix


def resize(picture: Array, width: int, height: int, knobs: Pixels) -> Array:
    """[h, w, 3] uint8 -> [height, width, 3], values 0 to 255."""
    if knobs.antialias == "on":
        size = (width, height)
        return np.asarray(Image.fromarray(picture).resize(size, FILTERS[knobs.resample]))
    a = -0.5 if "-0.5" in knobs.antialias else -0.75
    down, across = (
        resize_matrix(old, (np.arange(new) + 0.5) * old / new - 0.5, knobs.resample, a)
        for old, new in zip(picture.shape, (height, width), strict=False)
    )
    x = np.einsum("ij,jkc->ikc", down, picture.astype(np.float64), optimize=True)
    x = np.einsum("ij,kjc->kic", across, x, optimize=True)  # [height, width, 3]
    return x if "unclipped" in knobs.antialias else _settle(x, "rounded" in knobs.antialias)


def _settle(x: Array, rounded: bool) -> Array:
    x = np.clip(x, 0, 255)
    return np.rint(x) if rounded else x


def crop_offset(space: int, choice: str) -> int:
    """How many pixels are cut on the left or above, of `space` to be cut in all."""
    if choice == "down":
        return space // 2
    if choice == "up":
        return -(-space // 2)
    return round(space / 2)  # a half goes to the even side


def long_side(size: int, longer: int, shorter: int, rounding: str) -> int:
    """The longer side once the shorter one is `size`."""
    exact = size * longer / shorter
    how = {"truncated": math.floor, "nearest": lambda x: math.floor(x + 0.5), "up": math.ceil}
    return int(how[rounding](exact))


def _centre(picture: Array, width: int, height: int, offset: str) -> Array:
    top = crop_offset(picture.shape[0] - height, offset)
    left = crop_offset(picture.shape[1] - width, offset)
    return picture[top : top + height, left : left + width]


@functools.lru_cache(maxsize=4096)
def _square(picture: Picture, high: int, wide: int, size: int, knobs: Pixels) -> Array:
    """The geometry alone: bytes of [high, wide, 3] -> [size, size, 3], values 0 to 255."""
    array = np.frombuffer(picture, np.uint8).reshape(high, wide, 3)
    if knobs.order == "squash":
        return resize(array, size, size, knobs)
    if knobs.order == "crop, resize":
        side = min(high, wide)
        return resize(_centre(array, side, side, knobs.offset), size, size, knobs)
    if knobs.order == "pad":
        side = max(high, wide)
        canvas = np.zeros((side, side, 3), np.uint8)
        top, left = (side - high) // 2, (side - wide) // 2
        canvas[top : top + high, left : left + wide] = array
        return resize(canvas, size, size, knobs)
    target = int(size * LARGER) if knobs.order == "resize larger" else size
    if wide <= high:
        width, height = target, long_side(target, high, wide, knobs.rounding)
    else:
        width, height = long_side(target, wide, high, knobs.rounding), target
    resized = resize(array, width, height, knobs)
    if knobs.order == "corner":
        return resized[:size, :size]
    return _centre(resized, size, size, knobs.offset)


GEOMETRY = ("order", "resample", "antialias", "rounding", "offset")


def make_pixels(picture: Array, size: int, knobs: Pixels) -> Array:
    """[h, w, 3] uint8 -> pixels [size, size, 3] float32."""
    geometry = Pixels(**{name: getattr(knobs, name) for name in GEOMETRY})
    high, wide = picture.shape[:2]
    x = _square(np.ascontiguousarray(picture).tobytes(), high, wide, size, geometry)
    x = x[..., ::-1] if knobs.channels == "bgr" else x
    x = np.swapaxes(x, 0, 1) if knobs.rows == "columns" else x
    x = x.astype(np.float64) / knobs.divisor
    return np.asarray((x - np.asarray(knobs.mean)) / np.asarray(knobs.std), np.float32)


# Texts --------------------------------------------------------------------------------------------


def _encode(text: str, knobs: Words) -> list[int]:
    """The ids of a text without its marks; the probe's texts need no repair."""
    if knobs.case == "lower" and knobs.marks == "as words":
        return tokenizer.encode(text)
    text = " ".join(text.split())
    text = text if knobs.case == "kept" else text.lower()
    if knobs.marks == "dropped":
        text = " ".join("".join(c if c.isalnum() else " " for c in text).split())
    chunks = text.split(" ") if text else []
    return [token for chunk in chunks for token in tokenizer._chunk_ids(chunk)]


def make_tokens(texts: Sequence[str], context: int, knobs: Words) -> Array:
    """[m, l] int32, one row a text."""
    length = knobs.context or context
    tokens = np.full((len(texts), length), knobs.padding, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = [tokenizer.START_OF_TEXT] * knobs.start + _encode(text, knobs)
        ids += [tokenizer.END_OF_TEXT] * knobs.end
        cut = len(ids) > length
        ids = ids[:length]
        if cut and knobs.end and knobs.end_if_cut:
            ids[-1] = tokenizer.END_OF_TEXT
        row[: len(ids)] = ids
    return tokens
