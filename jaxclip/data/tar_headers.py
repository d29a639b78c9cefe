"""The headers of a tar file, read in memory and time bounded by its size, whatever they claim.

POSIX (ustar, pax) and GNU archives. `tarfile` trusts the sizes in headers: it seeks by them and
reads names of any length.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # bytes; headers and contents begin at multiples of it
CHUNK = 2048 * BLOCK  # read at once in the search for a header
MOST_NAME = 2**20  # bytes of a header's extension
REGULAR, GNU_NAME, PAX = b"0\x007", b"L", b"x"
PASSED_OVER = b"KgX"  # long targets of links, settings for all entries, Solaris' settings
FOLDER, SPARSE = b"5", b"S"


class Member(NamedTuple):
    """A regular file: its name, the offset of its bytes, and their number."""

    name: str
    start: int
    size: int


class Bad(NamedTuple):
    """An unusable entry and its reason; `last` where nothing behind it was read."""

    name: str
    reason: str
    last: bool = False


def read_headers(file: BinaryIO) -> Iterator[Member | Bad]:
    """The entries of an uncompressed tar file, in its order; folders are passed over.

    Behind an entry whose size cannot be right the next header is searched for.
    """
    end = file.seek(0, os.SEEK_END)
    at, settings = 0, dict[str, str]()
    while at < end:
        file.seek(at)
        header = file.read(BLOCK)
        if not any(header):  # two such blocks are the end; other readers stop here as well
            behind = _next_header(file, at, end)
            if behind < end:
                reason = f"an end at byte {at}, and another archive behind it"
                yield Bad(f"byte {behind:,}", reason, last=True)
            return
        if len(header) < BLOCK or not _is_header(header):
            yield Bad(f"byte {at:,}", f"no header at byte {at}{_hint(header)}", last=True)
            return
        name, start = settings.get("path") or _name(header), at + BLOCK
        size, kind = _size(header, settings), header[156:157]
        if size is None or not 0 <= size <= end - start or kind == SPARSE or "sparse" in settings:
            yield Bad(name, _wrong_size(size, end - start))
            at, settings = _next_header(file, start, end), {}
            continue
        at = start + -(-size // BLOCK) * BLOCK
        if kind in PASSED_OVER:
            continue
        if kind in (GNU_NAME, PAX):
            try:
                settings = settings | _extension(file, kind, start, size)
            except ValueError as error:
                yield Bad(name, str(error))
            continue
        settings = {}
        if kind == FOLDER or name.endswith("/"):
            continue
        if kind in REGULAR:
            yield Member(name, start, size)
        else:
            yield Bad(name, "expected a file, got a link or a device")


def _is_header(header: bytes) -> bool:
    """Whether the checksum is right; some programs add bytes as signed numbers."""
    others = header[:148] + header[156:]
    total = sum(others) + 8 * ord(" ")
    return _number(header[148:156]) in (total, total - 256 * sum(byte > 127 for byte in others))


def _number(field: bytes) -> int | None:
    """An octal number, or one to the base 256; None if it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) * (field[0] == 0xFF))
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return None


def _size(header: bytes, settings: dict[str, str]) -> int | None:
    if "size" not in settings:
        return _number(header[124:136])
    digits = settings["size"]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def _wrong_size(size: int | None, there: int) -> str:
    if size is None:
        return "expected a size, got something else"
    if not 0 <= size <= there:
        return f"expected at most the {there:,} bytes that are left of the file, got {size:,}"
    return "expected a whole file, got a sparse one"


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _extension(file: BinaryIO, kind: bytes, start: int, size: int) -> dict[str, str]:
    """The settings of an extension for the next entry: `path`, `size`, `sparse`."""
    if size > MOST_NAME:
        raise ValueError(f"expected at most {MOST_NAME:,} bytes of a name, got {size:,}")
    file.seek(start)
    content = file.read(size)
    if kind == GNU_NAME:
        return {"path": content.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    found, at = dict[str, str](), 0
    while at < len(content):
        digits, _, _ = content[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, mark, value = content[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if not mark or at + length > len(content):
            raise ValueError(f"expected settings as LENGTH KEY=VALUE, got {content[at:][:20]!r}")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        if key.startswith(b"GNU.sparse"):
            found["sparse"] = "yes"
        at += length
    return found


def _next_header(file: BinaryIO, at: int, end: int) -> int:
    """The offset of the next header, at `at` or behind it; `end` if there is none."""
    while at < end:
        file.seek(at)
        chunk = file.read(CHUNK)
        for i in range(0, len(chunk), BLOCK):
            block = chunk[i : i + BLOCK]
            if len(block) == BLOCK and block[257:262] == b"ustar" and _is_header(block):
                return at + i
        at += CHUNK
    return end


def _hint(head: bytes) -> str:
    compressed = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    return "; it is compressed, unpack it" if head.startswith(compressed) else ""
