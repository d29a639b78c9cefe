"""The answers in HTML: pictures in a grid, a heat map of cosines. Every text is escaped."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from jaxclip.search.classified_page import BARS
from jaxclip.search.page import escaped, thumbnail
from jaxclip.terminal import one_line

STYLE = (
    BARS
    + """
.found{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
.found figure{margin:0}.found img{max-width:150px;max-height:150px}
.found figcaption{font-size:13px;overflow-wrap:anywhere}
.cosines{border-collapse:collapse;border:0 !important}
.cosines tr,.cosines th{border:0 !important}
.cosines th{font-weight:normal;padding:4px 8px;text-align:left}
.cosines td{padding:10px 14px;text-align:center;border:2px solid transparent}
.cosines img{max-width:72px;max-height:72px}
.seen{display:flex;flex-wrap:wrap;gap:14px}.seen figure{margin:0}
.problem{color:#c02040;overflow-wrap:anywhere}
"""
)
DARK, LIGHT = np.array([8, 48, 107]), np.array([247, 251, 255])  # the ends of the heat map


def _image(path: str | Path) -> str:
    source = thumbnail(str(path))
    return f'<img src="{source}" alt="">' if source else "(cannot be read any more)"


def found_pictures(found: Sequence[tuple[str, float]], root: Path) -> str:
    """Thumbnails of (path, cosine), in order, with their names below the root."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_image, [path for path, _ in found]))
    figures = (
        f"<figure>{image}<figcaption>{score:.3f}<br>{escaped(_below(path, root))}"
        "</figcaption></figure>"
        for image, (path, score) in zip(images, found, strict=True)
    )
    return f'<div class="found">{"".join(figures)}</div>'


def _below(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def overlays(maps: Sequence[tuple[Image.Image, str]]) -> str:
    """Pictures beside each other, each with what it shows."""
    figures = (
        f'<figure><img src="{_inline(picture)}" alt=""><figcaption>{escaped(name)}</figcaption>'
        "</figure>"
        for picture, name in maps
    )
    return f'<div class="seen">{"".join(figures)}</div>'


def _inline(picture: Image.Image) -> str:
    """A data URI of the picture."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def heat_map(paths: Sequence[str | Path], captions: Sequence[str], cosines: np.ndarray) -> str:
    """A table of cosines [n, m], a row a picture and a column a caption; darker is larger."""
    low, span = cosines.min(), np.ptp(cosines) or 1.0
    head = "".join(f"<th>{escaped(caption)}</th>" for caption in captions)
    rows = []
    for path, row in zip(paths, cosines, strict=True):
        cells = "".join(_cell(cosine, (cosine - low) / span) for cosine in row)
        rows.append(f"<tr><th>{_image(path)}</th>{cells}</tr>")
    return f'<table class="cosines"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _cell(cosine: float, shade: float) -> str:
    red, green, blue = (LIGHT + shade * (DARK - LIGHT)).round().astype(int)
    ink = "#fff" if shade > 0.5 else "#111"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{cosine:.3f}</td>'


def problem(text: object) -> str:
    """One line about what is wrong; empty for an empty text."""
    return f'<p class="problem" role="alert">{escaped(one_line(text))}</p>' if str(text) else ""
