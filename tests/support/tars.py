"""Headers of tar members, also wrong ones."""

import tarfile


def header(name: str, size: int, kind: bytes = b"0", field: bytes | None = None) -> bytes:
    entry = tarfile.TarInfo(name)
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    if field is None:
        octal = 0 <= size < 8**11
        field = b"%011o\0" % size if octal else (size % 256**12).to_bytes(12, "big")
        field = field if octal else bytes([0xFF if size < 0 else 0x80]) + field[1:]
    block[124:136] = field
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
