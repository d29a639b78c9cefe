"""A cache of zero-shot classifiers: a prompt ensemble is computed once and kept in a file.

The file's name is the SHA-256 of everything the matrix depends on: the weights of the text tower,
the config, the numerics, the tokens and the templates. So another model, class list or template
has another file.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip import hardware
from jaxclip.checkpoint import fingerprint, load_arrays, save_arrays
from jaxclip.evaluation.features import map_batches, require_finite
from jaxclip.evaluation.zero_shot import average_prompts, fill_templates
from jaxclip.models.parameters import to_flat

logger = logging.getLogger(__name__)
FORMAT = "jaxclip classifier 2"
FOLDER = "classifiers"  # in the cache folder
BLOCK = 256  # texts at a time


def weights_checksum(model: Any) -> str:
    """`fingerprint` of a whole `models.clip.Clip`, by official names, and of its activation.

    It is the same in every version of jaxclip. Two models may share it: the number of heads is in
    the config only.
    """
    return fingerprint(to_flat(hardware.plain(model)), model.config.activation)


def describe_numerics(model: Any) -> dict[str, str]:
    """The numerics of a `models.clip.Clip`: dtype, precision, jax, backend and device.

    Most of them change the last bits only, which may change an answer that is near a tie.
    """
    tower = model.visual if hasattr(model, "visual") else model.text
    numerics = {
        field.name: str(getattr(tower.numerics, field.name))
        for field in dataclasses.fields(tower.numerics)
    }
    return numerics | {
        "model": type(model).__name__,  # of `models`, or as `hardware` arranged it
        "dtype": np.dtype(tower.numerics.dtype).name,
        "default precision": str(jax.config.values["jax_default_matmul_precision"]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def classifier_key(model: Any, tokens: np.ndarray, templates: Sequence[str]) -> str:
    """The key of a classifier in the cache: see the module's docstring."""
    parts = {
        "format": FORMAT,
        # the image tower does not matter: one with the same text tower shares the classifier
        "weights": fingerprint(to_flat(model.text), model.config.to_json()),
        "numerics": describe_numerics(model),
        "tokens": fingerprint({"tokens": tokens}, ""),
        "templates": list(templates),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached_classifier(
    model: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    cache: Path | None,
    *,
    truncate: bool = False,
) -> np.ndarray:
    """One unit vector a class [c, e] float32, from the cache or computed and kept there.

    Args:
      model: a `Clip`.
      classes: names.
      templates: each with one slot {}.
      cache: the cache folder; None keeps nothing, one that cannot be written to gives a warning.
      truncate: cut prompts that are too long for the model.

    Raises:
      ValueError: a prompt without its slot, or too long for the model without `truncate`.
    """
    tokens = model.tokenize(fill_templates(classes, templates), truncate=truncate)

    def compute() -> np.ndarray:
        features = _encode(model, tokens)
        return average_prompts(require_finite(features, "the prompts"), len(classes))

    name = classifier_key(model, tokens, templates)
    return _kept(name, (len(classes), model.config.embed_dim), cache, compute)


def cached_words(
    model: Any, words: Sequence[str], templates: Sequence[str], cache: Path | None
) -> np.ndarray:
    """`cached_classifier` of those words only that the model knows: unit vectors [w, e] float32.

    A word is left out where the features of one of its prompts are zero; long prompts are cut.
    """
    prompts = fill_templates(words, templates)
    tokens = model.tokenize(prompts, truncate=True)

    def compute() -> np.ndarray:
        features = _encode(model, tokens).reshape(len(words), len(templates), -1)
        lengths = np.linalg.norm(features, axis=-1)
        known = (np.isfinite(lengths) & (lengths > 0)).all(axis=1)
        matrix = np.zeros((len(words), features.shape[-1]), np.float32)
        if known.any():
            rows = features[known].reshape(-1, features.shape[-1])
            matrix[known] = average_prompts(rows, int(known.sum()))
        return matrix

    name = classifier_key(model, tokens, ["words that are known", *templates])
    matrix = _kept(name, (len(words), model.config.embed_dim), cache, compute)
    return matrix[matrix.any(axis=1)]


def _encode(model: Any, tokens: np.ndarray) -> np.ndarray:
    features = map_batches(model.encode_text, tokens, min(BLOCK, len(tokens)))
    return np.asarray(features, np.float32)


def _kept(
    name: str, shape: tuple[int, int], cache: Path | None, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The matrix of that key from the cache, or computed and kept there."""
    path = None if cache is None else cache / FOLDER / f"{name}.safetensors"
    found = None if path is None else _read(path, name, shape)
    if found is not None:
        return found
    matrix = compute()
    if path is not None:
        _write(path, name, matrix)
    return matrix


def _write(path: Path, name: str, matrix: np.ndarray) -> None:
    metadata = {"format": FORMAT, "key": name, "content": fingerprint({"matrix": matrix}, name)}
    try:
        save_arrays(path, {"matrix": matrix}, metadata)
    except (OSError, ValueError) as error:  # ValueError: no folder can be made there
        logger.warning("the classifier is not kept: %s", error)


def _read(path: Path, name: str, shape: tuple[int, int]) -> np.ndarray | None:
    """The matrix of that key; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        arrays, metadata = load_arrays(path)
    except ValueError:
        arrays, metadata = {}, {}
    # the checksum covers the key, so a file under another key's name is found out
    if metadata.get("content") == fingerprint(arrays, name) and arrays["matrix"].shape == shape:
        return arrays["matrix"]
    logger.warning("%s is damaged; it is computed again", path)
    return None
