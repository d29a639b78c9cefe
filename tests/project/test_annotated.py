"""The annotated CLIP: complete chapters, links to the source and back, one page without a network.

That the chapters run and their checks hold is shown by .ci/run, which renders the whole page.
"""

import ast
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.annotate import __main__ as annotate

ROOT = Path(__file__).parents[2]
SOURCE = annotate.PAGE.read_text()
TITLES = (
    "Bytes to tokens",
    "A picture to patches",
    "Attention",
    "The two towers",
    "Figure 3, line by line",
    "The temperature, learned and logarithmic",
    "Why the loss is symmetric",
    "Why batches are large",
    "The gradient by hand",
    "Training, and the similarity matrix",
    "Zero-shot and prompts",
    "The loss on many devices",
    "Where the released code differs from the paper",
    "Exercises",
)
PARTS = {  # of every chapter but the exercises
    "quotation": r"^# > (\.\.\. )?\w",
    "where it stands": r"^# > (Section|Figure) \d",
    "equation": r"^# \$\$",
    "picture": r'^show\(figure, "\d\d-[\w-]+", "',
    "check": r"^ *check\($|^ *check\(\S",
    "mistake": r"mistake",
    "what to read": r"^# \*\*Read next in the source:\*\*",
}
EXTERNAL = re.compile(r"""(?:src|href)=["'](?!data:|#)([^"']*)|url\(|@import|<script""")


