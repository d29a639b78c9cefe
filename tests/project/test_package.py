"""What importing and installing jaxclip promises."""

import configparser
import doctest
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import jaxclip

ROOT = Path(__file__).parents[2]
EXTRAS = {"test", "plots", "tfds", "tensorboard", "parity", "hub", "gpu", "gpu-plan"}
EXTRAS |= {"tpu", "recipes", "docs", "parquet", "demo"}

LIST_NEW_MODULES = """
import sys
before = set(sys.modules)
import jaxclip
import json
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def python(code: str, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def copy_source(target: Path) -> None:
    """The files that the wheel is made of, so that building leaves nothing in the working tree."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("jaxclip", "convert", "licenses"):
        shutil.copytree(ROOT / folder, target / folder, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "NOTICE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built with setuptools alone: no network."""
    source = tmp_path_factory.mktemp("source")
    copy_source(source)
    build = "import setuptools.build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    (source / "dist").mkdir()
    python(build, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def expected_files() -> set[str]:
    """Every file of ours that must be installed, under its installed name."""
    code = {f.relative_to(ROOT).as_posix() for f in ROOT.glob("jaxclip/**/*.py")}
    convert = {f"jaxclip/{f.relative_to(ROOT).as_posix()}" for f in ROOT.glob("convert/**/*.py")}
    data = {f for f in ROOT.glob("jaxclip/data_files/**/*") if f.is_file()}
    return code | convert | {"jaxclip/py.typed"} | {f.relative_to(ROOT).as_posix() for f in data}


def test_importing_jaxclip_imports_no_library() -> None:
    new = json.loads(python(LIST_NEW_MODULES))
    libraries = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert libraries == {"jaxclip"}
    assert len(new) < 60  # a few of the standard library's


def test_importing_jaxclip_imports_nothing_else_of_ours() -> None:
    new = json.loads(python(LIST_NEW_MODULES))
    assert [name for name in new if name.startswith("jaxclip")] == ["jaxclip"]


def test_a_library_would_be_noticed() -> None:
    new = json.loads(python(LIST_NEW_MODULES.replace("import jaxclip", "import numpy")))
    assert "numpy" in new


@pytest.mark.parametrize("name", jaxclip.__all__)
def test_public_names_resolve(name: str) -> None:
    home = jaxclip._HOMES.get(name, "jaxclip")
    if importlib.util.find_spec(home) is None:
        pytest.skip(f"{home} is not written yet")
    assert getattr(jaxclip, name) is not None
    assert name in dir(jaxclip)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'jaxclip' has no attribute 'clip_loss'"):
        _ = jaxclip.clip_loss


def modules() -> list[str]:
    """Every module of ours that can be imported without running a program."""
    names = [f.removesuffix(".py") for f in sorted(expected_files()) if f.endswith(".py")]
    importable = [name for name in names if not name.endswith("/__main__")]
    return [name.removesuffix("/__init__").replace("/", ".") for name in importable]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str) -> None:
    if name == "jaxclip.demo.page":
        pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[demo]'")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == expected_files()


def test_wheel_installs_nothing_beside_jaxclip(wheel: zipfile.ZipFile) -> None:
    """So `import convert` means somebody else's package, or none."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxclip"}


def test_wheel_carries_command_and_licences(wheel: zipfile.ZipFile) -> None:
    info = {n.split(".dist-info/")[1]: n for n in wheel.namelist() if ".dist-info/" in n}
    assert "jaxclip = jaxclip.__main__:main" in wheel.read(info["entry_points.txt"]).decode()
    texts = {f"licenses/licenses/{f.name}" for f in ROOT.glob("licenses/*")}
    assert {"licenses/LICENSE", "licenses/NOTICE"} | texts <= set(info)


def test_wheel_declares_the_extras(wheel: zipfile.ZipFile) -> None:
    metadata = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    declared = re.findall(r"^Provides-Extra: (\S+)$", wheel.read(metadata).decode(), re.MULTILINE)
    assert set(declared) == EXTRAS


def test_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("jaxclip/convert/", "convert/") for name in expected_files()}
    assert wanted | {"setup.cfg", "pyproject.toml", "LICENSE", "NOTICE"} <= names


def test_the_version_is_printed_and_is_that_of_changelog_and_citation() -> None:
    for command in (["-m", "jaxclip"], ["-c", "import jaxclip.__main__ as m; m.main()"]):
        run = [sys.executable, *command, "--version"]
        printed = subprocess.run(run, check=True, capture_output=True, text=True)
        assert (printed.stdout, printed.stderr) == (f"jaxclip {jaxclip.__version__}\n", "")
    newest = re.findall(r"^## (\S+) \(.+\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert newest == cited == jaxclip.__version__


def test_constraints_hold_every_requirement_at_an_allowed_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = [config["options"]["install_requires"], extras["parity"]]
    for requirement in "\n".join(wanted).split():
        name, least = re.match(r"([\w-]+)(?:[=>]=(\S+))?$", requirement).groups()
        if name == "packaging":  # of no influence on a number
            continue
        numbers = [tuple(map(int, v.split("+")[0].split("."))) for v in (pinned[name], least)]
        assert numbers[0] >= numbers[1], requirement


def test_every_requirement_of_the_core_has_a_lower_bound() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    core = config["options"]["install_requires"].split()
    assert [requirement for requirement in core if ">=" not in requirement] == []


@pytest.mark.parametrize("text", (ROOT / "NOTICE").read_text(encoding="utf-8").split("\n\n\n")[1:])
def test_notice_sections_name_origin_licence_and_changes(text: str) -> None:
    missing = [word for word in ("What:", "From:", "Licence:", "Changes:") if word not in text]
    assert missing == []
    for file in re.findall(r"licenses/\S+\.txt", text):
        assert (ROOT / file).exists()
