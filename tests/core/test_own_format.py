"""Files in our own format are not believed: names, shapes, types and numbers fit, or one line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclip import checkpoint, convert
from jaxclip.config import LARGEST, ClipConfig, TextConfig, VisionConfig
from jaxclip.hub import load as hub
from jaxclip.hub.find import find
from jaxclip.models import clip, parameters
from tests.support.command import EXAMPLES, fails

CONFIG = ClipConfig(VisionConfig(16, 8, 16, 2, 2), TextConfig(8, 1, 2, 13, 101), 8)
FLAT = parameters.to_flat(clip.create(CONFIG, remat="none"))
SEED = {"format": checkpoint.FORMAT, "config": CONFIG.to_json(), "notes": '{"by": "a test"}'}
KERNEL = "visual.transformer.resblocks.1.mlp.c_fc.kernel"


def written(path: Path, flat: checkpoint.Flat, **metadata: str) -> Path:
    checkpoint.save_file(flat, path, {**SEED, **metadata})
    return path


def config_with(path: str, value: Any) -> str:
    data = json.loads(CONFIG.to_json())
    *parts, leaf = path.split("/")
    node = data
    for part in parts:
        node = node[part]
    node[leaf] = value
    return json.dumps(data)


def message_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message and len(message) < 2000
    return message


def test_a_sound_file_loads_by_every_way(tmp_path):
    path = written(tmp_path / "a.safetensors", FLAT)
    assert convert.load(path).config == CONFIG
    assert checkpoint.load(path)[0].keys() == FLAT.keys()
    assert hub.load(path)[0].config == CONFIG


# What its config claims ---------------------------------------------------------------------------

LIMITED = """
import resource, sys, time
from jaxclip import checkpoint, convert
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
start = time.process_time()
for call in (convert.load, checkpoint.load):
    try:
        call(sys.argv[1])
        print("loaded")
    except ValueError as error:
        print(error)
