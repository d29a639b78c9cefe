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
    commands = [*COMMANDS, "recipes.make_icons", "bench tokenizer"]
    command = [sys.executable, "-c", PROGRAM, ",".join(commands)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    ended = [line for line in ran.stdout.splitlines() if line.startswith("ended ")]
    assert "Traceback" not in ran.stderr, ran.stderr
    assert ended == [f"ended {name.replace(' ', '-')} 0" for name in commands]


@pytest.mark.parametrize("recipe", ["make_emoji", "recipes.make_icons"])
def test_drawing_without_resvg_names_the_extra(recipe: str, tmp_path: Path) -> None:
    program = PROGRAM.replace(', "--help"]', f', "--out", {str(tmp_path / "out.zip")!r}]')
    command = [sys.executable, "-c", program, recipe]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    expected = "expected the package resvg_py; pip install -e '.[recipes]'"
    assert ran.stderr == f"{recipe.rpartition('.')[2]}: {expected}\n"
    assert f"ended {recipe} 1" in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_no_extra_brings_is_a_fault_of_ours() -> None:
    with pytest.raises(ImportError, match="of ours"):
        common.missing_package(ImportError("of ours", name="jaxclip.nothing"))
    told = common.missing_package(ImportError("no torch", name="torch.nn"))
    assert str(told) == "expected the package torch; pip install -e '.[test,parity]'"
