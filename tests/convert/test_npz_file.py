"""`.npz` files: read as views, or refused; nothing in them is unpickled or inflated."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxclip.convert.archive import npz_file

ARRAYS = {
    "params/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params/b": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "params/t": np.array([2.5], np.float32),
    "none": np.zeros((0, 3), np.float32),
}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def packed(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_what_numpy_writes_is_read_as_views(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    found = npz_file.read(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert not found[name].flags.writeable and not found[name].flags.owndata


SOUND = npy(ARRAYS["params/a"])
FAULTS = {
    "compressed": (packed({"a.npy": SOUND}, zipfile.ZIP_DEFLATED), "numpy.savez"),
    "objects": (packed({"a.npy": npy(np.array([None, {}], object))}), "expected one of"),
    "cut numbers": (packed({"a.npy": SOUND[:-1]}), "another number of bytes"),
    "more numbers": (packed({"a.npy": SOUND + b"0"}), "another number of bytes"),
    "no npy": (packed({"a.npy": b"hello, this is no array"}), "expected an .npy record"),
    "short": (packed({"a.npy": b"\x93NUMPY\1"}), "expected an .npy record"),
    "a call in the header": (
        packed({"a.npy": SOUND.replace(b"{'descr'", b"f('descr')")}),
        "no description",
    ),
    "a huge shape": (packed({"a.npy": SOUND.replace(b"(2, 3), ", b"(9**9,),")}), "no description"),
    "a negative size": (packed({"a.npy": SOUND.replace(b"(2, 3)", b"(2,-3)")}), "whole numbers"),
    "another folder": (packed({"../a.npy": SOUND}), "leads out of its folder"),
    "cut zip": (packed({"a.npy": SOUND})[:-3], "end record"),
}


@pytest.mark.parametrize("content, part", FAULTS.values(), ids=FAULTS.keys())
def test_a_file_that_is_not_sound_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        npz_file.read(path)
    assert part in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)
