"""JSON from files that may be hostile: stricter than Python's own reader."""

import json
from pathlib import Path
from typing import Any, NoReturn

from jaxclip.files import decode_text, read_bytes

from .inert import refuse, short_repr

LARGEST = 1 << 20  # bytes of a config; those of the released models have 5 kB
_MOST_DIGITS = 19  # of 2**63


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        refuse("the JSON has a name twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        refuse(f"the JSON has a number of {len(text)} digits")
    return int(text)


def _constant(text: str) -> NoReturn:
    refuse(f"the JSON has the number {text}")


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for any other value, a repeated name and NaN."""
    try:
        found = json.loads(
            decode_text(data, "the JSON"),
            object_pairs_hook=_pairs,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        refuse(f"no JSON: {error.msg} at byte {error.pos}")
    except RecursionError:
        refuse("the JSON is nested too deep")
    if type(found) is not dict:
        refuse(f"expected a JSON object, got {short_repr(found)}")
    return found


def read(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file; ValueError, in one line, for everything else."""
    data = read_bytes(path, largest)
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
