"""Reading one record: a picture, its captions or class, or the fault that makes it unusable."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxclip.files import read_bytes

MOST_PICTURE_BYTES = 2**30  # of a picture file; a larger one would fill the memory
MOST_TEXT_BYTES = 2**24  # of the captions or the class of one picture


class Fault(NamedTuple):
    """Why a record cannot be used: faults are counted by `kind`; `detail` is for messages."""

    kind: str
    detail: str


def read_picture(path: Path) -> tuple[bytes, Fault | None]:
    """(bytes of a picture file, None), or (b"", its fault): it is missing, a pipe, too large."""
    try:
        return read_bytes(path, MOST_PICTURE_BYTES), None
    except (ValueError, OSError) as error:
        return b"", Fault("broken picture", str(error).removeprefix(f"{str(path)!r}: "))


def parse_captions(value: Any) -> tuple[str, ...]:
    """The captions of a record, given as a text or a list of texts; ValueError for anything else.

    >>> parse_captions(["a cat", "my cat"])
    ('a cat', 'my cat')
    """
    texts = tuple(value) if isinstance(value, list) else (value,)
    for text in texts:
        if not isinstance(text, str):
            inside = "a list with " if isinstance(value, list) else ""
            raise ValueError(f"expected a caption or a list of them, got {inside}{_kind(text)}")
        _check_text(text, "caption")
    return texts


def parse_label(value: Any) -> str | int:
    """The class of a record, a name or a whole number; ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)  # as tables are written that have rows without a number, too
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a class, a name or a whole number, got {_kind(value)}")
    _check_text(value, "class")
    if not value.strip():
        raise ValueError("expected a class, a name or a whole number, got an empty text")
    return value.strip()


def parse_path(value: Any) -> str:
    """The file name of a record; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"expected a file name, got {_kind(value)}")
    _check_text(value, "file name")
    if not value.strip():
        raise ValueError("expected a file name, got an empty text")
    return value


def _kind(value: Any) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", bool: "true or false"}
    return names.get(type(value), "a text" if isinstance(value, str) else "a number")


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise ValueError(f"expected a {what}, got a text with a null byte; is it UTF-8?")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise ValueError(f"expected a {what}, got a text with half a character ({code})") from None
