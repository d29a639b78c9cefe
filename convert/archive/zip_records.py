"""The records of a zip file as PyTorch writes it: the position of each, and no other bytes.

The two directories of a zip may disagree, records may overlap, and bytes may lie between them, so
that two programs read two things from one file. `zipfile` trusts the directory at the end.
Here every byte of the file is accounted for once: records from byte 0 without a gap, then the
directory, then the end. Nothing is decompressed or extracted.
"""

import re
import struct
from collections import Counter
from typing import NamedTuple

from .inert import refuse, short_repr

MOST_RECORDS = 100_000  # the largest released model has 3,051
_LOCAL = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # APPNOTE 4.3.12
_END64 = struct.Struct("<4sQ2H2I4Q")  # APPNOTE 4.3.14
_LOCATOR = struct.Struct("<4sIQI")  # APPNOTE 4.3.15
_END = struct.Struct("<4s4H2IH")  # APPNOTE 4.3.16
_WIDE = 0xFFFFFFFF  # a 32-bit field whose value stands in 64 bits elsewhere
_ENCRYPTED, _DESCRIPTOR = 1, 8  # bits of the flags
# None after an empty record; with and without signature; 32 and 64 bits.
_DESCRIPTOR_SIZES = (0, 12, 16, 20, 24)


class Record(NamedTuple):
    start: int  # of the bytes as stored
    size: int  # as stored
    crc: int  # of the bytes before compression
    is_stored: bool  # not compressed


class _Entry(NamedTuple):
    name: str
    header: int  # offset of the local header
    flags: int
    method: int
    crc: int
    packed: int  # size as stored
    size: int  # size before compression


def _unpack(layout: struct.Struct, data: memoryview, at: int, signature: bytes) -> tuple:
    """The fields after the signature."""
    if at < 0 or at + layout.size > len(data) or bytes(data[at : at + 4]) != signature:
        refuse(f"expected a {signature[2:].hex()} header of a zip at byte {at}, got none")
    return layout.unpack_from(data, at)[1:]


def _directory(data: memoryview) -> tuple[int, int, int]:
    """(number of records, where the central directory starts, where it ends)."""
    end = len(data) - _END.size
    if end < 0 or bytes(data[end : end + 4]) != b"PK\5\6":
        raise ValueError(
            "the zip does not end with its end record: it was cut off, or something was appended; "
            "compare its size with the source's and get it again"
        )
    disk, first, here, count, size, start, comment = _unpack(_END, data, end, b"PK\5\6")
    if disk or first or here != count or comment:
        refuse("the zip has several parts or a comment, which PyTorch does not write")
    locator = end - _LOCATOR.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\6\7":
        _, at, _ = _unpack(_LOCATOR, data, locator, b"PK\6\7")
        end = locator - _END64.size
        wide = _unpack(_END64, data, end, b"PK\6\6")
        rest, _, _, disk, first, here, *both = wide
        if at != end or rest != _END64.size - 12 or disk or first or here != both[0]:
            refuse("the 64-bit end record of the zip is not the one that PyTorch writes")
        narrow = ((count, 0xFFFF), (size, _WIDE), (start, _WIDE))
        for (field, full), value in zip(narrow, both, strict=True):
            if field not in (value, full):
                refuse("the two end records of the zip disagree")
        count, size, start = both
    if start + size != end or not 0 < count <= MOST_RECORDS:
        refuse(f"the directory of the zip ({count} records) does not reach to its end record")
    return count, start, end


