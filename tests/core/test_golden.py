"""Tiny models of the official code, committed with what it said: equality without torch.

The recipe is tests/golden/make_official_golden.py; what is compared are all stages, so that a
departure is told where it begins.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip import checkpoint, cli, convert, parity
from jaxclip.models import clip, parameters
from tests.golden.make_official_golden import GOLDEN, inputs
from tests.support.command import fails
from tests.support.tolerances import within

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = list(GOLDEN)


def recorded(name: str) -> parity.Rungs:
    return parity.recorded(FOLDER / f"{name}.ladder.safetensors")[0]


def worst_rung(got: parity.Rungs, name: str) -> parity.Rung:
    return max(parity.compare(got, recorded(name), within("golden")), key=lambda r: r.relative)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_that_of_the_official_code(name: str) -> None:
    model, _ = jaxclip.load(FOLDER / f"{name}.pt", precision="highest")
    assert model.config == GOLDEN[name].config
    expected = recorded(name)
    images, tokens = inputs(model.config)
    assert np.array_equal(expected["pixels"], images)
    assert np.array_equal(expected["tokens"], tokens)
    got = parity.model_rungs(model, images, tokens)
    assert expected.keys() <= got.keys() and len(expected) >= 12
    worst = worst_rung(got, name)
    assert worst.holds, worst
    logits = np.asarray(model(images, tokens)[0])
    assert parity.compare({"logits": logits}, expected, within("golden"))[0].holds


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_the_reference_is_too(name: str) -> None:
    loaded = convert.load(FOLDER / f"{name}.pt")
    images, tokens = inputs(loaded.config)
    got = parity.reference_rungs(loaded.flat, loaded.config, images, tokens)
    rungs = parity.compare(got, recorded(name), within("golden, float64"))
    assert parity.first_departure(rungs) is None and len(rungs) > 10


@pytest.mark.parametrize("name", NAMES)
def test_another_activation_is_noticed(name: str) -> None:
    loaded = convert.load(FOLDER / f"{name}.pt")
    wrong = dataclasses.replace(loaded.config, activation="gelu")
    module = parameters.from_flat(loaded.flat, clip.abstract(wrong))
    worst = worst_rung(parity.model_rungs(module, *inputs(wrong)), name)
    assert worst.relative > 30 * within("golden")


@pytest.mark.parametrize("name", ["official-vit"])
def test_blocks_in_the_order_of_their_names_are_noticed(name: str) -> None:
    """0, 1, 10, 11, 2, ...: what sorting the names would give."""
    loaded = convert.load(FOLDER / f"{name}.pt")
    order = sorted(map(str, range(12)))
    path = "visual.transformer.resblocks"
    flat = dict(loaded.flat)
    for i, j in enumerate(order):
        for key in [k for k in loaded.flat if k.startswith(f"{path}.{j}.")]:
            flat[key.replace(f"{path}.{j}.", f"{path}.{i}.")] = loaded.flat[key]
    module = parameters.from_flat(flat, clip.abstract(loaded.config))
    rungs = parity.compare(
        parity.model_rungs(module, *inputs(loaded.config)), recorded(name), within("golden")
    )
    first = parity.first_departure(rungs)
    assert first is not None and first.name == "image.block.2"


@pytest.mark.parametrize("name", NAMES)
def test_the_key_bias_is_the_file_s_own(name: str) -> None:
    """No logit sees it: it cancels in the softmax."""
    flat = convert.load(FOLDER / f"{name}.pt").flat
    raw = convert.read(FOLDER / f"{name}.pt")
    bias = raw["transformer.resblocks.0.attn.in_proj_bias"]
    assert np.array_equal(flat["text.transformer.resblocks.0.attn.in_proj_bias"], bias)
    assert np.abs(bias[len(bias) // 3 : 2 * len(bias) // 3]).min() > 0


def test_verify_holds_against_the_recorded_ladder_and_fails_against_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(FOLDER / "official-odd.pt")
    ladder = FOLDER / "official-odd.ladder.safetensors"
    assert cli.main(["verify", model, "--against", str(ladder)]) == 0
    out = capsys.readouterr().out
    assert out.count("every stage holds") == 2 and "precision" in out and "cpu" in out
    assert "published logits: none" in out
    rungs, about = parity.recorded(ladder)
    spoilt = dict(rungs)
    spoilt["text.features"] = rungs["text.features"] * 1.001
    parity.record(tmp_path / "spoilt.safetensors", spoilt, about)
    arguments = ["verify", model, "--against", str(tmp_path / "spoilt.safetensors"), "--json"]
    assert cli.main(arguments) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["holds"] and "text.features" in said["first_departure"].values()
    assert "safetensors" in fails(capsys, 1, "verify", model, "--against", model)


def test_verify_records_what_it_then_holds_against(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ladder = str(tmp_path / "ladder.safetensors")
    assert cli.main(["verify", "--record", ladder]) == 0
    assert cli.main(["verify", "--against", ladder]) == 0
    capsys.readouterr()


def test_round_trips_of_the_official_files_are_equal_to_the_bit(tmp_path: Path) -> None:
    for name in NAMES:
        source = tmp_path / f"{name}.pt"
        shutil.copy(FOLDER / source.name, source)
        convert.convert(source, tmp_path / f"{name}.safetensors")
        convert.convert(tmp_path / f"{name}.safetensors", tmp_path / "again.pt", "openai")
        before, after = convert.read(source), convert.read(tmp_path / "again.pt")
        assert before.keys() == after.keys()
        assert all(
            before[k].dtype == after[k].dtype and np.array_equal(before[k], after[k])
            for k in before
        )
        (tmp_path / "again.pt").unlink()
        flat, _, notes = checkpoint.load_stored(tmp_path / f"{name}.safetensors")
        assert notes["source"]["file"] == f"{name}.pt" and len(flat) > 40


WITHOUT_TORCH = """
import sys
import jaxclip
source, target = sys.argv[1:]
jaxclip.convert.read(source)
jaxclip.convert.convert(source, target + "/a.safetensors")
jaxclip.convert.convert(target + "/a.safetensors", target + "/b.pt", "openai")
jaxclip.convert.convert(target + "/a.safetensors", target + "/c.bin", "open_clip")
jaxclip.convert.convert(target + "/a.safetensors", target + "/d", "huggingface")
assert not {"jax", "flax"} & set(sys.modules), "the converter imported jax"
jaxclip.load(target + "/d")
assert not {"torch", "transformers", "open_clip", "clip"} & set(sys.modules)
"""


@pytest.mark.parametrize("program", [WITHOUT_TORCH, "import torch"], ids=["ours", "torch"])
def test_reading_converting_and_loading_leave_torch_unimported(
    program: str, tmp_path: Path
) -> None:
    """Where importing torch is an error; the second program shows that it is one."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program, str(FOLDER / "official-vit.pt"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == (program == "import torch"), done.stderr
    assert ("torch was imported" in done.stderr) == (program == "import torch")
