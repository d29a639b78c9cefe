"""Archives around a pickle of one's own, and the check that a file is refused."""

import numpy as np
import pytest

from experiments.lib.peers import archives
from experiments.lib.peers.archives import PROTOCOL, STOP, mapping, named, storage
from jaxclip.convert.archive.torch_archive import parse

SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}
BYTES = [archives.raw(array) for array in SMALL.values()]
TENSOR = archives.whole(SMALL["a"], "0")
FLOATS = storage("FloatStorage", "0", 6)
ALLOWED = b"NKJMG\x88\x89})](tX\x8aaesuqrhjcRbQ.\x80\x81\x85\x86\x87"
OBJECT = named("__torch__", "M") + b")\x81"


def members(tree: bytes = b"") -> list[archives.Member]:
    """The records of a zip around a pickle; without one, of a file that is sound."""
    return archives.save_members(tree or archives.state_dict(SMALL), BYTES)


def in_zip(tree: bytes) -> bytes:
    return archives.zip_bytes(members(tree))


def in_script(tree: bytes) -> bytes:
    return archives.zip_bytes(archives.script_members(tree, BYTES))


def in_legacy(tree: bytes) -> bytes:
    return archives.legacy_file(tree, archives.legacy_numbers(SMALL))


def pickled(value: bytes) -> bytes:
    """A state dict with a sound tensor and `value` beside it."""
    return PROTOCOL + mapping({"a": TENSOR, "b": value}) + STOP


def refused(data: bytes, message: str = "") -> None:
    """ValueError of one line that matches."""
    with pytest.raises(ValueError, match=message) as caught:
        parse(data)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600
