"""Parameters as flat named arrays, and the one safetensors file that holds them with their config.

Three forms of the same parameters:
  flat     {"visual.transformer.resblocks.0.ln_1.scale": [d], ...}: on disk, one entry a layer
  nested   the same as nested dicts: what `reference` reads
  stacked  flat, but "resblocks.ln_1.scale" [layers, d]: what the Flax modules hold, unless unrolled
Names are compared here, once: modules themselves would accept permuted layers without an error.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes  # registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxclip.config import ClipConfig, ResNetConfig, TowerConfig, read_config, short_repr
from jaxclip.files import open_regular, require_writable
from jaxclip.shapes import parameters

FORMAT = "jaxclip-1"
TABLE, ROWS = "text.token_embedding.embedding", "text.token_embedding.rows"
MOST_ZEROS = 250  # rows of a token table for each that a file holds: memory follows the file
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
FLOATS = tuple(DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))
MOST_FAULTS = 8  # in one message
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all bits set: infinite, or no number
_BLOCK = 1 << 16  # numbers a step: they stay in the processor's cache
_LARGEST = float(np.finfo(np.float32).max)
NOT_FINITE = "expected finite numbers, got some that are not finite"
Flat: TypeAlias = dict[str, np.ndarray]
Config: TypeAlias = ClipConfig | TowerConfig
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
                f"{path}: expected layers 0 to {len(by_number) - 1}, got {sorted(by_number)[:40]}; "
                "the file is not a whole checkpoint"
            )
        shapes = {layer.shape for layer in by_number.values()}
        if len(shapes) > 1:
            raise ValueError(f"{path}: expected layers of one shape, got {sorted(shapes)[:8]}")
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


def shorten(faults: list[str]) -> str:
    """The first faults and the number of the others, on one line."""
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return "; ".join(faults[:MOST_FAULTS]) + more


def check(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, np.ndarray]) -> None:
    """ValueError listing every path that is missing (-), not expected (+) or of a wrong shape."""
    faults = [f"- {path} {expected[path]}" for path in sorted(expected.keys() - got.keys())]
    for path in sorted(got.keys() - expected.keys()):
        faults.append(f"+ {path if path.isprintable() else short_repr(path)} {got[path].shape}")
    for path in sorted(expected.keys() & got.keys()):
        if tuple(got[path].shape) != tuple(expected[path]):
            faults.append(f"{path}: expected shape {expected[path]}, got {got[path].shape}")
    if faults:
        raise ValueError("parameters do not fit the config: " + shorten(faults))


def parameter_fault(
    name: str, array: np.ndarray, shape: tuple[int, ...], *, check_numbers: bool = True
) -> str | None:
    """The fault of a parameter that should have that shape and finite numbers, or None."""
    if array.shape != shape:
        return f"{name}: expected shape {shape}, got {array.shape}"
    if array.dtype not in FLOATS:
        return f"{name}: expected float16, bfloat16, float32 or float64, got {array.dtype}"
    if check_numbers and not is_finite(array):
        return f"{name}: {NOT_FINITE}"
    return None


def is_finite(array: np.ndarray) -> bool:
    """Whether every number is finite, in float32 as well."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)
    blocks = (flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK))
    exponent = _EXPONENTS.get(array.dtype.name)
    if exponent is not None:  # by the bits: eight times as fast as NumPy
        return all((block.view(np.uint16) & exponent).max() < exponent for block in blocks)
    return all(_is_small(block) or _fits_float32(block) for block in blocks)


def _is_small(block: np.ndarray) -> bool:
    """Whether the sum of squares is finite in float32: the quickest proof that its numbers are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.dot(block, block) <= _LARGEST)


def _fits_float32(block: np.ndarray) -> bool:
    return bool(np.abs(block).max() <= _LARGEST)  # False where one is no number


def check_model(
    config: Config, flat: Mapping[str, np.ndarray], *, check_numbers: bool = True
) -> None:
    """ValueError unless the arrays are the parameters of that model: names, shapes, numbers.

    Takes time and memory in proportion to the arrays, whatever the config claims.
    """
    v, t = config.vision, config.text
    layers = 0 if t is None or t.kind == "cbow" else t.layers
    if v is not None:
        layers += sum(v.layers) if isinstance(v, ResNetConfig) else v.layers
    if layers > len(flat):  # before their names are made
        raise ValueError(
            f"parameters do not fit the config: expected those of {layers} layers, got "
            f"{len(flat)} tensors; get the file again"
        )
    shapes = parameters(config)
    check(shapes, flat)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy releases the GIL
        found = pool.map(
            lambda path: parameter_fault(
                path, flat[path], shapes[path], check_numbers=check_numbers
            ),
            shapes,
        )
    if faults := [fault for fault in found if fault is not None]:
        raise ValueError(f"{shorten(faults)}; get the file again")


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


def keep_rows(flat: Mapping[str, np.ndarray], rows: np.ndarray) -> Flat:
    """The parameters with those `rows` of the token table alone; the others are read as zero.

    Args:
      flat: parameters of a model.
      rows: token ids, increasing, int [n].
    """
    kept = {TABLE: flat[TABLE][rows], ROWS: rows.astype(np.int32)}
    return {**flat, **kept}


def fill_rows(arrays: Flat, config: Config) -> Flat:
    """The inverse of `keep_rows`; arrays with a whole token table as they are.

    Raises:
      ValueError: the rows are no token ids of the config, or too few of them to be a model's.
    """
    if ROWS not in arrays:
        return arrays
    rows, kept = arrays[ROWS], arrays.get(TABLE)
    size = 0 if config.text is None else config.text.vocab_size
    if (
        kept is None
        or kept.ndim != 2
        or rows.dtype != np.int32
        or rows.shape != kept.shape[:1]
        or not rows.size
        or rows[0] < 0
        or rows[-1] >= size
        or (np.diff(rows) <= 0).any()
    ):
        raise ValueError(
            f"{ROWS}: expected increasing token ids below {size}, one a row of {TABLE}, got others"
        )
    if size > MOST_ZEROS * rows.size:
        raise ValueError(
            f"{ROWS}: expected at least {-(-size // MOST_ZEROS)} of {size} token ids, "
            f"got {rows.size}"
        )
    table = np.zeros((size, kept.shape[1]), kept.dtype)
    table[rows] = kept
    return {name: array for name, array in arrays.items() if name != ROWS} | {TABLE: table}


def save(
    path: Path, flat: Mapping[str, np.ndarray], config: Config, notes: Mapping[str, Any]
) -> None:
    """Write parameters (one entry a layer), their config and their origin as one file."""
    text = json.dumps(notes, default=dict)  # any kind of mapping, at any depth
    metadata = {"format": FORMAT, "config": config.to_json(), "notes": text}
    save_arrays(path, flat, metadata)


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
