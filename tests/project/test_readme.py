"""The README stays true: its Python runs, its commands parse, its links and files exist."""

import json
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest

from experiments.lib import pages
from experiments.proofs import parity_table, plan
from experiments.recipes import example_drawings
from jaxclip import cli
from jaxclip.config import RELEASED
from jaxclip.data.emoji.pictures import load_emoji
from tests.support.counts import COUNTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LOSSES = (ROOT / "jaxclip" / "losses.py").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [
    line.split("#")[0].split("&&")[-1].strip()
    for language, block in BLOCKS
    for line in block.splitlines()
    if not language and line.split("#")[0].split("&&")[-1].strip().startswith("jaxclip ")
]


def test_python_example_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("examples", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
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


def test_the_section_a_folder_in_words_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its commands, as they stand, on a copy of examples/, which they write an index into."""
    section = README.split("## A folder in words\n")[1].split("\n## ")[0]
    commands = [line.split("  #")[0] for line in section.splitlines() if line[:8] == "jaxclip "]
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.chdir(tmp_path)
    said = {}
    for command in commands:
        words = shlex.split(command)
        assert cli.main(words[1:]) == 0, command
        said[words[1]] = capsys.readouterr().out
    assert list(said) == ["search", "similar", "classify", "embed"]
    assert "rocket.webp" in said["search"] and "page.html" in os.listdir(tmp_path)
    for name in ("bicycle", "cat-face", "hot-beverage", "rocket"):  # of two sizes
        assert f"examples/{name}.png" in said["similar"]
        assert f"examples/drawings/{name}.webp" in said["similar"]
    assert "kinds.csv: 200 pictures, 0 left out" in said["classify"]
    assert "vectors.npz: 200 embeddings of 192" in said["embed"]


def test_the_drawings_are_those_of_the_recipe_and_small() -> None:
    """The bytes of the embedded archive, of the artist whom no training split holds."""
    folder, chosen = ROOT / "examples" / "drawings", example_drawings.choose()
    archive = zipfile.ZipFile(ROOT / "jaxclip" / "data_files" / "emoji.zip")
    assert sorted(path.name for path in folder.glob("*.webp")) == sorted(chosen)
    assert len(chosen) == 200 and set(load_emoji("test").files) >= set(chosen.values())
    for name, member in chosen.items():
        assert (folder / name).read_bytes() == archive.read(member), name
    assert sum(path.stat().st_size for path in folder.glob("*.webp")) < 1e6


def test_extras_are_explained() -> None:
    for extra in ("test", "parity", "tfds", "tensorboard", "gpu", "gpu-plan", "tpu", "recipes"):
        assert f"`{extra}`" in README, extra


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 12
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_nine_lines_of_figure_3_are_the_code() -> None:
    """The right column, line by line, in losses.py; the left one in the same order."""
    rows = re.findall(r"^\| `(\w+ = .*)` \| `(\w+ = .*)` \|$", README, re.M)
    assert [paper.split(" = ")[0] for paper, _ in rows] == [
        *("I_f", "T_f", "I_e", "T_e", "logits", "labels", "loss_i", "loss_t", "loss")
    ]
    code = [line.split("  #")[0].strip() for line in LOSSES.splitlines()]
    assert [line for _, line in rows if line not in code] == []


def test_files_of_the_tree_are_there() -> None:
    tree = README.split("## Files")[1]
    names = re.findall(r"^  (\w+\.py|\w+/)  ", tree, re.M)
    assert len(names) > 10
    for name in names:
        assert (ROOT / "jaxclip" / name).exists(), name


def test_the_parity_table_is_what_the_command_writes() -> None:
    """From its record, docs/parity.json, in which all nine models stand and hold."""
    record = json.loads((ROOT / "docs" / "parity.json").read_text())
    assert list(RELEASED) == [name for name in RELEASED if name in record]
    rows = [record[name] for name in RELEASED]
    written = pages.table_in(ROOT / "docs" / "parity.md", parity_table.COMMAND)
    assert written == parity_table.section(rows)
    for row in rows:
        assert row["holds"] and row["unequal tensors"] == 0
        assert row["parameters"] == COUNTS[row["model"]][2]
        for stage in ("image_features", "text_features", "logits"):
            numbers = row[stage]
            floor = parity_table.FLOOR * numbers["largest"]
            assert numbers["error"] <= 4 * numbers["torch error"] + floor
            assert numbers.get("cosine", 1) >= 0.999999


def test_a_parity_page_elsewhere_is_made_and_only_its_table_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "other.md"
    assert parity_table.main([], page, 0) == 0
    page.write_text(f"before\n{page.read_text()}after\n")
    parity_table.main([], page, 0)
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    page.write_text("a page without marks")
    with pytest.raises(ValueError, match="lacks"):
        parity_table.main([], page, 0)


def test_the_tables_of_plans_are_what_the_command_writes(tmp_path: Path) -> None:
    """From its records, docs/tpu.json and docs/gpu_plan.json."""
    page = tmp_path / "scaling.md"
    page.write_text(plan.PAGE.read_text())
    plan.rewrite(page)
    assert page.read_text() == plan.PAGE.read_text()


def test_the_papers_models_are_planned_for_four_kinds_of_tpu() -> None:
    """With everything computed again; one of the topologies has 256 chips."""
    record = json.loads((ROOT / "docs" / "tpu.json").read_text())
    rows = [row for row in record["rows"] if row["remat"] == "full"]
    assert {row["topology"].split(":")[0] for row in rows} == {"v4", "v5e", "v5p", "v6e"}
    assert {row["model"] for row in rows} >= {"ViT-B/32", "ViT-L/14", "RN50"}
    assert max(row["devices"] for row in rows) == 256
    for row in record["rows"]:
        assert row["batch"] == 32768
        if row["fits"]:
            assert row["logits held"] == []
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
