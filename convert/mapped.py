"""A checkpoint file opened the one way that reads nothing before it is asked for: mapped."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Bytes = bytes | mmap.mmap
Parsed = TypeVar("Parsed")


def parsed(path: Path, parse: Callable[[Bytes], Parsed]) -> Parsed:
    """What `parse` makes of the bytes of the file, mapped into memory.

    ValueError names the path where the file cannot be opened, and before whatever `parse` refuses.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise ValueError(f"{path} is not a file; the path of a checkpoint was expected")
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}); check the path") from None
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
