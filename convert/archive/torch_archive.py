"""PyTorch's checkpoint files, read without PyTorch and without running what they hold.

Three containers: the TorchScript archive in which the official models were released (a zip whose
data.pkl is a tree of objects), the zip that torch.save writes (a dict), and what torch.save wrote
before version 1.6 (five pickles and the numbers behind them). All three are hostile until read:
their pickles go through `pickles`, their zip through `zip_records`, and each tensor is compared
with the bytes that the file has.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxclip.checkpoint import Flat, replacing
from jaxclip.images.kinds import text_kind

from . import pickles
from .inert import DTYPES, ORDERED_DICT, REBUILD_TENSOR, Object, Storage, refuse, short_repr
from .mapped import Bytes, parse_mapped
from .state_dicts import LONGEST_NAME, views
from .zip_records import Record, records

_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_FRAME = b"\x95" + struct.pack("<Q", len(_MAGIC))
# The first pickle, whole, of each protocol that is read; from 4 on it lies in a frame.
LEGACY_MAGICS = tuple(
    bytes([0x80, protocol]) + (_FRAME if protocol > 3 else b"") + _MAGIC
    for protocol in pickles.PROTOCOLS
)
OLDEST_MAGIC = b"L%dL\n." % int.from_bytes(_MAGIC[2:12], "little")  # in protocol 0 and 1
LEGACY_VERSION = 1001
ALIGNMENT = 64  # bytes; as PyTorch aligns its records
LARGE = 1 << 30  # bytes from which on sizes are written in 64 bits, well before they must be

# The containers ----------------------------------------------------------------------------------


def _require_stored(members: dict[str, Record], name: str) -> Record:
    if name not in members:
        raise ValueError(
            f"expected {short_repr(name)} in the zip, as torch.save writes it, got none"
        )
    if not members[name].is_stored:
        raise ValueError(
            f"expected {short_repr(name)} stored in the zip, as PyTorch does, got it compressed; "
            "was the file unpacked and packed again? write it with torch.save"
        )
    return members[name]


def _read_zip(data: memoryview) -> Flat:
    """A TorchScript archive, or what torch.save writes."""
    members = records(data)
    if "byteorder" in members:
        record = _require_stored(members, "byteorder")
        order = bytes(data[record.start : record.start + min(record.size, 16)])
        if order != b"little":
            raise ValueError(
                f"expected byte order b'little', got {short_repr(order)}; write it again"
            )
    record = _require_stored(members, "data.pkl")
    if record.size > pickles.LARGEST:
        refuse(f"expected at most {pickles.LARGEST} bytes of data.pkl, got {record.size}")
    pickle = data[record.start : record.start + record.size]
    if zlib.crc32(pickle) != record.crc:
        refuse("the checksum of data.pkl is wrong")
    # constants.pkl and code/ make an archive; neither belongs to the state dict, neither is read.
    is_archive = "constants.pkl" in members
    root, _, end = pickles.load(pickle, is_archive=is_archive)
    if end != record.size:
        refuse(f"data.pkl goes on for {record.size - end} bytes after its pickle")
    if is_archive and type(root) is not Object:
        refuse(f"expected the model of a TorchScript archive, got {short_repr(root)}")

    def start(storage: Storage) -> int:
        numbers = _require_stored(members, f"data/{storage.key}")
        if numbers.size != storage.size * storage.dtype.itemsize:
            refuse(f"data/{storage.key} has {numbers.size} bytes for {storage.size} numbers")
        return numbers.start

    return views(root, data, start)


def _read_legacy(data: memoryview, magic: bytes) -> Flat:
    """What torch.save wrote before version 1.6: magic, version, system, object, storage keys."""
    version = pickles.load(data, len(magic))
    system = pickles.load(data, version.end)
    if version.value != LEGACY_VERSION or type(system.value) is not dict:
        refuse(f"expected version {LEGACY_VERSION}, got {short_repr(version.value)}")
    if system.value.get("little_endian") is not True:
        raise ValueError("expected a little-endian file, got another; write it again")
    root = pickles.load(data, system.end)
    listed = pickles.load(data, root.end)
    keys = listed.value
    if type(keys) is not list or not all(type(key) is str for key in keys):
        refuse("expected a list of storages after the pickle, got another value")
    if sorted(keys) != sorted(root.storages):
        refuse("the storages that the file lists are not those that its pickle uses")
    starts, at = {}, listed.end
    for key in keys:
        storage = root.storages[key]
        count = struct.unpack("<q", data[at : at + 8])[0] if at + 8 <= len(data) else None
        after = at + 8 + storage.size * storage.dtype.itemsize
        if count != storage.size or after > len(data):
            refuse(f"storage {key} is cut off, or has another size than its pickle says")
        starts[key], at = at + 8, after
    if at != len(data):
        refuse(f"the file goes on for {len(data) - at} bytes after its last storage")
    return views(root.value, data, lambda storage: starts[storage.key])


def other_kind(head: bytes) -> str | None:
    """The kind of a file that is no checkpoint, by its first bytes, and what to do; or None."""
    if not head:
        return "an empty file; get it again"
    if (kind := text_kind(head)) is not None:
        return f"{kind}; get the file again" + (" (`git lfs pull`)" if "LFS" in kind else "")
    return "a gzip file; unpack it first" if head.startswith(b"\x1f\x8b") else None


def _other_kind_of_torch(head: bytes, size: int) -> str:
    if head.startswith(b"PK"):
        return "an empty or split zip; get the file again"
    if head[257:262] == b"ustar":
        return "a tar file, as very old versions of PyTorch wrote; save it with a newer one"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "a safetensors file; read it as such"
    if head.startswith(OLDEST_MAGIC):
        return "one whose pickle has protocol 0 or 1; save it anew"
    if any(magic.startswith(head[:15]) for magic in LEGACY_MAGICS):
        return "a file of a few bytes; get it again"
    if head.startswith(b"\x80"):
        return "a pickle that torch.save did not write; save model.state_dict() with torch"
    return f"one that starts with {short_repr(head[:8])}; get it again from its source"


def _refuse_other_kind(data: memoryview) -> NoReturn:
    """ValueError that names the kind of the file."""
    head = bytes(data[:512])
    got = other_kind(head) or _other_kind_of_torch(head, len(data))
    raise ValueError(f"expected a checkpoint of PyTorch, got {got}")


def parse(data: Bytes) -> Flat:
    """The result of `read` for bytes in memory; the arrays are views of them."""
    view = memoryview(data).toreadonly()
    # By the whole magic: safetensors and other pickles may start with 0x80 as well.
    if bytes(view[:4]) == b"PK\3\4":
        return _read_zip(view)
    for magic in LEGACY_MAGICS:
        if bytes(view[: len(magic)]) == magic:
            return _read_legacy(view, magic)
    _refuse_other_kind(view)


def read(path: Path) -> Flat:
    """Read a checkpoint of PyTorch: a TorchScript archive or a state dict, new or before 1.6.

    path: the file; of a training checkpoint only the state dict is read, and prefixes of training
    programs that all names carry are taken off.
    Returns {the file's own name: array}, in the file's order and number formats (bfloat16 as of
    ml_dtypes). The arrays are read-only views of the mapped file, so numbers are read when they
    are used; copy them (`numpy.array`) before the file is changed: reading from a file that was
    meanwhile cut off ends the process.
    ValueError, in one line, for every file that is not sound; nothing that it holds is executed.

    >>> import numpy as np, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "tiny.pt")
    ...     write(path, {"logit_scale": np.float32(2.5), "ln_final.weight": np.ones(3, np.float16)})
    ...     arrays = read(path)
    >>> {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    {'logit_scale': ('float32', ()), 'ln_final.weight': ('float16', (3,))}

    Source: torch/serialization.py, torch/csrc/jit/serialization (pickler.cpp, export_module.cpp).
    """
    return parse_mapped(Path(path), parse)


# Writing -----------------------------------------------------------------------------------------


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _pickle_tensor(key: str, array: np.ndarray) -> bytes:
    """torch._utils._rebuild_tensor_v2 called on all of storage `key`."""
    storage = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    reference = _tuple(
        _text("storage"), _global("torch", storage), _text(key), _text("cpu"), _integer(array.size)
    )
    strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    return (
        _global(*REBUILD_TENSOR)
        + _tuple(
            reference + b"Q",
            _integer(0),
            _tuple(*map(_integer, array.shape)),
            _tuple(*map(_integer, strides)),
            b"\x89",  # requires_grad=False
            _global(*ORDERED_DICT) + b")R",  # no hooks
        )
        + b"R"
    )


def _add(file: zipfile.ZipFile, name: str, data: memoryview | bytes) -> None:
    """A stored record whose bytes start at a multiple of 64, without a date."""
    size = len(data)
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = size
    is_large = size > LARGE
    assert file.fp is not None
    # 30 bytes of header, 4 before the padding, 20 for sizes of 64 bits
    start = file.fp.tell() + 34 + len(info.filename) + 20 * is_large
    info.extra = struct.pack("<2sH", b"FB", -start % ALIGNMENT) + b"Z" * (-start % ALIGNMENT)
    with file.open(info, "w", force_zip64=is_large) as record:
        record.write(data)


def _prepare(name: str, value: Any) -> np.ndarray:
    """The array in C order and little-endian; ValueError where PyTorch has no such type or name."""
    array = np.asarray(value, order="C")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype not in DTYPES.values():
        raise ValueError(f"{name}: expected a number format of PyTorch, got {array.dtype}")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"expected a printable text as name of a tensor, got {name!r}")
    return array


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a state dict that torch.load reads (an OrderedDict, in the order given).

    path: replaced whole or not at all.
    arrays: {name: array} of any shape; float16, bfloat16, float32, float64, integers or bool.
    The same arrays in the same order give the same bytes. ValueError, before anything is written,
    for a name or a number format that the file cannot hold.
    Source: torch/serialization.py: _save; example at `read`.
    """
    ready = [_prepare(name, array) for name, array in arrays.items()]
    items = [
        _text(name) + _pickle_tensor(str(i), array)
        for i, (name, array) in enumerate(zip(arrays, ready, strict=True))
    ]
    tree = _global(*ORDERED_DICT) + b")R(" + b"".join(items) + b"u."
    with replacing(Path(path)) as temporary, zipfile.ZipFile(temporary, "w") as file:
        _add(file, "data.pkl", b"\x80\x02" + tree)
        _add(file, "byteorder", b"little")
        for i, array in enumerate(ready):
            _add(file, f"data/{i}", array.reshape(-1).view(np.uint8).data)
        _add(file, "version", b"3\n")
