"""Map a checkpoint file into memory: its bytes are read when they are used."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxclip.files import open_regular

Bytes = bytes | mmap.mmap
Parsed = TypeVar("Parsed")


def parse_mapped(path: Path, parse: Callable[[Bytes], Parsed]) -> Parsed:
    """The result of `parse`, called with the bytes of the file mapped into memory.

    ValueError names the path where the file cannot be opened, and before whatever `parse` refuses.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:  # a file system that cannot map
            raise ValueError(f"{path}: expected a file that can be mapped ({error})") from None
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