def _widen(extra: memoryview, values: list[int]) -> list[int]:
    """Sizes and offset with those of 64 bits from the extra field (APPNOTE 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + size]
        if kind == 1:
            wide = [i for i, value in enumerate(values) if value == _WIDE]
            if len(field) < 8 * len(wide):
                refuse("a 64-bit size is missing in the zip")
            for i, index in enumerate(wide):
                values[index] = struct.unpack_from("<Q", field, 8 * i)[0]
            return values
        at += 4 + size
    return values


def _entry(data: memoryview, at: int, end: int) -> tuple[_Entry, int]:
    """One entry of the central directory and where the next one starts."""
    fields = _unpack(_CENTRAL, data[:end], at, b"PK\1\2")
    _, _, flags, method, _, _, crc, packed, size, name, extra, comment, disk, _, _, header = fields
    start = at + _CENTRAL.size
    after = start + name + extra + comment
    if after > end or disk:
        refuse("an entry of the zip's directory reaches past its end")
    try:
        text = str(data[start : start + name], "utf-8")
    except UnicodeDecodeError:
        refuse("the name of a record is not UTF-8")
    field = data[start + name : start + name + extra]
    size, packed, header = _widen(field, [size, packed, header])
    if flags & _ENCRYPTED or (method == 0 and packed != size):
        refuse(f"record {short_repr(text)} is encrypted, or stored with two sizes")
    return _Entry(text, header, flags, method, crc, packed, size), after


def _locate(data: memoryview, entry: _Entry) -> int:
    """The first byte of a record: after the *local* name and extra field."""
    fields = _unpack(_LOCAL, data, entry.header, b"PK\3\4")
    _, _, method, _, _, crc, packed, size, name, extra = fields
    start = entry.header + _LOCAL.size
    if bytes(data[start : start + name]) != entry.name.encode() or method != entry.method:
        refuse(f"record {short_repr(entry.name)} is called or packed differently by its own header")
    # Zero where the descriptor after the bytes says it.
    pairs = ((crc, entry.crc), (packed, entry.packed), (size, entry.size))
    if any(field not in (0, _WIDE, value) for field, value in pairs):
        refuse(f"record {short_repr(entry.name)} has two sizes or two checksums")
    return start + name + extra


def _check_names(names: list[str]) -> None:
    """ValueError for a name that leads out of its folder, or is there twice."""
    for name in names:
        parts = name.split("/")
        if re.search(r"[\x00-\x1f\\]|^[A-Za-z]:/", name) or not {"", ".", ".."}.isdisjoint(parts):
            refuse(f"a record is called {short_repr(name)}, which leads out of its folder")
    double, times = Counter(names).most_common(1)[0]
    if times > 1:
        refuse(f"record {short_repr(double)} is there twice")


def _top_folder(names: list[str]) -> str:
    """The one top folder of all names."""
    tops = {name.split("/")[0] for name in names}
    if len(tops) != 1 or names[0] in tops:
        raise ValueError(
            "expected a zip with one folder that holds data.pkl, as PyTorch writes it, got one "
            f"with {short_repr(names[0])} at its top; if this is an .npz read it with numpy.load, "
            "if a checkpoint lies inside unpack it first"
        )
    return tops.pop()


def records(data: memoryview, *, has_folder: bool = True) -> dict[str, Record]:
    """Every record of the zip under its name without the top folder, such as "data/0".

    has_folder: whether there must be such a folder, as PyTorch makes it; an .npz has none.
    ValueError unless records, directory and end follow one another from the first byte to the last.
    """
    count, at, end = _directory(data)
    directory, entries = at, []
    for _ in range(count):
        entry, at = _entry(data, at, end)
        entries.append(entry)
    if at != end:
        refuse("the directory of the zip is longer than its entries")
    names = [entry.name for entry in entries]
    _check_names(names)
    top = f"{_top_folder(names)}/" if has_folder else ""
    found, cursor = {}, 0
    gaps: tuple[int, ...] = (0,)
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header - cursor not in gaps:
            refuse(f"record {short_repr(entry.name)} overlaps the one before it, or leaves a gap")
        start = _locate(data, entry)
        cursor = start + entry.packed
        if cursor > directory:
            refuse(f"record {short_repr(entry.name)} reaches past the end of the records")
        gaps = _DESCRIPTOR_SIZES if entry.flags & _DESCRIPTOR else (0,)
        name = entry.name.removeprefix(top)
        found[name] = Record(start, entry.packed, entry.crc, entry.method == 0)
    if directory - cursor not in gaps:
        refuse("there are bytes between the records and the directory of the zip")
    return found
