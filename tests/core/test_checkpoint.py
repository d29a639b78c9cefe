"""Parameters by name, and the file they live in: nothing permuted, nothing half written or read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxclip import checkpoint, convert
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from tests.support import tiny

SMALL = ClipConfig(VisionConfig(20, 5, 24, 12, 3), TextConfig(16, 12, 2, 13, 101), 7)
NOTES = {"source": "random", "steps": 3, "sizes": [1, 2]}


def flat_params(seed: int = 0) -> checkpoint.Flat:
    return checkpoint.flatten(tiny.cast(tiny.params(seed), np.float32))


def same(a: checkpoint.Flat, b: checkpoint.Flat) -> bool:
    """Names, dtypes, shapes and every bit."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


# Rows of a token table ---------------------------------------------------------------------------


def test_the_rows_that_are_kept_come_back_the_others_as_zero(tmp_path: Path):
    flat, rows = flat_params(), np.array([0, 7, 8, SMALL.text.vocab_size - 1])
    checkpoint.save(tmp_path / "m.safetensors", checkpoint.keep_rows(flat, rows), SMALL, NOTES)
    for read in (checkpoint.load, convert.load):
        found = read(tmp_path / "m.safetensors")[0]
        table = found.pop(checkpoint.TABLE)
        np.testing.assert_array_equal(table[rows], flat[checkpoint.TABLE][rows])
        others = np.delete(table, rows, axis=0)
        assert len(table) == SMALL.text.vocab_size and not others.any()
        assert same(found, {k: v for k, v in flat.items() if k != checkpoint.TABLE})


@pytest.mark.parametrize(
    "rows",
    [
        [0, 7, 101],
        [-1, 7, 8],
        [7, 7, 8],
        [8, 7, 9],
        [1, 2],
        [1.0, 2.0, 3.0],
        [[1, 2, 3]],
        [],
    ],
)
def test_rows_that_are_no_token_ids_take_one_line(tmp_path: Path, rows):
    flat = checkpoint.keep_rows(flat_params(), np.array([1, 2, 3]))
    kind = np.float32 if 1.0 in rows else np.int32
    flat[checkpoint.ROWS] = np.array(rows, kind)
    checkpoint.save(tmp_path / "m.safetensors", flat, SMALL, NOTES)
    for read in (checkpoint.load, convert.load):
        with pytest.raises(ValueError, match="expected increasing token ids below 101") as caught:
            read(tmp_path / "m.safetensors")
        assert "\n" not in str(caught.value)


def test_a_file_of_few_rows_cannot_claim_a_large_table(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint.rows, "MOST_ZEROS", 30)
    flat = checkpoint.keep_rows(flat_params(), np.array([1, 2, 3]))
    checkpoint.save(tmp_path / "m.safetensors", flat, SMALL, NOTES)
    with pytest.raises(ValueError, match="expected at least 4 of 101 token ids, got 3"):
        checkpoint.load(tmp_path / "m.safetensors")


# Names --------------------------------------------------------------------------------------------


def test_nest_and_flatten_are_inverse():
    flat = {"a": 1, "b.c": 2, "b.d.e": 3, "b.d.0": 4}
    nested = {"a": 1, "b": {"c": 2, "d": {"e": 3, "0": 4}}}
    assert checkpoint.nest(flat) == nested
    assert checkpoint.flatten(nested) == flat
    params = tiny.params()
    assert checkpoint.flatten(checkpoint.nest(checkpoint.flatten(params))).keys() == (
        checkpoint.flatten(params).keys()
    )


@pytest.mark.parametrize("order", [list(range(12)), list(range(11, -1, -1)), None])
def test_twelve_layers_are_stacked_in_the_order_of_their_numbers(order):
    """Whatever order they come in; as strings, 10 and 11 would stand before 2."""
    order = order or sorted(range(12), key=str)
    flat = {f"t.resblocks.{i}.ln_1.bias": np.full(3, i) for i in order}
    stacked = checkpoint.stack(flat)
    assert stacked.keys() == {"t.resblocks.ln_1.bias"}
    assert stacked["t.resblocks.ln_1.bias"][:, 0].tolist() == list(range(12))


def test_stack_and_unstack_are_inverse():
    flat = flat_params()
    stacked = checkpoint.stack(flat)
    assert stacked["visual.transformer.resblocks.attn.in_proj_bias"].shape == (12, 72)
    assert stacked["text.transformer.resblocks.mlp.c_fc.kernel"].shape == (12, 16, 64)
    assert (stacked["visual.proj"] == flat["visual.proj"]).all()
    assert same(checkpoint.unstack(stacked), flat)
    blocks = stacked["visual.transformer.resblocks.ln_1.bias"]
    assert len(np.unique(blocks, axis=0)) == 12  # so that a permutation would have been seen


@pytest.mark.parametrize("missing", [0, 5])
def test_a_gap_in_the_layers_is_refused(missing):
    flat = {f"t.resblocks.{i}.ln_1.bias": np.zeros(3) for i in range(12) if i != missing}
    with pytest.raises(
        ValueError, match=r"t\.resblocks\.ln_1\.bias: expected layers 0 to 10, got \["
    ):
        checkpoint.stack(flat)


