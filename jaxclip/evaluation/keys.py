"""The key of a kept result: the SHA-256 of everything that the result depends on, by name.

A result, half a run or kept features are used again only where all parts of their key are equal;
otherwise `differences` names the parts that are not.
"""

import dataclasses
import hashlib
import json
from importlib.metadata import version
from typing import Any

from jaxclip.data.fingerprint import Records, digests
from jaxclip.evaluation.classifier_cache import describe_numerics, weights_checksum
from jaxclip.evaluation.features import Progress, no_progress

Key = dict[str, str]
LIBRARIES = ("jaxclip", "jax", "pillow")  # the protocol, the arithmetic, the decoders


def digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold."""
    text = json.dumps(value, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_values(**values: Any) -> Key:
    """The digest of each value by its name, with spaces for underscores."""
    return {name.replace("_", " "): digest(value) for name, value in values.items()}


def of_model(model: Any, preprocess: Any, policy: str) -> Key:
    """Everything but the picture that a picture's features depend on."""
    return {
        "weights": weights_checksum(model),
        "config": digest(model.config.to_json()),
        "numerics": digest(describe_numerics(model)),
        "preprocessing": digest([policy, dataclasses.asdict(preprocess)]),
        "versions": digest([version(name) for name in LIBRARIES]),
    }


def of_source(source: Records, words: str, progress: Progress = no_progress) -> Key:
    """`pictures`, and `words` ("labels" or "captions"), of all records of a source."""
    pictures, texts = hashlib.sha256(), hashlib.sha256()
    for record in progress(digests(source), "hashing", len(source)):
        pictures.update(record.picture)
        texts.update(record.words)
    return {"pictures": pictures.hexdigest(), words: texts.hexdigest()}


def differences(kept: Any, wanted: Key) -> str:
    """The names of the parts in which a kept key differs; empty if it is the same."""
    if not isinstance(kept, dict):
        return "the form of its key"
    names = [name for name in wanted if kept.get(name) != wanted[name]]
    return ", ".join([*names, *(name for name in kept if name not in wanted)])
