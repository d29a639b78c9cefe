"""With the core alone every experiment explains itself, or names the extra that it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import EARLIER_NAMES
from experiments.lib import common

ROOT = Path(__file__).parents[2]
LACKING = ("pytest", "torch", "torchvision", "open_clip", "transformers", "sklearn", "resvg_py")
COMMANDS = sorted(
    {path.stem for path in ROOT.glob("experiments/*.py") if '"__main__"' in path.read_text()}
    | {path.parent.name for path in ROOT.glob("experiments/*/__main__.py")}
    | set(EARLIER_NAMES)
)
PROGRAM = f"""
import runpy, sys
class Lacking:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {LACKING}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Lacking)
for command in sys.argv[1].split(","):
    sys.argv[:] = [*command.split(), "--help"]
    try:
        runpy.run_module("experiments." + sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        print("ended", command.replace(" ", "-"), stop.code or 0, flush=True)
"""


def test_help_of_every_experiment_needs_the_core_alone() -> None:
    command = [sys.executable, "-c", PROGRAM, ",".join([*COMMANDS, "bench tokenizer"])]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    ended = [line for line in ran.stdout.splitlines() if line.startswith("ended ")]
    extra = {"make_emoji": "make_emoji needs resvg-py: pip install -e '.[recipes]'"}
    assert "Traceback" not in ran.stderr, ran.stderr
    assert [line.split()[1] for line in ended] == [*COMMANDS, "bench-tokenizer"]
    told = {line.split()[1]: line.partition(line.split()[1])[2].strip() for line in ended}
    assert {name for name, code in told.items() if code != "0"} == set(extra)
    assert told["make_emoji"] == extra["make_emoji"]


def test_a_package_that_no_extra_brings_is_a_fault_of_ours() -> None:
    with pytest.raises(ImportError, match="of ours"):
        common.missing_package(ImportError("of ours", name="jaxclip.nothing"))
    told = common.missing_package(ImportError("no torch", name="torch.nn"))
    assert str(told) == "expected the package torch; pip install -e '.[test,parity]'"