def chapters(source: str) -> dict[str, str]:
    """{"1, Bytes to tokens": its cells}."""
    parts = re.split(r"^# ## (\d+)\. (.*)$", source, flags=re.M)
    return {f"{n}, {t}": b for n, t, b in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def lacking(chapter: str) -> list[str]:
    """The parts that a chapter does not have."""
    return [name for name, pattern in PARTS.items() if not re.search(pattern, chapter, re.M)]


def links_to_source(source: str) -> set[tuple[str, str]]:
    """(module, chapter) of every "Read next in the source"."""
    found = set()
    for chapter, body in chapters(source).items():
        for line in re.findall(r"\*\*Read next in the source:\*\*(.*?)(?=\n\n|\Z)", body, re.S):
            found |= {(module, chapter) for module in re.findall(r"`(jaxclip[.\w]*)`", line)}
    return found


def links_from_source() -> set[tuple[str, str]]:
    """(module, chapter) of every docstring of a module that names a chapter."""
    found = set()
    for file in [*ROOT.glob("jaxclip/**/*.py"), *ROOT.glob("convert/**/*.py")]:
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(["jaxclip", *parts] if parts[0] == "convert" else parts)
        line = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("Annotated: ")[2]
        chapters_of = re.findall(r'chapter (\d+), "([^"]+)"', line)
        found |= {(name.removesuffix(".__init__"), f"{n}, {title}") for n, title in chapters_of}
    return found


CORE = {"jax", "jaxclip", "matplotlib", "numpy", "optax", "PIL"}


def imported(source: str) -> set[str]:
    """The packages that a program imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_program_needs_the_core_alone() -> None:
    notebooks = {"IPython"}  # imported inside of one only
    assert imported(SOURCE) - sys.stdlib_module_names == CORE | notebooks
    assert imported("import torch.nn\nfrom sklearn import svm") == {"torch", "sklearn"}


def test_the_chapters_are_there_in_order() -> None:
    assert list(chapters(SOURCE)) == [f"{n}, {title}" for n, title in enumerate(TITLES, 1)]


@pytest.mark.parametrize("number", range(1, len(TITLES)))
def test_a_chapter_is_complete(number: int) -> None:
    assert lacking(chapters(SOURCE)[f"{number}, {TITLES[number - 1]}"]) == []


def test_an_incomplete_chapter_is_found() -> None:
    chapter = chapters(SOURCE)["7, Why the loss is symmetric"]
    assert lacking(chapter.replace("# > Section", "# > section")) == ["where it stands"]
    assert lacking(re.sub(r"^ *check\(", "compare(", chapter, flags=re.M)) == ["check"]


def test_exercises_have_folded_answers() -> None:
    exercises = chapters(SOURCE)["14, Exercises"]
    asked = re.findall(r"^# \*\*(\d+)\.\*\*", exercises, re.M)
    assert asked == [str(n) for n in range(1, len(asked) + 1)] and len(asked) >= 8
    assert exercises.count("<details><summary>Answer</summary>") == len(asked)
    assert exercises.count("# </details>") == len(asked)


def test_chapters_and_modules_name_each_other() -> None:
    forth, back = links_to_source(SOURCE), links_from_source()
    assert forth == back
    linked = {chapter for _, chapter in forth}
    assert linked == set(list(chapters(SOURCE))[:-1])
    modules = {module for module, _ in forth}
    assert modules >= {f"jaxclip.{name}" for name in ("reference", "losses", "training.step")}
    assert modules >= {f"jaxclip.models.{name}" for name in ("layers", "vit", "text", "clip")}


def test_a_missing_link_is_found() -> None:
    assert links_to_source(SOURCE.replace("`jaxclip.losses`", "`losses`")) != links_from_source()


# The rendering ------------------------------------------------------------------------------------

LITTLE = r"""# %% [markdown]
# # A page
#
# ## 1. One & one
#
# A table and $e^t$:
#
# | a | b |
# |---|---|
# | 1 | 2 |
#
# $$\sum_{ij} G_{ij} L_{ij}$$
#
# <details><summary>Answer</summary>
#
# It is *two*.
#
# </details>

# %%
import os

print(os.environ["ANNOTATED_MINUTES"], "< minutes")

# %% jupyter={"source_hidden": true}
import base64

from IPython.display import Image, display

# the smallest PNG
content = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
display(Image(content, alt="a dot"))
"""


class Page(HTMLParser):
    """The tags of a page; an error where they do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_one_file_with_equations_pictures_and_folded_answers() -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.reads(LITTLE, fmt="py:percent")
    annotate.run_cells(notebook, 0.25)
    text = annotate.render(notebook)
    page = Page(text)
    assert not EXTERNAL.search(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("math") == 2 and tags.count("table") == 1
    assert tags.count("details") == 2  # the answer, and the code of the picture
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == "a dot" and image["src"].startswith("data:image/png;base64,")
    assert "0.25 &lt; minutes" in text and "<em>two</em>" in text
    (link,) = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert f'id="{link[1:]}"' in text


def test_what_would_need_a_network_is_found() -> None:
    for text in ('<img src="x.png">', '<a href="https://x">', "<script>", "url(x.woff)"):
        assert EXTERNAL.search(text)
    assert not EXTERNAL.search('<img src="data:image/png;base64,x"><a href="#x">')


def test_a_cell_that_fails_names_its_chapter() -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.reads(LITTLE + "\n# %%\nassert 1 == 2, 'apart'\n", fmt="py:percent")
    with pytest.raises(ValueError, match=r"^chapter 1\. One & one failed: AssertionError: apart$"):
        annotate.run_cells(notebook, 1)


def test_every_equation_of_the_page_becomes_mathml() -> None:
    pytest.importorskip("latex2mathml")
    jupytext = pytest.importorskip("jupytext")
    markdown = annotate.markdown_renderer()
    cells = jupytext.read(annotate.PAGE).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    pages = "".join(markdown(text) for text in texts)
    Page(pages)
    assert pages.count('display="block"') == sum(text.count("$$") for text in texts) // 2 >= 13
    assert "$" not in pages and "\\" not in re.sub(r"<code>.*?</code>", "", pages, flags=re.S)


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotated_clip.html").write_text("mine")
    pytest.importorskip("jupytext")
    assert annotate.main(["--out", str(tmp_path)]) == 1
    assert "is there already; add --force" in capsys.readouterr().err
    assert annotate.main(["--out", str(tmp_path / "new"), "--minutes", "0"]) == 1
    assert "--minutes: expected more than 0" in capsys.readouterr().err
