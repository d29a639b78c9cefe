"""The annotated CLIP, docs/annotated_clip.py, as one HTML page and a notebook with its pictures.

Question:  how does the paper become a program, sentence by sentence?
Command:   python -m experiments.annotate [--minutes 1] [--out runs/annotated]
Result:    annotated_clip.html, one file that needs no network and no script, and
           annotated_clip.ipynb. About seven minutes on two cores, five of them training.

Needs the extra `docs`. Without it, `python docs/annotated_clip.py` runs the same chapters and
writes the pictures.
"""

import dataclasses
import html
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from experiments.lib import common
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import print_line
from jaxclip.files import require_writable

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "annotated_clip.py"
TEMPLATE = Path(__file__).with_name("template.html")
MINUTES = "ANNOTATED_MINUTES"  # the environment variable that the page reads
PACKAGES = ("jupytext", "nbclient", "ipykernel", "latex2mathml", "mdit_py_plugins", "pygments")


@dataclasses.dataclass(frozen=True)
class Flags:
    minutes: float = 5.0
    """minutes of training in chapter 10, about, on two cores"""
    out: Path = Path("runs/annotated")
    """the folder of both files"""
    force: bool = False
    """write over them"""


def run_cells(notebook: Any, minutes: float) -> None:
    """Run every cell in a fresh kernel; ValueError names the chapter of one that fails."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    # No folders to search for kernels: the user's "python3" may be another Python than this one.
    # ipc: a kernel that no other user of the machine, and no network, can talk to.
    here = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_spec_manager=here, transport="ipc")
    where = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(notebook, km=manager, timeout=None, resources=where)
    try:
        client.execute(env={**os.environ, MINUTES: str(minutes)}, cleanup_kc=True)
    except CellExecutionError as error:
        last = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise ValueError(f"{chapter_of_failure(notebook)} failed: {last}") from None


def chapter_of_failure(notebook: Any) -> str:
    """The title of the chapter whose cell ended in an error."""
    title = "the first cell"
    for cell in notebook.cells:
        found = re.search(r"^## (.*)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        title = f"chapter {found[1]}" if found else title
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            return title
    return title


# The page -----------------------------------------------------------------------------------------


def markdown_renderer() -> Callable[[str], str]:
    """Markdown to HTML, with equations as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def equation(latex: str, options: dict[str, Any]) -> str:
        display = "block" if options["display_mode"] else "inline"
        return convert(latex, display=display)

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.use(dollarmath_plugin, renderer=equation).use(anchors_plugin, max_level=2)
    return parser.render


def picture(output: Any) -> str | None:
    """An output that is a picture, as an element whose data are inside; None for another."""
    if "image/png" not in output.get("data", {}):
        return None
    alt = output.metadata.get("image/png", {}).get("alt", "")
    content = output.data["image/png"].replace("\n", "")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{content}">'


def render_cells(notebook: Any) -> list[dict[str, Any]]:
    """What the template shows of each cell: its text, or its code and what the code showed."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    markdown, lexer, formatter = markdown_renderer(), PythonLexer(), HtmlFormatter()
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cells.append({"text": markdown(cell.source)})
            continue
        pictures = [found for output in cell.outputs if (found := picture(output))]
        cells.append(
            {
                "code": highlight(cell.source, lexer, formatter),
                "hidden": cell.metadata.get("jupyter", {}).get("source_hidden", False),
                "printed": "".join(output.get("text", "") for output in cell.outputs),
                "pictures": pictures,
            }
        )
    return cells


def render(notebook: Any) -> str:
    """A notebook whose cells were run, as one HTML page."""
    from pygments.formatters import HtmlFormatter

    cells = render_cells(notebook)
    titles = re.findall(
        r'<h2 id="([^"]*)">(.*?)</h2>', "".join(cell.get("text", "") for cell in cells)
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        cells=cells, titles=titles, colours=HtmlFormatter().get_style_defs(".highlight")
    )


def work(flags: Flags) -> None:
    """Run the page and write both files."""
    for package in PACKAGES:  # all now: the last is used minutes after the first
        importlib.import_module(package)
    import jupytext
    import nbformat

    if not 0 < flags.minutes <= 600:
        raise ValueError(f"--minutes: expected more than 0, up to 600, got {flags.minutes:g}")
    targets = [flags.out / f"{PAGE.stem}.{kind}" for kind in ("ipynb", "html")]
    for target in targets:
        if target.exists() and not flags.force:
            raise ValueError(f"{target} is there already; add --force or another --out")
    flags.out.mkdir(parents=True, exist_ok=True)
    require_writable(targets[0])
    notebook = jupytext.read(PAGE)
    run_cells(notebook, flags.minutes)
    for target, content in zip(targets, (nbformat.writes(notebook), render(notebook)), strict=True):
        with replacing(target) as temporary:
            temporary.write_text(content, encoding="utf-8")
        print_line(f"wrote {target}, {target.stat().st_size / 1e6:.1f} MB")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run_experiment(work, Flags, given, "annotate", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
