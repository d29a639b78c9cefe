"""JSON from files that may be hostile: what Python's own reader lets through is refused here."""

import json
from pathlib import Path
from typing import Any, NoReturn

from .inert import refuse, show

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
    """A JSON object; ValueError for anything else, for names that come twice and for NaN."""
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        refuse("the JSON is not UTF-8")
    except json.JSONDecodeError as error:
        refuse(f"no JSON: {error.msg} at byte {error.pos}")
    except RecursionError:
        refuse("the JSON is nested too deep")
    if type(found) is not dict:
        refuse(f"{show(found)} came, a JSON object was expected")
    return found


def read(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file; ValueError, in one line, for everything else."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file, one with JSON was expected")
        with open(path, "rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}); check the path") from None
    if len(data) > largest:
        raise ValueError(f"{path} has more than {largest} bytes, which no such file has")
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
