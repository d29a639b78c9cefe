"""`jaxclip doctor probe` and `diagnose`: what they answer, and what they refuse."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclip import checkpoint, cli, doctor
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.doctor.checks import read_arrays
from jaxclip.doctor.evidence import Evidence
from jaxclip.doctor.knobs import right_walk, turn
from jaxclip.doctor.network import Network
from jaxclip.doctor.probe import make_probe
from jaxclip.doctor.scripts import SCRIPTS
from jaxclip.doctor.variants import join, single_variants
from jaxclip.models import clip, parameters
from tests.support import tiny
from tests.support.command import fails

Arrays = dict[str, np.ndarray]
CONFIG = ClipConfig(
    VisionConfig(30, 10, 24, 3, tiny.VISION_HEADS), TextConfig(16, 3, 2, 20, 49408), 7
)


def flat_params(seed: int = 0) -> Arrays:
    params = tiny.params(
        seed,
        vision_layers=3,
        patch=10,
        image_size=30,
        text_layers=3,
        vocab=49408,
        context=20,
    )
    return {name: np.asarray(x, np.float32) for name, x in checkpoint.flatten(params).items()}


@pytest.fixture(scope="module")
def model() -> clip.Clip:
    return parameters.from_flat(flat_params(), clip.abstract(CONFIG, remat="none"))


@pytest.fixture(scope="module")
def probe() -> Arrays:
    return make_probe(flat_params(), CONFIG, "tiny")


@pytest.fixture(scope="module")
def sound(model: clip.Clip, probe: Arrays) -> Arrays:
    """What our own Flax model makes of the probe."""
    pixels = np.ascontiguousarray(probe["pixels"].transpose(0, 2, 3, 1))
    images, texts = model.encode_image(pixels), model.encode_text(probe["tokens"])
    logits = model(pixels, probe["tokens"])[0]
    found = {"image_features": images, "text_features": texts, "logits_per_image": logits}
    kept = {"pixels": probe["pixels"], "tokens": probe["tokens"]}
    return kept | {name: np.asarray(x) for name, x in found.items()}


def plant(probe: Mapping[str, np.ndarray], *faults: tuple[str, str]) -> Evidence | Any:
    """(evidence, walk) with faults by (stage, name), for the doctor's own arithmetic."""
    evidence = Evidence(probe, {}, Network(flat_params(), CONFIG))
    walk = right_walk(CONFIG)
    found = None
    for stage, name in faults:
        variants = single_variants(CONFIG, walk, [stage])
        one = next(v for v in variants if v.names[0] == name)
        found = one if found is None else join(found, one)
    return evidence, turn(walk, found.changes)


def features(probe: Arrays, side: str, *faults: tuple[str, str], source: str = "probe") -> Any:
    evidence, walk = plant(probe, *faults)
    return np.float32(evidence.tower(side, walk, None, source).features)


def names(diagnosis: doctor.Diagnosis) -> list[str]:
    return [fault.name for fault in diagnosis.faults]


# Answers ------------------------------------------------------------------------------------------


def test_diagnose_agrees_with_our_own_model(model: clip.Clip, probe: Arrays, sound: Arrays) -> None:
    found = doctor.diagnose(probe, sound, (model, None))
    assert found.verdict == "agrees" and found.faults == () and found.first_stage is None
    assert str(found).startswith("agrees within float32 rounding")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_diagnose_says_which_rounding(
    kind: str, model: clip.Clip, probe: Arrays, sound: Arrays
) -> None:
    import ml_dtypes

    narrow = np.dtype(kind if kind == "float16" else ml_dtypes.bfloat16)
    rounded = {"image_features": sound["image_features"].astype(narrow)}
    found = doctor.diagnose(probe, rounded, model)
    assert found.verdict == "agrees" and found.rounding in ("float16", kind)
    assert f"{found.rounding} rounding" in str(found)


@pytest.mark.parametrize(
    ("side", "name"),
    [("image", "exact-gelu"), ("image", "epsilon-1e-6"), ("text", "no-causal-mask")],
)
def test_diagnose_names_one_fault(side: str, name: str, model: clip.Clip, probe: Arrays) -> None:
    found = doctor.diagnose(probe, {f"{side}_features": features(probe, side, (side, name))}, model)
    assert found.verdict == "faults" and names(found) == [name]
    assert found.explained > 0.999 and found.rounding == "float32"
    assert found.first_stage == f"{side}_features" and name in str(found)