def test_a_layer_of_another_shape_is_refused_by_name():
    flat = {f"t.resblocks.{i}.ln_1.bias": np.zeros(3 + i // 2) for i in range(3)}
    with pytest.raises(ValueError, match=r"t\.resblocks\.ln_1\.bias: .*got \[\(3,\), \(4,\)\]"):
        checkpoint.stack(flat)


def test_check_lists_all_faults():
    with pytest.raises(ValueError) as error:
        checkpoint.check({"a": (2,), "b": (3,)}, {"b": np.zeros(4), "c": np.zeros(())})
    faults = "- a (2,); + c (); b: expected shape (3,), got (4,)"
    assert str(error.value) == f"parameters do not fit the config: {faults}"
    checkpoint.check({"a": (2,)}, {"a": np.zeros(2)})


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a saved checkpoint."""
    path = tmp_path / "folder" / "model.safetensors"  # the folder is made on the way
    checkpoint.save(path, flat_params(), SMALL, NOTES)
    return path


def test_what_is_saved_is_loaded_bit_for_bit(path):
    loaded, config, notes = checkpoint.load(path)
    assert same(loaded, flat_params())
    assert (config, notes) == (SMALL, NOTES)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_scalar_stays_one(path):
    """np.ascontiguousarray would make a vector of it, and no model would take the file."""
    assert checkpoint.load(path)[0]["logit_scale"].shape == ()


def test_the_order_of_memory_does_not_matter(path):
    turned = {name: np.asarray(value, order="F") for name, value in flat_params().items()}
    checkpoint.save(path, turned, SMALL, NOTES)
    assert same(checkpoint.load(path)[0], flat_params())


def test_float16_on_disk_is_float32_in_memory(path):
    half = {name: value.astype(np.float16) for name, value in flat_params().items()}
    big = path.stat().st_size
    checkpoint.save(path, half, SMALL, NOTES)
    assert path.stat().st_size < 0.7 * big
    loaded = checkpoint.load(path)[0]
    assert same(loaded, {name: value.astype(np.float32) for name, value in half.items()})


def message_of(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    return str(error.value)


HEADER = b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}}'


def with_header(header: bytes, size: int) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"not a checkpoint at all\n" * 40,
        b"PK\x03\x04" + bytes(500),
        (1 << 62).to_bytes(8, "little") + b"{}",
        with_header(HEADER % (b"F32", 8), 4),
        with_header(HEADER % (b"BF16", 4), 4),
        with_header(HEADER % (b"F8_E4M3", 2), 2),
        with_header(HEADER % (b"F99", 2), 2),
        with_header(HEADER % (b"F32", 8), 8),
    ],
    ids=[
        "empty",
        "a byte",
        "text",
        "zip",
        "huge header",
        "too few bytes",
        "bfloat16",
        "float8",
        "no such type",
        "another program's",
    ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = message_of(path)
    assert str(path) in message and "\n" not in message
    assert path.read_bytes() == content


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.9, 0.9999])
def test_a_truncated_file_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    message = message_of(path)
    assert str(path) in message and "\n" not in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        message = message_of(path)
        assert str(path) in message and "\n" not in message


@pytest.mark.parametrize("version", [None, "jaxclip-0", "jaxclip-state-1"])
def test_another_format_version_is_refused(tmp_path, version):
    path = tmp_path / "model.safetensors"
    metadata = {"config": SMALL.to_json(), **({"format": version} if version else {})}
    save_file(flat_params(), path, metadata)
    message = message_of(path)
    assert str(path) in message and repr(version) in message and "'jaxclip-1'" in message


@pytest.mark.parametrize("config", [None, "{}", "no json"])
def test_a_file_without_a_config_is_refused(tmp_path, config):
    path = tmp_path / "model.safetensors"
    metadata = {"format": checkpoint.FORMAT, **({"config": config} if config else {})}
    save_file(flat_params(), path, metadata)
    message = message_of(path)
    assert str(path) in message and "expected a config" in message


# A save that fails --------------------------------------------------------------------------------


def assert_untouched(path: Path, before: bytes) -> None:
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    def fill_up(arrays: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint.files, "save_file", fill_up)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(path, flat_params(1), SMALL, NOTES)
    assert_untouched(path, before)


def test_a_real_refusal_of_the_system_leaves_the_old_file(path):
    """A limit on the size of files stands for the full disk: it needs no rights and no mount."""
    resource = pytest.importorskip("resource", reason="limits are a matter of Unix")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*nothing was changed"):
            checkpoint.save(path, flat_params(1), SMALL, NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert_untouched(path, before)


def test_an_interrupt_leaves_the_old_file(path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint.files, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, flat_params(1), SMALL, NOTES)
    assert_untouched(path, before)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from jaxclip import checkpoint
from jaxclip.training.recipe import EMOJI

def die_half_way(arrays, target, metadata):
    Path(target).write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.files.save_file = die_half_way
checkpoint.save(Path(sys.argv[1]), {"a": np.zeros(3)}, EMOJI, {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on Windows")
def test_a_process_killed_half_way_leaves_the_old_file(path):
    before = path.read_bytes()
    root = str(Path(checkpoint.__file__).parents[2])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env={**os.environ, "PYTHONPATH": root}
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    left = [p for p in path.parent.iterdir() if p != path]
    assert len(left) == 1 and left[0].name.startswith(f".{path.name}.")  # hidden, never loaded
    checkpoint.save(path, flat_params(1), SMALL, {})
    assert same(checkpoint.load(path)[0], flat_params(1))
