"""The exam of planted faults: the doctor names them from outputs that PyTorch code left.

The outputs are kept in tests/golden/planted_faults.npz; python -m experiments.planted_faults
--record makes them again, from code of which the doctor uses nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.proofs.planted_faults.exam import (
    TARGETS,
    Question,
    examine,
    is_right,
    load_recorded,
    model_and_probe,
    share,
)
from tests.support.tolerances import departure, within

GOLDEN = Path(__file__).parents[1] / "golden" / "planted_faults.npz"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [examine(question, theirs) for question, theirs in load_recorded(GOLDEN).values()]


@pytest.mark.parametrize("kind", TARGETS)
def test_planted_faults_are_named_in_every_ninth_program(kind: str) -> None:
    recorded = [both for both in load_recorded(GOLDEN).values() if both[0].kind == kind]
    for question, theirs in recorded[::9]:
        row = examine(question, theirs)
        assert row["right"], f"{question.name}: {row['said']}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_planted_faults_are_named_as_often_as_the_target_says(
    kind: str, rows: list[dict[str, Any]]
) -> None:
    right, count = share(rows, kind)
    wrong = [f"{r['name']}: {r['said']}" for r in rows if r["kind"] == kind and not r["right"]]
    assert right >= TARGETS[kind] * count, "\n".join(wrong)


def test_planted_faults_are_as_many_as_the_page_says() -> None:
    questions = [question for question, _ in load_recorded(GOLDEN).values()]
    counts = {kind: sum(q.kind == kind for q in questions) for kind in TARGETS}
    assert counts["fault"] >= 55 and counts["pair"] >= 20 and counts["sound"] >= 20
    assert {q.model for q in questions} == {"vit", "vit-gelu", "resnet"}
    assert GOLDEN.stat().st_size < 1 << 20


@pytest.mark.parametrize(
    ("kind", "faults", "verdict", "named"),
    [
        ("fault", ("exact-gelu",), "agrees", []),
        ("fault", ("exact-gelu",), "unknown", []),
        ("fault", ("exact-gelu",), "faults", ["tanh-gelu"]),
        ("fault", ("exact-gelu",), "faults", ["tanh-gelu", "exact-gelu"]),
        ("pair", ("exact-gelu", "no-positions"), "faults", ["exact-gelu"]),
        ("pair", ("exact-gelu", "no-positions"), "faults", ["exact-gelu", "relu"]),
        ("sound", (), "faults", ["exact-gelu"]),
        ("sound", (), "unknown", []),
    ],
)
def test_planted_faults_that_are_missed_count_as_wrong(
    kind: str, faults: tuple[str, ...], verdict: str, named: list[str]
) -> None:
    assert not is_right(Question("", "vit", kind, faults, ()), verdict, named)


@pytest.mark.parity
@pytest.mark.parametrize("model", ["vit", "vit-gelu", "resnet"])
def test_planted_faults_are_recorded_as_torch_computes_them(model: str) -> None:
    pytest.importorskip("torch")
    from experiments.proofs.planted_faults.peers.combinations import cases
    from experiments.proofs.planted_faults.peers.record import record

    recorded = load_recorded(GOLDEN)
    _, probe = model_and_probe(model)
    mine = [c for c in cases() if c.model == model and c.kind == "fault" and c.dtype == "float32"]
    for case in mine[::4]:
        again = record(case.program(), probe, case.keys)
        assert again.keys() == recorded[case.name][1].keys()
        for key, array in recorded[case.name][1].items():
            assert departure(again[key], array) < within("planted faults"), (case.name, key)


@pytest.mark.parity
def test_planted_code_without_a_fault_equals_ours() -> None:
    pytest.importorskip("torch")
    from experiments.proofs.planted_faults.peers.program import Program
    from experiments.proofs.planted_faults.peers.record import record

    for model in ("vit", "vit-gelu", "resnet"):
        clip, probe = model_and_probe(model)
        pixels = np.ascontiguousarray(probe["pixels"].transpose(0, 2, 3, 1))
        ours = {
            "pixels": probe["pixels"],
            "tokens": probe["tokens"],
            "image_features": np.asarray(clip.encode_image(pixels)),
            "text_features": np.asarray(clip.encode_text(probe["tokens"])),
            "logits_per_image": np.asarray(clip(pixels, probe["tokens"])[0]),
        }
        theirs = record(Program(model), probe, tuple(ours))
        for key, array in ours.items():
            assert departure(theirs[key], array) < within("planted faults"), (model, key)
