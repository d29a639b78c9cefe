"""Recorded ladders: written, read, and checked against the model that is to be run on them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip import checkpoint
from jaxclip.config import ClipConfig
from jaxclip.files import open_regular
from jaxclip.parity.rungs import Rungs, rung_shapes
from jaxclip.tokenizer import check_vocabulary

FORMAT = "jaxclip-ladder-1"


def record(path: Path, rungs: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
    """Write a ladder, with what made it, as one safetensors file, for `recorded` to read."""
    metadata = {"format": FORMAT, "notes": json.dumps(dict(notes))}
    checkpoint.save_arrays(path, rungs, metadata)


def _notes(path: Path, text: str) -> dict[str, Any]:
    """The notes of a ladder; of what is read from them, `by` and `texts`, the types are checked."""
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected notes in JSON, got {error}") from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: expected notes as a JSON object, got {type(notes).__name__}")
    texts = notes.get("texts", [])
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"{path}: expected texts as a list of strings, got something else")
    if not isinstance(notes.get("by", ""), str):
        raise ValueError(f"{path}: expected `by` as a string, got {type(notes['by']).__name__}")
    return notes


def recorded(path: Path) -> tuple[Rungs, dict[str, Any]]:
    """(rungs, notes) of a file that `record` wrote; ValueError if it is none."""
    with open_regular(path):  # a named pipe or a folder is refused here
        arrays, metadata = checkpoint.load_arrays(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; record a "
            "ladder with jaxclip verify MODEL --record FILE"
        )
    if "pixels" not in arrays or "tokens" not in arrays:
        raise ValueError(f"{path}: expected pixels and tokens to run a model on, got neither")
    return arrays, _notes(path, metadata.get("notes", "{}"))


def _is_float(array: np.ndarray) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, np.floating))  # bfloat16 too


def _require(good: bool, expected: str, got: np.ndarray) -> None:
    if not good:
        raise ValueError(f"{expected}, got {got.dtype} {got.shape}")


def _check_stages(
    rungs: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    stages = [name for name in rungs if name not in ("pixels", "tokens", "picture")]
    if not shapes.keys() & set(stages):
        raise ValueError(
            f"expected stages of this model, such as {', '.join(list(shapes)[:3])}, got "
            f"{', '.join(map(repr, stages[:3])) or 'none'}"
        )
    for name in stages:
        if name in shapes:
            good = _is_float(rungs[name]) and rungs[name].shape == shapes[name]
            _require(good, f"{name}: expected floats {shapes[name]}", rungs[name])
    return [name for name in stages if name not in shapes]


def runnable(rungs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(images float32, tokens int32) of a recorded ladder, as a model takes them."""
    return np.asarray(rungs["pixels"], np.float32), np.asarray(rungs["tokens"], np.int32)


def check_recorded(
    rungs: Mapping[str, np.ndarray], notes: Mapping[str, Any], config: ClipConfig
) -> list[str]:
    """Refuse a recorded ladder that a model of this config cannot be run on and compared with.

    Returns:
      The stages of the ladder that such a model does not have; they are not compared.

    Raises:
      ValueError: names the array, what was expected and what it is.
    """
    pixels, tokens = rungs["pixels"], rungs["tokens"]
    (height, width), length = config.vision.image_sides, config.text.context_length
    _require(
        _is_float(pixels) and pixels.ndim == 4 and pixels.shape[1:] == (height, width, 3),
        f"pixels: expected floats [n, {height}, {width}, 3]",
        pixels,
    )
    _require(len(pixels) > 0, "pixels: expected one picture or more", pixels)
    largest = np.abs(np.asarray(pixels, np.float64)).max()
    if not largest <= np.finfo(np.float32).max:
        raise ValueError(f"pixels: expected finite float32 numbers, got up to {largest}")
    whole = np.issubdtype(tokens.dtype, np.integer) and tokens.ndim == 2 and tokens.size > 0
    _require(
        whole and tokens.shape[1] <= length,
        f"tokens: expected whole numbers [m, l], l up to {length}",
        tokens,
    )
    check_vocabulary(tokens, config.text.vocab_size)
    if "texts" in notes and len(notes["texts"]) != len(tokens):
        raise ValueError(f"expected a text a row of tokens, got {len(notes['texts'])} texts")
    if "picture" in rungs:
        content = rungs["picture"]
        good = content.dtype == np.uint8 and content.ndim == 1 and len(pixels) == 1
        _require(good, "picture: expected the bytes of a file, and pixels of one picture", content)
    return _check_stages(rungs, rung_shapes(config, *runnable(rungs)))
