"""`bench gpu` on a machine without one: it runs at tiny sizes, may be killed, and goes on.

No number is looked at, only that each is there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.bench.gpu import child, command, gradients, page, record, rows

ROOT = Path(__file__).parents[2]
ODD = "tests.support.odd_rows"
PARTS = ("golden", "step", "kernels", "peer", "attention", "gradients", "loss", "inference")


def bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "experiments.bench", "gpu", *arguments]


# The whole command --------------------------------------------------------------------------------


@pytest.mark.slow  # about a minute: a dozen processes, and a step is compiled in three of them
def test_every_row_is_measured_at_a_tiny_size_and_the_second_call_does_nothing(
    tmp_path: Path,
) -> None:
    out = tmp_path / "gpu.json"
    whole = bench("--tiny", "--out", str(out), "--minutes", "30")
    first = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=True)
    kept = record.read(out)
    assert {row["part"] for row in kept} == set(PARTS)
    assert [row for row in kept if "failed" in row] == []
    skipped = {(row["part"], row["settings"].get("kernel")) for row in kept if "skipped" in row}
    assert skipped <= {("attention", "cudnn"), ("peer", None)}
    assert first.stderr.count("\n") == 1 + len(kept)  # a line a row, below that of the card
    assert "MEASURED" in first.stdout and "left out" not in first.stderr
    assert "| attention |" in page.tables(kept) and "dense, 64 pairs" in page.tables(kept)
    before = out.read_bytes()
    second = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.read_bytes() == before and second.stderr.count("\n") == 1


@pytest.mark.slow  # seven processes that import jax
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    whole = bench("--tiny", "--out", str(out), "--parts", "golden", "losses")
    process = subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(record.read(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kept = record.read(out)
    assert 3 <= len(kept) < 6
    subprocess.run(whole, cwd=ROOT, capture_output=True, check=True)
    again = record.read(out)
    assert again[: len(kept)] == kept and len(again) == 6


def test_a_gradient_beyond_its_bound_is_a_failure(monkeypatch) -> None:
    found = gradients.gradients("tiny", 4, "bfloat16")
    assert 1e-4 < found["error"] < gradients.BOUNDS["bfloat16"] and found["arrays"] == 38
    monkeypatch.setitem(gradients.BOUNDS, "bfloat16", found["error"] / 2)
    with pytest.raises(ValueError, match="expected an error of at most"):
        gradients.gradients("tiny", 4, "bfloat16")


def test_neither_side_takes_what_was_compiled_before(monkeypatch) -> None:
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "1")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "0")
    around = command.environment(tiny=False)
    assert around["JAX_ENABLE_COMPILATION_CACHE"] == "0"
    assert around["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] == "1"


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        bench("--out", str(tmp_path / "gpu.json")), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "expected an NVIDIA GPU, got cpu" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    few = ("--minutes", "0.001", "--parts", "golden")
    done = subprocess.run(
        bench("--tiny", "--out", str(tmp_path / "gpu.json"), *few),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "left out, no time: golden: model official-vit" in done.stderr


@pytest.mark.parametrize("given", [["--minutes", "0"], ["--minutes", "nan"], ["--write", "--tiny"]])
def test_nonsense_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_plain_copy_finds_convert() -> None:
    """Without what an editable install maps."""
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    )
    code += "from importlib.util import find_spec\n"
    code += "assert find_spec('jaxclip.convert') is None\n"
    code += "from experiments.bench.gpu.measure import find_convert\n"
    code += "find_convert(); import jaxclip.convert; print(jaxclip.convert.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == ROOT / "convert" / "__init__.py"


# Rows in a process of their own -------------------------------------------------------------------


def outcomes(*named: tuple[str, dict[str, Any]], seconds: float = 60) -> list[child.Outcome]:
    return list(child.run(sys.executable, ODD, named, dict(os.environ), seconds))


def test_a_row_that_fails_or_crashes_leaves_the_others() -> None:
    found = outcomes(
        ("answer", {"number": 1}),
        ("fail", {"message": "RESOURCE_EXHAUSTED: 99 GiB"}),
        ("skip", {"reason": "no such card"}),
        ("lack", {}),
        ("crash", {}),
        ("answer", {"number": 2}),
    )
    assert [list(outcome) for outcome in found] == [
        ["measured"],
        ["failed"],
        ["skipped"],
        ["skipped"],
        ["failed"],
        ["measured"],
    ]
    assert found[1]["failed"] == "out of memory: RESOURCE_EXHAUSTED: 99 GiB"
    assert "no_such_package" in found[3]["skipped"]
    assert "exit code 7: the last words" in found[4]["failed"]
    assert found[0]["measured"]["pid"] != found[5]["measured"]["pid"]


def test_the_time_limit_ends_a_row() -> None:
    began = time.monotonic()
    found = outcomes(("sleep", {"seconds": 60}), ("answer", {"number": 1}), seconds=1.5)
    assert found == [{child.LATE: True}] * 2 and time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
def test_a_child_ends_with_its_parent() -> None:
    code = f"""
import os, sys
from experiments.bench.gpu import child
rows = [("answer", {{"number": 1}}), ("sleep", {{"seconds": 60}})]
for outcome in child.run(sys.executable, {ODD!r}, rows, dict(os.environ), 60):
    print(outcome["measured"]["pid"], flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child lives on")


# The order ----------------------------------------------------------------------------------------


def planned(ends: Callable[[rows.Row], str], *parts: str) -> list[rows.Row]:
    """The rows of a plan in which each ends as `ends` says."""
    done: dict[str, str] = {}
    found = []
    for group in rows.plan(rows.REAL, parts or rows.PARTS, lambda row: done.get(str(row))):
        for row in group:
            done.setdefault(str(row), ends(row))
            found.append(row)
    return found


def test_what_matters_most_is_first() -> None:
    parts = [row.part for row in planned(lambda row: "measured")]
    assert list(dict.fromkeys(parts)) == list(PARTS)
    found = planned(lambda row: "measured", "steps")
    steps = [row.settings["model"] for row in found if row.part == "step"]
    assert steps[:2] == ["ViT-L/14", "ViT-B/32"] and len(set(steps)) == 5
    assert {row.settings["remat"] for row in found if row.part == "step"} == {"none"}


def test_the_next_policy_is_tried_where_one_fails() -> None:
    def ends(row: rows.Row) -> str:
        return "failed" if row.settings.get("remat") in ("none", "products") else "measured"

    found = [row for row in planned(ends, "steps") if row.part == "step"]
    tried = [row.settings["remat"] for row in found if row.settings["model"] == "ViT-B/32"]
    assert tried == ["none", "products_and_attention"]


def test_the_largest_batch_doubles_until_it_fails() -> None:
    def ends(row: rows.Row) -> str:
        return "measured" if row.settings["batch"] <= 600 else "failed"

    found = [r.settings for r in planned(ends, "largest") if r.settings["remat"] == "full"]
    assert [settings["batch"] for settings in found] == [128, 256, 512, 1024, 768]