def test_diagnose_tells_the_last_norm_from_all(model: clip.Clip, probe: Arrays) -> None:
    evidence = Evidence(probe, {}, Network(flat_params(), CONFIG))
    walk = turn(right_walk(CONFIG), {"text": {"last_epsilon": 1e-3}})
    wrong = np.float32(evidence.tower("text", walk, None, "probe").features)
    found = doctor.diagnose(probe, {"text_features": wrong}, model)
    assert names(found) == ["epsilon-1e-3"] and "text tower's last norm" in str(found)
    wrong = features(probe, "text", ("text", "epsilon-1e-3"))
    assert "the epsilon of the norms" in str(
        doctor.diagnose(probe, {"text_features": wrong}, model)
    )


def test_diagnose_names_two_faults_of_one_tower(model: clip.Clip, probe: Arrays) -> None:
    wrong = features(probe, "image", ("image", "exact-gelu"), ("image", "no-ln-pre"))
    found = doctor.diagnose(probe, {"image_features": wrong}, model)
    assert sorted(names(found)) == ["exact-gelu", "no-ln-pre"]


def test_diagnose_names_faults_of_two_sides_and_a_shared_one_once(
    model: clip.Clip, probe: Arrays
) -> None:
    gelu = [features(probe, side, (side, "exact-gelu")) for side in ("image", "text")]
    evidence, walk = plant(probe, ("pixels", "mean-half"))
    theirs = {"image_features": gelu[0], "text_features": gelu[1]}
    theirs["pixels"] = evidence.pixels(walk["pixels"])  # [n, h, w, c] is taken as well
    found = doctor.diagnose(probe, theirs, model)
    assert names(found) == ["mean-half", "exact-gelu"] and found.first_stage == "pixels"


def test_diagnose_tells_input_from_tower(model: clip.Clip, probe: Arrays) -> None:
    both = ("text", "exact-gelu"), ("tokens", "case-kept")
    theirs = {
        "text_features": features(probe, "text", both[0]),
        "text_features_from_texts": features(probe, "text", *both, source="made"),
    }
    assert sorted(names(doctor.diagnose(probe, theirs, model))) == ["case-kept", "exact-gelu"]


def test_diagnose_finds_the_first_hidden_state_that_departs(
    model: clip.Clip, probe: Arrays
) -> None:
    evidence, walk = plant(probe, ("image", "exact-gelu"))
    wrong = evidence.tower("image", walk, None, "probe")
    hidden = np.float32(np.stack(wrong.hidden))
    theirs = {"image_hidden": hidden, "image_features": np.float32(wrong.features)}
    found = doctor.diagnose(probe, theirs, model)
    assert names(found) == ["exact-gelu"] and found.first_stage == "image_hidden[1]"
    theirs["image_hidden"] = hidden.copy()
    theirs["image_hidden"][2:] += np.random.default_rng(0).normal(size=hidden[2:].shape)
    found = doctor.diagnose(probe, {"image_hidden": theirs["image_hidden"]}, model)
    assert found.verdict == "unknown" and found.first_stage == "image_hidden[1]"


def test_diagnose_says_unknown_and_what_to_record(model: clip.Clip, probe: Arrays) -> None:
    wrong = features(probe, "image", ("image", "exact-gelu"))
    wrong = wrong + np.random.default_rng(0).normal(size=wrong.shape).astype(np.float32)
    found = doctor.diagnose(probe, {"image_features": wrong}, model)
    assert found.verdict == "unknown" and found.faults == ()
    assert str(found).startswith("unknown difference, first stage that departs: image_features")
    assert "record image_hidden as well" in str(found)


