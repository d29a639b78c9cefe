"""Checkpoint files made by hand, without torch: good ones, and ones made to do harm.

Three layers: pickles put together opcode by opcode, zips whose every header field can lie, and the
three containers of PyTorch made of both. `sample` is what the good ones hold; the golden files,
which torch itself wrote, hold the same.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

KINDS = ("script", "zip", "legacy")
STORAGES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def sample() -> dict[str, np.ndarray]:
    """Small arrays of each number format under names as the official files have them."""
    count = np.arange(24)
    half = (count / 7 - 1).astype(np.float16)
    half[:4] = [np.nan, -np.inf, -0.0, 6e-8]  # values that arithmetic would not keep
    return {
        "input_resolution": np.array(224),
        "context_length": np.array(77),
        "logit_scale": np.array(4.6052, np.float32),
        "positional_embedding": (count[:6] / 3).reshape(2, 3),
        "visual.conv1.weight": half.reshape(2, 3, 2, 2),
        "visual.layer1.0.downsample.-1.weight": (count[:3] / 9).astype(np.float32),
        "visual.layer1.0.downsample.-1.num_batches_tracked": np.array(3),
        "visual.layer1.0.mask": np.array([True, False, True]),
        "token_embedding.weight": (count[:8] / 5 - 1).astype(ml_dtypes.bfloat16).reshape(4, 2),
        "ids": count[:5].astype(np.int32) - 2,
        "bytes": np.arange(250, 256, dtype=np.uint8),
        "empty": np.zeros((0, 3), np.float32),
    }


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Names, number formats, shapes and every bit."""
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes())
        for k in a
    )


# Pickles, opcode by opcode ------------------------------------------------------------------------