print(time.process_time() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits by /proc and Unix")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision/layers", 10**9),
        ("vision/layers", LARGEST["layers"]),
        ("text/layers", 10**9),
        ("text/vocab_size", 10**12),
        ("text/width", 10**9),
        ("vision/image_size", 8 * 10**9),
        ("vision", {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 1, 1, 10**9]}),
        ("vision", {"kind": "resnet", "image_size": 64, "width": 8, "layers": [900] * 4}),
    ],
)
def test_a_config_of_a_giant_is_refused_within_a_second_and_200_megabytes(tmp_path, path, value):
    file = written(
        tmp_path / "a.safetensors", {"logit_scale": np.float32(1)}, config=config_with(path, value)
    )
    command = [sys.executable, "-c", LIMITED, str(file)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    first, second, seconds = done.stdout.splitlines()
    assert str(file) in first and str(file) in second
    assert float(seconds) < 1.0


@pytest.mark.parametrize("command", ["inspect", "convert", "interpolate", "classify", "verify"])
def test_every_command_refuses_it_in_one_line(tmp_path, capsys, command):
    claims = config_with("vision/layers", 10**9)
    file = str(written(tmp_path / "a.safetensors", {"a": np.zeros(1)}, config=claims))
    out = str(tmp_path / "out.safetensors")
    rest = {
        "inspect": [file],
        "convert": [file, out],
        "interpolate": [file, file, "--out", out],
        "classify": [str(EXAMPLES[0]), "--labels", "cat", "--model", file],
        "verify": [file],
    }[command]
    assert "layers" in fails(capsys, 1, command, *rest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision/heads", 0),
        ("vision/heads", True),
        ("vision/width", 16.0),
        ("vision/width", "16"),
        ("vision/layers", -1),
        ("vision/patch_size", None),
        ("vision/image_size", 1 << 40),
        ("text/context_length", LARGEST["context_length"] + 1),
        ("text/kind", ["transformer"]),
        ("text/surprise", 1),
        ("embed_dim", 10**400),
        ("activation", {}),
        ("logit_bias", "yes"),
        ("logit_bias", 1),
        ("logit_bias", True),
        ("vision/layers", 3),
        ("embed_dim", 9),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, path, value):
    file = written(tmp_path / "a.safetensors", FLAT, config=config_with(path, value))
    for call in (convert.load, checkpoint.load, hub.load):
        assert "a.safetensors" in message_of(call, file)


@pytest.mark.parametrize("flag", ["width", "layers", "heads", "context-length", "vocab-size"])
def test_a_flag_of_training_that_claims_a_giant_is_refused(flag, tmp_path, capsys):
    value = str(10**9)
    line = fails(capsys, 2, "train", f"--model.text.{flag}", value, "--out", str(tmp_path / "run"))
    assert "expected an integer from 1 to" in " ".join(line.split())


# What its tensors hold ----------------------------------------------------------------------------


def spoilt(value: float, dtype: Any = np.float32, name: str = KERNEL) -> checkpoint.Flat:
    array = FLAT[name].astype(dtype)
    array.reshape(-1)[-1] = value
    return {**FLAT, name: array}


TENSORS = {
    "nan": spoilt(np.nan),
    "infinite": spoilt(-np.inf),
    "nan in float16": spoilt(np.nan, np.float16),
    "beyond float32": spoilt(1e300, np.float64),
    "a scalar": spoilt(np.inf, name="logit_scale"),
    "integers": {**FLAT, KERNEL: FLAT[KERNEL].astype(np.int64)},
    "truth values": {**FLAT, KERNEL: FLAT[KERNEL] > 0},
    "missing": {name: value for name, value in FLAT.items() if name != KERNEL},
    "unexpected": {**FLAT, "more": np.zeros(3, np.float32)},
    "transposed": {**FLAT, KERNEL: FLAT[KERNEL].T},
    "empty": {**FLAT, KERNEL: FLAT[KERNEL][:0]},
    "a layer twice": {**FLAT, KERNEL.replace(".1.", ".01."): FLAT[KERNEL]},
}


@pytest.mark.parametrize("flat", TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_are_not_those_of_the_config_are_refused(tmp_path, flat):
    file = written(tmp_path / "a.safetensors", flat)
    for call in (convert.load, checkpoint.load, hub.load):
        message = message_of(call, file)
        assert "c_fc" in message or "more" in message or "logit_scale" in message
    message_of(convert.convert, file, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_no_percentage_is_made_of_what_is_no_number(tmp_path, capsys):
    file = str(written(tmp_path / "a.safetensors", spoilt(np.nan)))
    line = fails(capsys, 1, "inspect", file)
    assert "finite" in line and KERNEL in line


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_at_the_edge_of_a_format_are_finite(dtype):
    largest = min(float(np.finfo(dtype).max), float(np.finfo(np.float32).max))
    for size in (1, 7, 100_000):
        values = np.full(size, largest, dtype)
        assert checkpoint.is_finite(values) and checkpoint.is_finite(-values)
        for bad in (np.nan, np.inf, -np.inf):
            values[size // 2] = bad
            assert not checkpoint.is_finite(values)
            assert not checkpoint.is_finite(np.stack([values, values]).T)


def test_a_model_that_overflows_in_a_narrower_format_is_refused(tmp_path):
    """70,000 is a number in float32 and in bfloat16, and infinite in float16."""
    file = written(tmp_path / "a.safetensors", spoilt(70_000.0))
    hub.load(file, dtype="bfloat16")
    assert "float16" in message_of(lambda: hub.load(file, dtype="float16"))


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, capsys):
    path = tmp_path / "a.safetensors"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    assert "expected a regular file" in message_of(checkpoint.load_arrays, path)
    assert "expected a regular file" in message_of(checkpoint.load_notes, path)
    message_of(convert.load, path)
    fails(capsys, 1, "inspect", str(path))


# Fuzz ---------------------------------------------------------------------------------------------

FILES = 300  # of each of two ways
VALUES = [None, True, -1, 0, 1, 2, 3, 7.5, "", "x", [], {}, [1], 10**9, 1 << 64, 10**30, "\x1b[2J"]


def mutate(node: Any, draw: random.Random) -> Any:
    """The same JSON with something replaced, dropped, doubled or added somewhere."""
    if not isinstance(node, dict) or not node or draw.random() < 0.2:
        return draw.choice(VALUES)
    copy, key = dict(node), draw.choice(list(node))
    way = draw.random()
    if way < 0.1:
        del copy[key]
    elif way < 0.2:
        copy[draw.choice(["kind", "x", "layers"])] = draw.choice(VALUES)
    else:
        copy[key] = mutate(copy[key], draw)
    return copy


def mutated_metadata(draw: random.Random, sound: bytes) -> bytes:
    data = dict(SEED)
    part = draw.choice(["config", "config", "config", "notes", "format"])
    if draw.random() < 0.5:
        node = json.loads(data[part]) if part != "format" else data[part]
        data[part] = json.dumps(mutate(node, draw))
    else:
        at = draw.randrange(len(data[part]))
        data[part] = data[part][:at] + draw.choice('{}[]",:0N\x00é') + data[part][at + 1 :]
    length = int.from_bytes(sound[:8], "little")
    header = json.dumps({**json.loads(sound[8 : 8 + length]), "__metadata__": data}).encode()
    return len(header).to_bytes(8, "little") + header + sound[8 + length :]


def mutated_header(draw: random.Random, sound: bytes) -> bytes:
    length = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + length])
    if draw.random() < 0.5:
        name = draw.choice(list(header))
        header[name] = mutate(header[name], draw)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + sound[8 + length :]
    data = bytearray(sound)
    data[draw.randrange(min(len(data), length + 64))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)


@pytest.mark.parametrize("spoil", [mutated_metadata, mutated_header])
def test_spoilt_files_of_ours_load_or_are_refused(tmp_path, spoil):
    """A clean result or ValueError in one line, and memory bounded by the file."""
    draw = random.Random(spoil.__name__)
    path = tmp_path / "a.safetensors"
    sound = written(path, FLAT).read_bytes()
    outcomes: Counter[str] = Counter()
    tracemalloc.start()
    for i in range(FILES):
        path.write_bytes(spoil(draw, sound))
        for call in (convert.load, checkpoint.load):
            try:
                call(path)
                outcomes["loaded"] += 1
            except ValueError as error:
                said = str(error)
                assert "\n" not in said and len(said) < 2500, i
                outcomes[said.replace(str(path), "")[:24]] += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(sound) + (4 << 20)
    assert outcomes["loaded"] > 10 and len(outcomes) > 10


def test_numbers_that_are_not_finite_are_told_with_the_file(tmp_path, capsys):
    name = "text.text_projection"
    flat, config, notes = checkpoint.load_stored(find("emoji"))
    file, picture = tmp_path / "bad.safetensors", str(EXAMPLES[0])
    checkpoint.save(file, {**flat, name: np.full_like(flat[name], np.nan)}, config, notes)
    assert f"{file}: " in message_of(hub.load, file)
    ask = ["classify", picture, "--labels", "a", "b", "--model", str(file)]
    assert f"{file}: {name}" in fails(capsys, 1, *ask)


def test_embeddings_are_not_written_to_a_folder(tmp_path, capsys):
    (tmp_path / "e.npz").mkdir()
    ask = ["embed", str(EXAMPLES[0]), "--out", str(tmp_path / "e.npz"), "--force"]
    assert "--out: expected the name of a file, got a folder" in fails(capsys, 2, *ask)
