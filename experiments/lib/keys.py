"""The key that a result is kept under: the SHA-256 of everything that it depends on, by name.

A result, half a run and kept features answer a command only where all parts of their key are equal;
otherwise `differences` names the parts that are not.
"""

import dataclasses
import hashlib
import json
from importlib.metadata import version
from typing import Any

from rich.progress import track

from jaxclip.cli.shared import stderr
from jaxclip.data.fingerprint import Records, digests
from jaxclip.evaluation.classifier_cache import numerics, weights_checksum

Key = dict[str, str]
LIBRARIES = ("jaxclip", "jax", "pillow")  # the protocol, the arithmetic, the decoders


def digest(value: Any) -> str:
    """SHA-256 of something that JSON can hold."""
    text = json.dumps(value, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_values(**values: Any) -> Key:
    """The digest of each value by its name, with spaces for underscores."""
    return {name.replace("_", " "): digest(value) for name, value in values.items()}


def of_model(model: Any, preprocess: Any, policy: str) -> Key:
    """What the features of a picture depend on, but for the picture."""
    return {
        "weights": weights_checksum(model),
        "config": digest(model.config.to_json()),
        "numerics": digest(numerics(model)),
        "preprocessing": digest([policy, dataclasses.asdict(preprocess)]),
        "versions": digest([version(name) for name in LIBRARIES]),
    }


def of_source(source: Records, words: str) -> Key:
    """`pictures`, and `words` ("labels" or "captions"): what a source yields, all of it read."""
    pictures, said = hashlib.sha256(), hashlib.sha256()
    for record in track(digests(source), "hashing", total=len(source), console=stderr):
        pictures.update(record.picture)
        said.update(record.words)
    return {"pictures": pictures.hexdigest(), words: said.hexdigest()}


def differences(kept: Any, asked: Key) -> str:
    """The parts in which a kept key is another one, in words; empty if it is the same."""
    if not isinstance(kept, dict):
        return "the form of its key"
    names = [name for name in asked if kept.get(name) != asked[name]]
    return ", ".join([*names, *(name for name in kept if name not in asked)])
