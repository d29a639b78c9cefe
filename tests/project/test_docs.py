"""The pages stay true: the Python of docs/python.md runs, every link leads somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jaxclip import cli

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
TASKS = (
    "Load",
    "Compile",
    "Differentiate",
    "Fine-tune with your own optax loop",
    "Freeze a tower",
    "Save",
    "Reload",
    "bfloat16",
    "Shard over a mesh",
    "Export with a symbolic batch",
    "Condition Stable Diffusion",
)


def anchor(title: str) -> str:
    """A heading's name in links, as the usual renderers make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def reached_from(first: Path) -> set[Path]:
    """The pages that a reader finds by links alone."""
    seen: set[Path] = set()
    waiting = [first]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", page.read_text())
        waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    return seen


def test_every_page_is_reached_from_the_readme() -> None:
    assert {page.resolve() for page in PAGES} <= reached_from((ROOT / "README.md").resolve())


def test_a_page_without_a_link_is_not_reached(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("[one](one.md) [away](https://example.org/two.md)")
    for name in ("one", "two"):
        (tmp_path / f"{name}.md").write_text("[back](README.md#top)")
    found = reached_from(tmp_path / "README.md")
    assert {page.name for page in found} == {"README.md", "one.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+://", link):
            continue
        path, _, part = link.partition("#")
        target = page.parent / path if path else page
        titles = (
            re.findall(r"^#+ (.*)$", target.read_text(), re.M) if target.suffix == ".md" else []
        )
        if not target.exists() or (part and part not in map(anchor, titles)):
            wrong.append(link)
    assert wrong == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, which is not imported, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        if importlib.util.find_spec(name) is not None:
            return True
    except ModuleNotFoundError:  # the parent is no package
        pass
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_and_modules_are_there(page: Path) -> None:
    """But for the log and the changelog, which name what once was."""
    if page.parent.name == "log" or page.name == "CHANGELOG.md":
        return
    text = page.read_text()
    files = re.findall(r"`((?:jaxclip|convert|experiments|tests|docs)/[\w./-]+)[`:]", text)
    assert [name for name in files if not list(ROOT.glob(name.rstrip("/")))] == []
    names = re.findall(r"`(?:python -m )?((?:jaxclip|experiments)(?:\.\w+)+)[`( ]", text)
    assert [name for name in names if not resolves(name)] == []


def test_a_name_that_is_not_there_is_found() -> None:
    assert resolves("jaxclip.losses.figure_3") and resolves("experiments.bench")
    assert not resolves("jaxclip.losses.figure_4") and not resolves("experiments.benches")


COMMANDS = [
    line.split("#")[0].replace("...", "").strip()
    for page in ROOT.glob("docs/*.md")
    for block in re.findall(r"^```\n(.*?)^```$", page.read_text(), re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("jaxclip ")
]


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_command_parses(command: str) -> None:
    assert callable(cli._command(shlex.split(command)[1:]))


@pytest.mark.usefixtures("quick_compiling")
def test_the_tasks_of_a_researcher_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block of docs/python.md, one after the other, prints what its comments say."""
    page = (ROOT / "docs" / "python.md").read_text()
    assert re.findall(r"^## \d+\. (.*)$", page, re.M) == list(TASKS)
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    assert len(blocks) >= len(TASKS)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        said = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
        exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        assert all(line in printed for line in said), (block, printed)
    assert (tmp_path / "tuned.safetensors").stat().st_size > 1e6
