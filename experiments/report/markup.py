"""The pieces of a report: HTML that needs nothing from elsewhere. Every text is escaped here."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem;
     border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p.note { color: #666; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: left;
        border-bottom: 1px solid #eee; vertical-align: top; overflow-wrap: break-word; }
th { font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img.plot { max-width: 100%; height: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; width: 8.2rem; font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
figure img { width: 8.2rem; height: 8.2rem; object-fit: contain; image-rendering: pixelated;
             background: #f4f4f4; border: 3px solid #ccc; box-sizing: border-box; }
figure.right img { border-color: #2a8a3e; } figure.wrong img { border-color: #c0392b; }
table.matrix td { text-align: center; vertical-align: middle; min-width: 3.2rem;
                  border: 1px solid #fff; }
table.matrix th { font-weight: 400; font-size: .8rem; max-width: 8rem; }
table.matrix img { width: 3rem; height: 3rem; object-fit: contain; image-rendering: pixelated; }
"""


def text(value: Any) -> str:
    """Anything as escaped text."""
    return html.escape(str(value), quote=True)


def page(title: str, sections: Sequence[tuple[str, str]], lead: str = "") -> str:
    """A whole document: (heading, HTML) of every section that has content."""
    parts = [f"<h2>{text(name)}</h2>\n{content}" for name, content in sections if content]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{lead}\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def note(words: str) -> str:
    """A paragraph in grey."""
    return f'<p class="note">{text(words)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; what is a number stands to the right."""
    if not rows:
        return ""

    def cell(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"<td>{text(value)}</td>"
        shown = f"{value:.6g}" if isinstance(value, float) else value
        return f'<td class="number">{text(shown)}</td>'

    top = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "\n".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n{body}\n</table></div>'


def png(image: np.ndarray) -> str:
    """uint8 [h, w, 3] -> a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def plot(figure: Any, words: str) -> str:
    """A matplotlib figure as an inlined picture; `words` say what it shows."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return f'<img class="plot" alt="{text(words)}" src="{source}">'


def pictures(items: Sequence[tuple[np.ndarray, str, str]]) -> str:
    """(image uint8 [h, w, 3], caption, "right", "wrong" or "") side by side."""
    figures = [
        f'<figure class="{text(kind)}"><img alt="{text(caption)}" src="{png(image)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for image, caption, kind in items
    ]
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def matrix(images: Sequence[np.ndarray], names: Sequence[str], values: np.ndarray) -> str:
    """Pictures down, names across, values [n, m] as cells coloured from white to blue."""
    low, high = float(values.min()), float(values.max())
    head = "<th></th>" + "".join(f"<th>{text(name)}</th>" for name in names)
    rows = []
    for image, row in zip(images, values, strict=True):
        cells = []
        for value in row:
            share = (value - low) / (high - low) if high > low else 0.0
            colour = "#fff" if share > 0.6 else "#222"
            shade = ",".join(str(round(255 - share * (255 - c))) for c in (31, 90, 160))
            cells.append(f'<td style="background:rgb({shade});color:{colour}">{value:.2f}</td>')
        rows.append(f'<tr><td><img alt="" src="{png(image)}"></td>{"".join(cells)}</tr>')
    body = "\n".join(rows)
    return f'<div class="scroll"><table class="matrix">\n<tr>{head}</tr>\n{body}\n</table></div>'
