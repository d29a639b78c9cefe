"""The README stays true: its Python runs, its commands parse, its file tree is there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from experiments import parity_table
from jaxclip import cli
from jaxclip.config import RELEASED
from tests.test_models import COUNTS

ROOT = Path(__file__).parents[1]
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


def test_files_of_the_tree_are_there() -> None:
    tree = README.split("## Files")[1]
    names = re.findall(r"^  (\w+\.py|\w+/)  ", tree, re.M)
    assert len(names) > 10
    for name in names:
        assert (ROOT / "jaxclip" / name).exists(), name


def test_the_parity_tables_are_what_the_command_writes() -> None:
    """From its record, docs/parity.json, in which all nine models stand and hold."""
    record = json.loads((ROOT / "docs" / "parity.json").read_text())
    assert list(RELEASED) == [name for name in RELEASED if name in record]
    rows = [record[name] for name in RELEASED]
    written = README.split(parity_table.BEGIN)[1].split(parity_table.END)[0].strip()
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