PROTOCOL = b"\x80\x02"
STOP = b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def sequence(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def listing(*parts: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(parts) + b"e"


ORDERED_DICT = named("collections", "OrderedDict") + b")R"


def mapping(items: Mapping[str, bytes], start: bytes = b"}") -> bytes:
    """A dict; `start` makes it something else that takes items."""
    return start + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(kind: str, key: str, size: int, *, legacy: bool = False) -> bytes:
    """A reference to a storage of so many numbers."""
    parts = [text("storage"), named("torch", kind), text(key), text("cuda:0"), integer(size)]
    return sequence(*parts, *([b"N"] if legacy else [])) + b"Q"


def view(held: bytes, offset: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """A tensor over a storage, as the pickle describes it; all values may lie."""
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + sequence(
            held,
            integer(offset),
            sequence(*map(integer, shape)),
            sequence(*map(integer, strides)),
            b"\x89",
            ORDERED_DICT,
        )
        + b"R"
    )


def whole(array: np.ndarray, key: str, *, legacy: bool = False) -> bytes:
    """A tensor over the whole of storage `key`."""
    strides = [stride // array.itemsize for stride in array.strides]
    held = storage(STORAGES[array.dtype.name], key, array.size, legacy=legacy)
    return view(held, 0, array.shape, strides)


def wholes(arrays: Mapping[str, np.ndarray], *, legacy: bool = False) -> dict[str, bytes]:
    """Every array as the tensor over the storage of its place."""
    return {k: whole(a, str(i), legacy=legacy) for i, (k, a) in enumerate(arrays.items())}


def state_dict(arrays: Mapping[str, np.ndarray], *, legacy: bool = False) -> bytes:
    return PROTOCOL + mapping(wholes(arrays, legacy=legacy), ORDERED_DICT) + STOP


def module_tree(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The objects of a TorchScript archive whose attribute paths are the names."""
    tree: dict = {}
    for name, tensor in wholes(arrays).items():
        *folders, leaf = name.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = tensor
    return PROTOCOL + _module(tree, [0]) + STOP


def _module(node: dict, made: list[int]) -> bytes:
    made[0] += 1
    kind = "__torch__.multimodal.model.multimodal_transformer", "Multimodal"
    if made[0] > 1:
        kind = f"__torch__.torch.nn.modules.module.___torch_mangle_{made[0]}", "Module"
    items = {"training": b"\x89", "_is_full_backward_hook": b"N"}
    for name, value in node.items():
        items[name] = value if isinstance(value, bytes) else _module(value, made)
    return named(*kind) + b")\x81" + mapping(items) + b"b"


# Zips, in which each field can lie ----------------------------------------------------------------


@dataclass
class Member:
    """One record. Fields that are None are written as they truly are."""

    name: str
    data: bytes | memoryview
    packed: bool = False  # compressed
    flags: int = 0x0808  # names in UTF-8, sizes in a descriptor behind the bytes
    local_name: str | None = None
    local_size: int = 0
    crc: int | None = None
    size: int | None = None
    header: int | None = None  # where the directory says that the record starts
    gap: bytes = b""  # behind the record
    wide: bool = False  # sizes and offset of the directory in 64 bits
    at: int = field(default=0, init=False)


def write_zip(
    file: BinaryIO,
    members: Iterable[Member],
    *,
    comment: bytes = b"",
    wide_count: int | None = None,
) -> None:
    """A zip as PyTorch writes it: padded in the local headers, with a 64-bit end record."""
    directory, count = io.BytesIO(), 0
    for member in members:
        _write_record(file, member, directory)
        count += 1
    start, size = file.tell(), directory.tell()
    file.write(directory.getvalue())
    here = count if wide_count is None else wide_count
    file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 798, 45, 0, 0, here, here, size, start))
    file.write(struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1))
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, start, len(comment))
    file.write(end + comment)


def _write_record(file: BinaryIO, member: Member, directory: BinaryIO) -> None:
    member.at = file.tell()
    name = member.name.encode()
    local = name if member.local_name is None else member.local_name.encode()
    padding = -(member.at + 34 + len(local)) % 64
    method = 8 if member.packed else 0
    said = member.local_size
    file.write(struct.pack("<4s5H3I", b"PK\3\4", 0, member.flags, method, 0, 0, 0, said, said))
    file.write(struct.pack("<HH", len(local), padding + 4) + local)
    file.write(struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
    data = _deflated(member.data) if member.packed else member.data
    crc = zlib.crc32(member.data) if member.crc is None else member.crc
    size = len(member.data) if member.size is None else member.size
    packed = len(data) if member.size is None else member.size
    file.write(data)
    if member.flags & 8:
        layout = "<4sIQQ" if member.wide else "<4sIII"
        file.write(struct.pack(layout, b"PK\7\10", crc, packed, size))
    file.write(member.gap)
    header = member.at if member.header is None else member.header
    fields, extra = (packed, size, header), b""
    if member.wide:
        extra = struct.pack("<HHQQQ", 1, 24, size, packed, header)
        fields = (0xFFFFFFFF,) * 3
    directory.write(struct.pack("<4s6H", b"PK\1\2", 0, 0, member.flags, method, 0, 0))
    directory.write(struct.pack("<III5H", crc, *fields[:2], len(name), len(extra), 0, 0, 0))
    directory.write(struct.pack("<II", 0, fields[2]) + name + extra)


def _deflated(data: bytes | memoryview) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()


def zip_bytes(members: Iterable[Member], **options: object) -> bytes:
    file = io.BytesIO()
    write_zip(file, members, **options)  # type: ignore[arg-type]
    return file.getvalue()


# The containers of PyTorch ------------------------------------------------------------------------


def raw(array: np.ndarray) -> memoryview:
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def save_members(pickle: bytes, storages: Sequence[bytes | memoryview]) -> list[Member]:
    """The records of torch.save: pickle and numbers."""
    numbers = [Member(f"tiny.v1/data/{i}", data) for i, data in enumerate(storages)]
    order = Member("tiny.v1/byteorder", b"little")
    return [Member("tiny.v1/data.pkl", pickle), order, *numbers, Member("tiny.v1/version", b"3\n")]


def script_members(
    pickle: bytes, storages: Iterable[bytes | memoryview], top: str = "ViT-B-32"
) -> Iterable[Member]:
    """The records of a TorchScript archive as the official ones are: numbers first, code packed."""
    for i, data in enumerate(storages):
        yield Member(f"{top}/data/{i}", data)
    yield Member(f"{top}/data.pkl", pickle)
    code = b"class Multimodal(Module):\n  __parameters__ = []\n"
    yield Member(f"{top}/code/__torch__/multimodal/model/multimodal_transformer.py", code, True)
    yield Member(f"{top}/constants/0", bytes(4))
    yield Member(f"{top}/constants.pkl", PROTOCOL + b")" + STOP)
    yield Member(f"{top}/version", b"2\n")


def legacy_file(
    pickle: bytes,
    numbers: Mapping[str, tuple[int, bytes | memoryview]],
    *,
    listed: Sequence[str] | None = None,
    version: bytes = b"M\xe9\x03",
    little_endian: bytes = b"\x88",
) -> bytes:
    """Magic, version, system, object, storage keys; then a count and the bytes of each storage."""
    magic = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
    sizes = mapping({"short": b"K\x02", "int": b"K\x04", "long": b"K\x04"})
    said = {"protocol_version": version, "little_endian": little_endian, "type_sizes": sizes}
    keys = listing(*map(text, numbers if listed is None else listed))
    head = [PROTOCOL + part + STOP for part in (magic, version, mapping(said))]
    tail = [struct.pack("<q", size) + bytes(data) for size, data in numbers.values()]
    return b"".join([*head, pickle, PROTOCOL + keys + STOP, *tail])


def legacy_numbers(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, memoryview]]:
    return {str(i): (array.size, raw(array)) for i, array in enumerate(arrays.values())}


def script(arrays: Mapping[str, np.ndarray]) -> bytes:
    return zip_bytes(script_members(module_tree(arrays), [raw(a) for a in arrays.values()]))


def saved(arrays: Mapping[str, np.ndarray]) -> bytes:
    return zip_bytes(save_members(state_dict(arrays), [raw(a) for a in arrays.values()]))


def legacy(arrays: Mapping[str, np.ndarray]) -> bytes:
    return legacy_file(state_dict(arrays, legacy=True), legacy_numbers(arrays))


MAKERS = {"script": script, "zip": saved, "legacy": legacy}


def write_torchscript_like(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A file in the layout of the official archives: give it the official names and formats."""
    with open(path, "wb") as file:
        numbers = (raw(array) for array in arrays.values())
        write_zip(file, script_members(module_tree(arrays), numbers, path.stem))
