"""Files and text as people have them: opened safely, decoded by one rule, split into lines by one.

Text is UTF-8, with or without a byte-order mark, or UTF-16 with one. A line ends in a line feed, a
carriage return or both; other Unicode separators (U+2028, NEL, VT, FF, FS) are characters.
"""

import codecs
import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

KINDS = {  # of what is not a regular file
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LINE_END = re.compile(r"\r\n|\n|\r")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading; a named pipe or a device is refused without waiting for it.

    Raises:
      ValueError: there is no such file, it cannot be read, or it is not a regular file.
    """
    name = os.fspath(path)
    try:
        # O_NONBLOCK: opening a named pipe waits for a writer otherwise
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"{name!r}: expected a file, got none of that name") from None
    except (OSError, ValueError) as error:  # the latter: a name with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name!r}: expected a readable file, got an error ({reason})") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{name!r}: expected a regular file, got {kind}")
    return os.fdopen(handle, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The content of a regular file; ValueError as `open_regular`, or if larger than `limit`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ValueError(f"{os.fspath(path)!r}: expected at most {limit:,} bytes, got {size:,}")
        try:
            return file.read()
        except OSError as error:  # of a bad disk; it names no file
            reason = f"an error ({error.strerror})"
            raise ValueError(
                f"{os.fspath(path)!r}: expected readable bytes, got {reason}"
            ) from None


def require_writable(path: str | os.PathLike[str]) -> None:
    """ValueError unless a regular file can be made at `path`, or is there; nothing is written.

    A folder above it that is missing is one that can be made.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise ValueError(f"{name!r}: expected a file name, got one with a null byte")
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "something else")
            raise ValueError(f"{name!r}: expected a regular file or nothing, got {kind}")
    folder = Path(name).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{name!r}: expected a folder, got the file {str(folder)!r}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{name!r}: expected a folder to write to, got {str(folder)!r}, which is none"
        )


def decode_text(content: bytes, where: str) -> str:
    """Text from bytes, without its byte-order mark; ValueError names `where` and the bad byte.

    >>> decode_text(b"\\xef\\xbb\\xbfa cat", "a.txt")
    'a cat'
    """
    encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: expected UTF-8 text (or UTF-16 with a byte-order mark), got byte "
            f"0x{content[error.start]:02x} at position {error.start}; save it as UTF-8"
        ) from None


def read_text(path: str | os.PathLike[str], limit: int | None = None) -> str:
    """The text of a file; ValueError as `read_bytes` and `decode_text`, with the file's name."""
    return decode_text(read_bytes(path, limit), str(Path(path)))


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends; a last empty one is none.

    >>> split_lines("a\\u2028b\\r\\nc\\n")
    ['a\\u2028b', 'c']
    """
    lines = _LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def distinct_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file, stripped, in order; empty and repeated ones are left out.

    ValueError as `read_text`, and where none is left.
    """
    lines = dict.fromkeys(line.strip() for line in split_lines(read_text(path)))
    lines.pop("", None)
    if not lines:
        raise ValueError(f"{os.fspath(path)!r}: expected a text on each line, got no text")
    return list(lines)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError in one line for what is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("expected JSON, got values nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"expected JSON, got something else ({error})") from None
