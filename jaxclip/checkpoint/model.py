"""A model's one file: parameters, their config and notes on their origin."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxclip.checkpoint.checks import Config, check_model
from jaxclip.checkpoint.files import load_arrays, save_arrays
from jaxclip.checkpoint.names import Flat
from jaxclip.checkpoint.rows import fill_rows
from jaxclip.config import read_config
from jaxclip.files import open_regular

FORMAT = "jaxclip-1"


def save(
    path: Path, flat: Mapping[str, np.ndarray], config: Config, notes: Mapping[str, Any]
) -> None:
    """Write parameters (one entry a layer), their config and their origin as one file."""
    text = json.dumps(notes, default=dict)  # any kind of mapping, at any depth
    metadata = {"format": FORMAT, "config": config.to_json(), "notes": text}
    save_arrays(path, flat, metadata)


def read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """(`ClipConfig` or `TowerConfig`, notes) from the metadata of a file that `save` wrote."""
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; use a checkpoint "
            "that this version of jaxclip wrote"
        )
    try:
        config = read_config(metadata.get("config", ""))
        notes = json.loads(metadata.get("notes", "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(notes, dict):
        raise ValueError(
            f"{path}: expected notes that are a JSON object, got another value; get it again"
        )
    return config, notes


def load_stored(path: Path) -> tuple[Flat, Any, dict[str, Any]]:
    """(flat parameters in their own number formats, config, notes) of a file that `save` wrote."""
    arrays, metadata = load_arrays(path)
    config, notes = read_metadata(path, metadata)
    try:
        arrays = fill_rows(arrays, config)
        check_model(config, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return arrays, config, notes


def load_notes(path: Path) -> dict[str, Any]:
    """The notes of a file that `save` wrote, without its arrays; ValueError if there are none."""
    open_regular(path).close()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        notes = json.loads(metadata.get("notes", "")) if metadata.get("format") == FORMAT else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected notes that jaxclip wrote, got none that can be read ({error})"
        ) from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: expected the notes that this version writes, got none")
    return notes


def load(path: Path) -> tuple[Flat, Any, dict[str, Any]]:
    """(flat parameters in float32, config, notes) of a file that `save` wrote."""
    arrays, config, notes = load_stored(path)
    return {name: array.astype(np.float32) for name, array in arrays.items()}, config, notes
