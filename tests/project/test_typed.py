"""A user's type checker knows the installed package: `py.typed`, annotations, lazy names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """import jax
import jaxclip
import numpy as np
from PIL import Image

model, preprocess = jaxclip.load("ViT-B/32", dtype="bfloat16")
images = np.stack([preprocess(Image.open("cat.png"))])
features: jax.Array = model.encode_image(images)
per_image, per_text = model(images, jaxclip.tokenize(["a cat", "a dog"]))
config: jaxclip.ClipConfig = model.config
fresh: jaxclip.Clip = jaxclip.create(config, 0)
fresh.save("fresh.safetensors")
print(jaxclip.__version__, jaxclip.available_models()[0].lower(), features, per_image, per_text)
"""
MISTAKES = {
    # `load` has an overload for a tower alone
    "call-overload": [
        "jaxclip.load(5)",
        'jaxclip.load("RN50", jit="yes")',
        'jaxclip.load("RN50", unroll=True)',
    ],
    "arg-type": ["jaxclip.tokenize(5)"],
    "call-arg": ["model.encode_image()"],
    "attr-defined": ["jaxclip.no_such_name"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the package as a wheel would install it."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    skip = shutil.ignore_patterns("__pycache__", "data_files")
    shutil.copytree(ROOT / "jaxclip", site / "jaxclip", ignore=skip)
    shutil.copytree(ROOT / "convert", site / "jaxclip" / "convert", ignore=skip)
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("\n".join(others))
    return home / "bin" / "python"


def complaints(python: Path, folder: Path, script: str, *skipped: str) -> list[str]:
    """What `mypy --strict` says of a user's script, line by line."""
    (folder / "script.py").write_text(script)
    config = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in skipped)
    (folder / "mypy.ini").write_text(f"[mypy]\nstrict = True\n{config}")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "script.py"]
    command += ["--python-executable", str(python), "--cache-dir", str(python.parents[1] / "cache")]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not ran.stderr, ran.stderr
    return [line for line in ran.stdout.splitlines() if ": error: " in line]


QUICKLY = ("jax", "flax", "optax", "orbax")  # half a minute to read; their names count as Any


def test_a_strict_script_passes_and_mistakes_do_not(installed: Path, tmp_path: Path) -> None:
    assert complaints(installed, tmp_path, SCRIPT, *QUICKLY) == []
    lines = [line for group in MISTAKES.values() for line in group]
    wrong = complaints(installed, tmp_path, SCRIPT + "\n".join(lines) + "\n", *QUICKLY)
    kinds = [kind for kind, group in MISTAKES.items() for _ in group]
    first = {line.split(":")[1]: line for line in reversed(wrong) if "unused" not in line}
    got = [line.rpartition("[")[2].rstrip("]") for line in reversed(first.values())]
    assert [kind for kind in got if kind in MISTAKES] == kinds, wrong


@pytest.mark.slow
def test_a_strict_script_passes_with_every_import_read(installed: Path, tmp_path: Path) -> None:
    assert complaints(installed, tmp_path, SCRIPT) == []
