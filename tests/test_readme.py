"""The README stays true: its Python runs, its commands parse, its file tree is there."""

import re
import shlex
from pathlib import Path

import pytest

from jaxclip import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].split("&&")[-1].strip()
    for block in re.findall(r"```\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.split("#")[0].split("&&")[-1].strip().startswith("jaxclip ")
]


def test_python_example_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "1\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str) -> None:
    assert callable(cli._command(shlex.split(command)[1:]))


def test_there_are_commands_to_parse() -> None:
    assert len(COMMANDS) >= 5
    with pytest.raises(SystemExit):
        cli._command(["classify", "--no-such-flag"])


def test_files_of_the_tree_are_there() -> None:
    tree = README.split("## Files")[1]
    names = re.findall(r"^  (\w+\.py|\w+/)  ", tree, re.M)
    assert len(names) > 10
    for name in names:
        assert (ROOT / "jaxclip" / name).exists(), name
