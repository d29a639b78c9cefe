"""The safetensors file: written whole or not at all, the same bytes for the same arrays."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxclip.checkpoint.names import Flat
from jaxclip.files import open_regular, require_writable

DTYPES = {  # of the safetensors format, little-endian
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    ValueError where no file can be written there: `path` is a folder, a device, below a file.
    """
    require_writable(path)
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


def fingerprint(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """SHA-256 of named arrays and a text: names, shapes, dtypes and every bit."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(f"\0{name} {array.shape} {array.dtype}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # bfloat16 is no buffer by itself
    return digest.hexdigest()


def _header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The JSON header of a safetensors file, of a multiple of 8 bytes, for arrays in that order."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, array in arrays.items():
        if array.dtype not in names:
            raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {array.dtype}")
        offsets = [at, at + array.nbytes]
        shape = list(array.shape)
        entries[name] = {"dtype": names[array.dtype], "shape": shape, "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def save_file(arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; the same arrays and metadata give the same bytes.

    The library does not promise that: the metadata in its header are in random order.
    """
    # not ascontiguousarray: it makes a vector of a scalar
    ready = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    # the widest first: every array then starts at a multiple of its item's size
    ready = dict(sorted(ready.items(), key=lambda item: -item[1].dtype.itemsize))
    header = _header(ready, metadata)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in ready.values():
            file.write(array.reshape(-1).view(np.uint8).data)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """`save_file`, whole or not at all; OSError when the disk fails."""
    with replacing(path) as temporary:
        try:
            save_file(arrays, temporary, metadata)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot write {path}: {reason}; nothing was changed") from None


def load_arrays(path: Path) -> tuple[Flat, dict[str, str]]:
    """All arrays of a safetensors file, copied, and its metadata; ValueError if it is not one."""
    open_regular(path).close()  # the library would wait for a named pipe
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, dict(file.metadata() or {})
    # the last two: how the library reports a dtype that NumPy lacks (float8)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint that jaxclip wrote, got no readable safetensors file "
            f"({error})"
        ) from None
