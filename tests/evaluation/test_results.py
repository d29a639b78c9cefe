"""What an experiment leaves behind: written whole, read back the same, refused when not sound."""

from __future__ import annotations

import itertools
import json
import zipfile

import numpy as np
import pytest

from jaxclip.data.stream import Skips
from jaxclip.evaluation import results
from jaxclip.evaluation.resumable import KeptBlocks

RESULT = {
    "experiment": "zero_shot",
    "data": "d",
    "model": "m",
    "metric": "top1",
    "value": 0.5,
    "interval": [0.4, 0.6],
    "versions": {},
    "date": "2026-01-01T00:00:00+00:00",
    "classes": ["a", "ä"],
}
RNG = np.random.default_rng(0)
PREDICTIONS = {
    "label": np.array([0, 1, 1]),
    "top": np.array([[0, 1], [0, 1], [1, 0]]),
    "score": RNG.normal(size=(3, 2)).astype(np.float32),
    "where": np.array(["x.png", "a longer name.png", "ü"]),
    "confusion": np.array([[1, 0], [1, 1]]),
}


def same(found: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(found[name], PREDICTIONS[name]) for name in results.ARRAYS)


def test_what_is_saved_is_loaded(tmp_path):
    results.save(tmp_path / "new", RESULT, PREDICTIONS)
    result, predictions = results.load(tmp_path / "new")
    assert result == RESULT and same(predictions)
    results.save(tmp_path / "new", {**RESULT, "value": 0.6}, None)
    result, predictions = results.load(tmp_path / "new")
    assert result["value"] == 0.6 and same(predictions)
    results.save(tmp_path / "other", RESULT, None)
    assert results.load(tmp_path / "other") == (RESULT, None)


@pytest.mark.parametrize("cuts", [(0, 3), (0, 1, 3), (0, 0, 2, 2, 3)])
def test_blocks_joined_are_the_whole(tmp_path, cuts):
    """Also with empty blocks, and with texts that are wider in a later one."""
    blocks = KeptBlocks(tmp_path / "parts", {}, Skips(0))
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        block = {name: PREDICTIONS[name][start:stop] for name in results.ARRAYS[:4]}
        if start == stop:  # as a block without usable rows is written
            block["where"] = np.array([], np.str_)
            block["top"] = np.zeros((0, 2), np.int64)
        block["where"] = np.array(block["where"].tolist(), np.str_)
        blocks.paths.append(tmp_path / "parts" / f"{number:08d}.npz")
        np.savez(blocks.paths[-1], **block)
    found = blocks.join(*results.ARRAYS[:4]) | {"confusion": PREDICTIONS["confusion"]}
    results.save(tmp_path, RESULT, found)
    loaded = results.load(tmp_path)[1]
    assert same(loaded)
    assert {name: loaded[name].dtype for name in loaded} == {
        n: x.dtype for n, x in PREDICTIONS.items()
    }


def test_predictions_written_member_by_member_are_still_read(tmp_path):
    """As versions before 0.2 wrote them: a zip of .npy members with headers of their own."""
    results.save(tmp_path, RESULT, None)
    with zipfile.ZipFile(tmp_path / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in PREDICTIONS.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(array.tobytes())
    assert same(results.load(tmp_path)[1])


@pytest.mark.parametrize("missing", ["interval", "date", "where"])
def test_a_result_that_lacks_something_is_not_written(tmp_path, missing):
    result = {k: v for k, v in RESULT.items() if k != missing}
    predictions = {k: v for k, v in PREDICTIONS.items() if k != missing}
    with pytest.raises(ValueError, match=missing):
        results.save(tmp_path / "out", result, predictions)
    assert not (tmp_path / "out").exists()


def test_a_number_that_is_none_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        results.save(tmp_path, {**RESULT, "value": float("nan")}, None)
    assert not (tmp_path / "result.json").exists()


def test_what_is_no_result_is_refused_with_its_path(tmp_path):
    with pytest.raises(ValueError, match=r"no result\.json"):
        results.load(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"no result\.json"):
        results.load(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"model": "m"}))
    with pytest.raises(ValueError, match="is not a result"):
        results.load(tmp_path)
    results.save(tmp_path, RESULT, PREDICTIONS)
    content = (tmp_path / "predictions.npz").read_bytes()
    (tmp_path / "predictions.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="run the experiment again"):
        results.load(tmp_path)
