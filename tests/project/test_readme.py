"""The README stays true: its Python runs, its commands parse, its file tree is there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from experiments.lib import pages
from experiments.proofs import parity_table
from experiments.proofs import tpu_plan as plan
from jaxclip import cli
from jaxclip.config import RELEASED
from tests.support.counts import COUNTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [
    line.split("#")[0].split("&&")[-1].strip()
    for language, block in BLOCKS
    for line in block.splitlines()
    if not language and line.split("#")[0].split("&&")[-1].strip().startswith("jaxclip ")
]


def test_python_example_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = [block for language, block in BLOCKS if language == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "1\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str) -> None:
    assert callable(cli._command(shlex.split(command)[1:]))


def test_there_are_commands_to_parse() -> None:
    assert len(COMMANDS) >= 12
    with pytest.raises(SystemExit):
        cli._command(["classify", "--no-such-flag"])


def test_continuous_integration_runs_what_the_readme_says() -> None:
    """Its test command as it stands, and each command that needs no network, no extra, no hour."""
    script = (ROOT / ".ci" / "run").read_text()
    tests = next(line for line in README.splitlines() if "pytest" in line)
    for part in tests.split("&&"):
        words = part.strip().replace("pip install -e ", "")
        assert words in script, words
    ours = {shlex.split(command)[1] for command in COMMANDS}
    ran = set(re.findall(r"^    jaxclip (\w+)", script, re.M))
    assert ours - ran == {"plan"} and ours >= {"train", "tokenize", "embed", "evaluate", "convert"}


def test_extras_are_explained() -> None:
    for extra in ("test", "parity", "tfds", "tensorboard", "gpu", "tpu", "recipes"):
        assert f"`{extra}`" in README.split("## From Python")[0], extra


def test_files_of_the_tree_are_there() -> None:
    tree = README.split("## Files")[1]
    names = re.findall(r"^  (\w+\.py|\w+/)  ", tree, re.M)
    assert len(names) > 10
    for name in names:
        assert (ROOT / "jaxclip" / name).exists(), name


def test_a_parity_page_elsewhere_leaves_the_readme_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    monkeypatch.setattr(parity_table, "ROOT", tmp_path)
    assert parity_table.main([], tmp_path / "other.md", 0) == 0
    assert readme.read_text() == (ROOT / "README.md").read_text()
    monkeypatch.setattr(parity_table, "PAGE", tmp_path / "own.md")
    parity_table.main([], tmp_path / "own.md", 0)
    assert readme.read_text() != (ROOT / "README.md").read_text()


def test_the_parity_tables_are_what_the_command_writes() -> None:
    """From its record, docs/parity.json, in which all nine models stand and hold."""
    record = json.loads((ROOT / "docs" / "parity.json").read_text())
    assert list(RELEASED) == [name for name in RELEASED if name in record]
    rows = [record[name] for name in RELEASED]
    written = pages.table_in(ROOT / "README.md", parity_table.COMMAND)
    assert written == parity_table.short_table(rows)
    assert (ROOT / "docs" / "parity.md").read_text() == parity_table.page(rows)
    for row in rows:
        assert row["holds"] and row["unequal tensors"] == 0
        assert row["parameters"] == COUNTS[row["model"]][2]
        for stage in ("image_features", "text_features", "logits"):
            numbers = row[stage]
            floor = parity_table.FLOOR * numbers["largest"]
            assert numbers["error"] <= 4 * numbers["torch error"] + floor
            assert numbers.get("cosine", 1) >= 0.999999


def test_the_table_of_the_tpus_is_what_the_command_writes() -> None:
    """From its record, docs/tpu.json: three models on four kinds of TPU, one of 256 chips."""
    record = json.loads((ROOT / "docs" / "tpu.json").read_text())
    for page in plan.PAGES:
        assert pages.table_in(page, plan.COMMAND) == plan.table(record)
    rows = record["rows"]
    assert {row["topology"].split(":")[0] for row in rows} == {"v4", "v5e", "v5p", "v6e"}
    assert {row["model"] for row in rows} == {"ViT-B/32", "ViT-L/14", "RN50"} and len(rows) == 12
    assert max(row["devices"] for row in rows) == 256
    for row in rows:
        assert row["fits"] and row["logits held"] == [] and row["batch"] == 32768
        assert row["collectives"]["collective-permute"]["count"] > 0


def test_a_page_without_its_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{pages.begin('a command')}\n{pages.END}\nafter\n")
    pages.write_table(page, "a command", "| 1 |")
    assert pages.table_in(page, "a command") == "| 1 |"
    pages.write_table(page, "a command", "| 2 |")
    assert page.read_text() == f"before\n{pages.begin('a command')}\n| 2 |\n{pages.END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        pages.write_table(page, "another command", "| 3 |")
    assert "| 2 |" in page.read_text()