def test_diagnose_knows_weights_of_another_model(probe: Arrays, sound: Arrays) -> None:
    other = parameters.from_flat(flat_params(1), clip.abstract(CONFIG, remat="none"))
    ours = make_probe(flat_params(1), CONFIG)
    theirs = {key: sound[key] for key in ("image_features", "text_features")}
    assert names(doctor.diagnose(ours, theirs, other)) == ["other-weights"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scale-missing", lambda x, t: x / np.exp(t)),
        ("scale-missing", lambda x, t: x / np.exp(t) * (1 + 1e-6)),  # rounded elsewhere
        ("scale-missing", lambda x, t: np.float16(x / np.exp(t))),
        ("scale-not-exponentiated", lambda x, t: x / np.exp(t) * t),
        ("scale-clipped", lambda x, t: x / np.exp(t) * 1.01),
        ("scale-clipped", lambda x, t: x / np.exp(t) * 3.5),
        ("softmax-axis", lambda x, t: x.T),
    ],
)
def test_diagnose_names_faults_of_the_logits(
    name: str, change: Any, model: clip.Clip, probe: Arrays, sound: Arrays
) -> None:
    logits = change(sound["logits_per_image"], 2.1).astype(np.float32)
    assert names(doctor.diagnose(probe, {"logits_per_image": logits}, model)) == [name]


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ({}, "expected one or more of image_features"),
        ({"features": np.zeros((5, 7))}, "got features; record some"),
        ({"image_features": np.full((5, 7), np.nan)}, "got 35 of 35 that are NaN"),
        ({"image_features": np.zeros((4, 7))}, r"expected \[5, 7\], got \[4, 7\]"),
        ({"image_features": np.zeros((5, 9))}, r"expected \[5, 7\], got \[5, 9\]"),
        ({"image_features": np.array(["a"])}, "expected numbers, got"),
        ({"tokens": np.zeros((8, 20)) + 0.5}, "expected whole numbers, got fractions"),
        ({"pixels": np.zeros((5, 30, 3, 30))}, r"expected \[5, 3, 30, 30\] or \[5, 30, 30, 3\]"),
        ({"logits_per_image": np.zeros((5, 5))}, r"expected \[5, 8\]"),
        ({"image_hidden": np.zeros((4, 5, 10, 9))}, r"expected \[layers \+ 1, 5, l, 24\]"),
    ],
)
def test_diagnose_refuses_arrays_in_one_line(
    theirs: Arrays, says: str, model: clip.Clip, probe: Arrays
) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        doctor.diagnose(probe, theirs, model)
    assert "\n" not in str(refused.value)


def test_diagnose_refuses_a_probe_of_another_model(probe: Arrays, sound: Arrays) -> None:
    other = parameters.from_flat(flat_params(1), clip.abstract(CONFIG, remat="none"))
    with pytest.raises(ValueError, match="expected a probe made for these weights, got one for"):
        doctor.diagnose(probe, sound, other)
    with pytest.raises(ValueError, match="got none of meta"):
        doctor.diagnose({k: v for k, v in probe.items() if k != "meta"}, sound, other)
    with pytest.raises(ValueError, match=r"expected what jaxclip\.load returns, got int"):
        doctor.diagnose(probe, sound, 3)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    for content in (b"", b"PK\x03\x04 and no more", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a"):
            read_arrays(path)
    np.savez(path, image_features=np.array([{}], object))
    with pytest.raises(
        ValueError, match="image_features: expected an array of numbers, got a pick"
    ):
        read_arrays(path)
    np.savez(path, image_features=np.zeros(2))
    assert list(read_arrays(path)) == ["image_features"]


# The command --------------------------------------------------------------------------------------


def test_commands_write_a_probe_and_diagnose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way of a user: probe, the script for JAX, diagnose; then a wrong file."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "probe", "--out", "probe.npz"]) == 0
    assert "is there already" in fails_after(capsys, "doctor", "probe", "--out", "probe.npz")
    cli.main(["doctor", "probe", "--script", "jax"])
    script = capsys.readouterr().out.replace("CHECKPOINT", "emoji")
    exec(compile(script, "run_probe.py", "exec"), {})
    assert cli.main(["doctor", "diagnose", "probe.npz", "theirs.npz"]) == 0
    assert capsys.readouterr().out.startswith("agrees within float32 rounding")
    theirs = dict(np.load("theirs.npz"))
    lengths = np.linalg.norm(theirs["text_features"], axis=1, keepdims=True)
    np.savez("wrong.npz", text_features=theirs["text_features"] / lengths)
    assert cli.main(["doctor", "diagnose", "probe.npz", "wrong.npz", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [fault["name"] for fault in found["faults"]] == ["features-normalised"]
    np.savez("empty.npz")
    assert "expected" in fails(capsys, 1, "doctor", "diagnose", "probe.npz", "empty.npz")


def fails_after(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    return fails(capsys, 2, *arguments)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_compile(name: str) -> None:
    lines = [line for line in SCRIPTS[name].splitlines() if line and not line.startswith("#")]
    assert 8 <= len(lines) <= 14 and "theirs.npz" in lines[-1]
    compile(SCRIPTS[name], name, "exec")
