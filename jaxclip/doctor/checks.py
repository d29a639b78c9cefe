"""Files and arrays of other programs, refused in one line where they are no good."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.doctor.probe import KEYS, digest
from jaxclip.files import open_regular, parse_json

Array = np.ndarray
LARGEST_FILE = 1 << 33  # bytes, unpacked
THEIRS = (
    "image_features",
    "text_features",
    "logits_per_image",
    "logit_scale",
    "pixels",
    "tokens",
    "image_features_from_pictures",
    "text_features_from_texts",
    "image_hidden",
    "text_hidden",
)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of an npz file; ValueError in one line for any other file."""
    name = str(Path(path))
    todo = "write it with numpy.savez(path, image_features=..., ...)"
    with open_regular(path) as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError(f"{name}: expected an npz file, got another kind; {todo}")
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > LARGEST_FILE:
                raise ValueError(f"{name}: expected at most {LARGEST_FILE:,} bytes, got {size:,}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {key: _read(arrays, key, name) for key in arrays.files}
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, KeyError) as error:
            raise ValueError(f"{name}: expected a whole npz file, got {error}; {todo}") from None


def _read(arrays: Any, key: str, name: str) -> Array:
    try:
        value = arrays[key]
    except ValueError as error:
        what = "a pickled object" if "pickle" in str(error).lower() else f"an error ({error})"
        raise ValueError(
            f"{name}: {key}: expected an array of numbers, got {what}; save plain arrays"
        ) from None
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name}: {key}: expected an npy array, got bytes; use numpy.savez")
    return value


def check_probe(probe: Mapping[str, Array], config: ClipConfig, flat: dict[str, Array]) -> None:
    """ValueError where a probe is none, or was made for another model."""
    missing = [key for key in ("pixels", "texts", "tokens", "meta") if key not in probe]
    if missing:
        raise ValueError(
            f"expected a probe with {', '.join(KEYS)} and meta, got none of {', '.join(missing)}; "
            "make one with jaxclip doctor probe"
        )
    meta = parse_json(str(probe["meta"]))
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict):
        raise ValueError("expected a probe of jaxclip doctor probe, got other notes; make it anew")
    (height, width), context = config.vision.image_sides, config.text.context_length
    pixels, tokens = np.asarray(probe["pixels"]), np.asarray(probe["tokens"])
    again = "make the probe for this model: jaxclip doctor probe --model MODEL"
    if pixels.ndim != 4 or pixels.shape[1:] != (3, height, width):
        raise ValueError(
            f"pixels of the probe: expected [n, 3, {height}, {width}], got {pixels.shape}; {again}"
        )
    if tokens.ndim != 2 or tokens.shape[1] != context or tokens.max() >= config.text.vocab_size:
        raise ValueError(
            f"tokens of the probe: expected [m, {context}] below {config.text.vocab_size}, got "
            f"{tokens.shape} up to {tokens.max()}; {again}"
        )
    if meta.get("weights") not in (None, digest(flat)):
        raise ValueError(
            f"expected a probe made for these weights, got one for {meta.get('model') or 'others'};"
            f" {again}"
        )


def check_theirs(
    theirs: Mapping[str, Array], probe: Mapping[str, Array], config: ClipConfig
) -> dict[str, Array]:
    """Their arrays, finite, in our layout; ValueError names what is no good."""
    known = {key: np.asarray(theirs[key]) for key in THEIRS if key in theirs}
    if not known or set(known) == {"logit_scale"}:
        some = ", ".join(list(theirs)[:4]) or "nothing"
        raise ValueError(f"expected one or more of {', '.join(THEIRS)}, got {some}; record some")
    for key, value in known.items():
        if value.dtype.kind == "V" and value.dtype.itemsize == 2:  # NumPy's name for bfloat16
            import ml_dtypes

            known[key] = value = value.view(ml_dtypes.bfloat16).astype(np.float32)
        if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
            raise ValueError(f"{key}: expected numbers, got {value.dtype}; save a float32 array")
        if not np.isfinite(np.asarray(value, np.float64)).all():
            bad = int((~np.isfinite(np.asarray(value, np.float64))).sum())
            raise ValueError(
                f"{key}: expected finite numbers, got {bad} of {value.size} that are NaN or "
                "infinite; run it in float32 and look for a mask that hides a whole row"
            )
    return _shaped(known, len(probe["pixels"]), len(probe["tokens"]), config)


def _shaped(known: dict[str, Array], n: int, m: int, config: ClipConfig) -> dict[str, Array]:
    vision, text, e = config.vision, config.text, config.embed_dim
    wide = vision.features if isinstance(vision, ResNetConfig) else vision.width
    height, width = vision.image_sides
    _features(known, "image_features", n, (e, wide))
    _features(known, "image_features_from_pictures", n, (e, wide))
    _features(known, "text_features", m, (e, text.width))
    _features(known, "text_features_from_texts", m, (e, text.width))
    if "pixels" in known:
        pixels = known["pixels"]
        if pixels.shape == (n, 3, height, width):
            known["pixels"] = pixels.transpose(0, 2, 3, 1)
        elif pixels.shape != (n, height, width, 3):
            either = f"[{n}, 3, {height}, {width}] or [{n}, {height}, {width}, 3]"
            _refuse("pixels", either, pixels)
    if "tokens" in known:
        tokens = known["tokens"]
        if tokens.ndim != 2 or len(tokens) != m or not tokens.shape[1]:
            _refuse("tokens", f"[{m}, l]", tokens)
        if (tokens != np.rint(tokens)).any():
            raise ValueError("tokens: expected whole numbers, got fractions; save the ids")
        known["tokens"] = tokens.astype(np.int64)
    if "logits_per_image" in known and known["logits_per_image"].shape not in ((n, m), (m, n)):
        _refuse("logits_per_image", f"[{n}, {m}]", known["logits_per_image"])
    for side, rows, width in (("image", n, wide), ("text", m, text.width)):
        hidden = known.get(f"{side}_hidden")
        if hidden is not None and (
            hidden.ndim != 4 or hidden.shape[1] != rows or hidden.shape[3] != width
        ):
            _refuse(f"{side}_hidden", f"[layers + 1, {rows}, l, {width}]", hidden)
    blockless = {"image": isinstance(vision, ResNetConfig), "text": text.kind == "cbow"}
    for side, has_none in blockless.items():
        if has_none and f"{side}_hidden" in known:
            raise ValueError(f"{side}_hidden: expected none of this tower, got some; leave it out")
    if "logit_scale" in known and known["logit_scale"].size != 1:
        _refuse("logit_scale", "one number", known["logit_scale"])
    return known


def _features(known: dict[str, Array], key: str, rows: int, widths: tuple[int, int]) -> None:
    value = known.get(key)
    if value is None:
        return
    if value.ndim != 2 or len(value) != rows or value.shape[1] not in widths:
        _refuse(key, f"[{rows}, {widths[0]}]", value)


def _refuse(key: str, expected: str, value: Array) -> None:
    raise ValueError(
        f"{key}: expected {expected}, got {list(value.shape)}; run it on the pixels, tokens, "
        "pictures and texts of this probe, with a model of these widths"
    )
