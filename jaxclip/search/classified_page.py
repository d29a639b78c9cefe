"""One self-contained HTML page of classified pictures: thumbnails, labels and bars, no script."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxclip.search.page import POLICY, STYLE, escaped, thumbnail

if TYPE_CHECKING:
    from jaxclip.evaluation.classified import ClassifiedPicture, LabelScore

BARS = """
.bars{border-collapse:collapse;border:0 !important;font-size:13px;width:100%}
.bars tr,.bars td{border:0 !important;padding:2px 8px 2px 0;white-space:nowrap}
.bars td:first-child{overflow-wrap:break-word;white-space:normal;min-width:7em}
.bars .bar{width:45%}.bars .bar div{height:10px;background:#3b82f6;min-width:1px}"""
ROWS = """
section{display:grid;grid-template-columns:220px minmax(0,560px);gap:24px;margin:0 0 28px}
.name{font-size:13px;overflow-wrap:anywhere;margin:4px 0}"""


def label_bars(labels: Sequence["LabelScore"]) -> str:
    """A table of labels in the given order: a bar, the probability, the cosine."""
    rows = (
        f"<tr><td>{escaped(x.label)}</td>"
        f'<td class="bar"><div style="width:{100 * x.probability:.1f}%"></div></td>'
        f"<td>{100 * x.probability:.1f} %</td><td>cosine {x.cosine:.3f}</td></tr>"
        for x in labels
    )
    return f'<table class="bars">{"".join(rows)}</table>'


def remarks(row: "ClassifiedPicture") -> str:
    """What has to be told about a row's labels, a line each."""
    return "".join(f'<p class="name">{escaped(remark)}</p>' for remark in row.remarks)


def _section(row: "ClassifiedPicture") -> str:
    source = thumbnail(row.picture)
    picture = f'<img src="{source}" alt="">' if source else "(cannot be read any more)"
    return (
        f'<section><div>{picture}<p class="name">{escaped(row.picture)}</p></div>'
        f"<div>{label_bars(row.labels)}{remarks(row)}</div></section>"
    )


def classified_page(title: str, rows: Iterable["ClassifiedPicture"], alone: bool = False) -> str:
    """The HTML of a page.

    Args:
      title: shown as the heading.
      rows: in order; each picture's labels best first.
      alone: whether each probability is of its label on its own (sigmoid).
    """
    what = "each label on its own" if alone else "all labels of a picture together 100 %"
    sections = "\n".join(map(_section, rows))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}{BARS}{ROWS}</style></head>\n"
        f"<body><h1>{escaped(title)}</h1>\n<p>Probabilities: {what}.</p>\n{sections}\n"
        "</body></html>\n"
    )
