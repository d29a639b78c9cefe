"""Parameters as flat named arrays, and the one safetensors file that holds them with their config.

Three forms of the same parameters:
  flat     {"visual.transformer.resblocks.0.ln_1.scale": [d], ...}: on disk, one entry a layer
  nested   the same as nested dicts: what `reference` reads
  stacked  flat, but "resblocks.ln_1.scale" [layers, d]: what the Flax modules hold, unless unrolled
Names are compared here, once: modules themselves would accept permuted layers without a word.
"""

import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16, which safetensors asks for)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxclip.config import ClipConfig

FORMAT = "jaxclip-1"
Flat: TypeAlias = dict[str, np.ndarray]
_LAYER = re.compile(r"^(.*\bresblocks)\.(\d+)\.(.*)$")
_STACK = re.compile(r"^(.*\bresblocks)\.(?!\d)(.*)$")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, leaf = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a.b": x}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def stack(flat: Mapping[str, np.ndarray]) -> Flat:
    """One entry a layer -> one entry a stack, in the order of the layers' numbers.

    ValueError when the layers of a stack are not numbered 0, 1, 2, ... without a gap.
    """
    stacked: Flat = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for path, value in flat.items():
        match = _LAYER.match(path)
        if match is None:
            stacked[path] = value
        else:
            layers.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = value
    for path, by_number in layers.items():
        if sorted(by_number) != list(range(len(by_number))):
            raise ValueError(
                f"{path}: layers {sorted(by_number)} came, expected 0 to {len(by_number) - 1}; "
                "the file is not a whole checkpoint"
            )
        shapes = {layer.shape for layer in by_number.values()}
        if len(shapes) > 1:
            raise ValueError(f"{path}: layers of one shape were expected, {sorted(shapes)} came")
        stacked[path] = np.stack([by_number[i] for i in range(len(by_number))])
    return stacked


def is_stacked(names: Iterable[str]) -> bool:
    """Whether any of the paths stands for all layers of a stack at once."""
    return any(_STACK.match(name) for name in names)


def unstack(stacked: Mapping[str, np.ndarray]) -> Flat:
    """One entry a stack -> one entry a layer: the inverse of `stack`."""
    flat: Flat = {}
    for path, value in stacked.items():
        match = _STACK.match(path)
        if match is None:
            flat[path] = value
        else:
            flat.update({f"{match[1]}.{i}.{match[2]}": layer for i, layer in enumerate(value)})
    return flat


def check(expected: Mapping[str, tuple[int, ...]], came: Mapping[str, np.ndarray]) -> None:
    """ValueError listing every path that is missing (-), not expected (+) or of a wrong shape."""
    faults = [f"- {path} {expected[path]}" for path in sorted(expected.keys() - came.keys())]
    faults += [f"+ {path} {came[path].shape}" for path in sorted(came.keys() - expected.keys())]
    for path in sorted(expected.keys() & came.keys()):
        if tuple(came[path].shape) != tuple(expected[path]):
            faults.append(f"{path}: shape {came[path].shape} came, {expected[path]} expected")
    if faults:
        raise ValueError("parameters do not fit the config: " + "; ".join(faults))


def release(array: np.ndarray) -> None:
    """Let go of the memory that holds the bytes of a mapped file, where the array is such a view.

    They are read from the file again if need be; until then they do not count beside a copy.
    """
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapped, mmap.mmap) or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = np.lib.array_utils.byte_bounds(array)[0] - np.frombuffer(mapped, np.uint8).ctypes.data
    first = start - start % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, start - first + array.nbytes)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all; OSError when the disk does not take it."""
    # not ascontiguousarray: it makes a vector of a scalar
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    with replacing(path) as temporary:
        try:
            save_file(ordered, temporary, metadata)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"cannot write {path}: {error}; nothing was changed") from None


def load_arrays(path: Path) -> tuple[Flat, dict[str, str]]:
    """All arrays of a safetensors file, copied, and its metadata; ValueError if it is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, dict(file.metadata() or {})
    # the last two: how the library reports a dtype that NumPy lacks (float8)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); expected a checkpoint that "
            "jaxclip wrote"
        ) from None


def save(
    path: Path, flat: Mapping[str, np.ndarray], config: ClipConfig, notes: Mapping[str, Any]
) -> None:
    """Write parameters (one entry a layer), their config and where they came from as one file."""
    said = json.dumps(notes, default=dict)  # any kind of mapping, at any depth
    metadata = {"format": FORMAT, "config": config.to_json(), "notes": said}
    save_arrays(path, flat, metadata)


def load_stored(path: Path) -> tuple[Flat, ClipConfig, dict[str, Any]]:
    """(flat parameters in their own number formats, config, notes) of a file that `save` wrote."""
    arrays, metadata = load_arrays(path)
    return arrays, *described(path, metadata)


def described(path: Path, metadata: Mapping[str, str]) -> tuple[ClipConfig, dict[str, Any]]:
    """(config, notes) as the metadata of a file that `save` wrote hold them."""
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {metadata.get('format')!r} came, {FORMAT!r} is what this version "
            "reads; use a checkpoint that this version of jaxclip wrote"
        )
    try:
        config = ClipConfig.from_json(metadata.get("config", ""))
        notes = json.loads(metadata.get("notes", "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: its notes are no JSON object; get the file again")
    return config, notes


def load_notes(path: Path) -> dict[str, Any]:
    """The notes of a file that `save` wrote, without its arrays; ValueError if there are none."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        notes = json.loads(metadata.get("notes", "")) if metadata.get("format") == FORMAT else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no notes that can be read ({error})") from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path} has no notes; a file that this version wrote was expected")
    return notes


def load(path: Path) -> tuple[Flat, ClipConfig, dict[str, Any]]:
    """(flat parameters in float32, config, notes) of a file that `save` wrote."""
    arrays, config, notes = load_stored(path)
    return {name: array.astype(np.float32) for name, array in arrays.items()}, config, notes
