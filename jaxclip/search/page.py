"""One self-contained HTML page of pictures: small thumbnails inside, every text escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from jaxclip.images.open import open_image, to_rgb
from jaxclip.terminal import printable

SIDE = 200  # pixels of a thumbnail
STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:24px;background:#fff;color:#111}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:16px}
figure{margin:0}img{max-width:200px;max-height:200px}
figcaption{overflow-wrap:anywhere;font-size:13px}"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched


def escaped(text: object) -> str:
    """A text for HTML: markup and control characters are shown, not obeyed."""
    return html.escape(printable(text))


def thumbnail(path: str) -> str:
    """A data URI of a small JPEG of a picture; empty if the picture cannot be read any more."""
    try:
        picture = to_rgb(open_image(path))
    except (ValueError, OSError):
        return ""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _figure(path: str, caption: Sequence[str]) -> str:
    source, link = thumbnail(path), escaped(Path(path).absolute().as_uri())
    picture = f'<img src="{source}" alt="">' if source else "(cannot be read any more)"
    lines = "<br>".join(escaped(line) for line in caption)
    return f'<figure><a href="{link}">{picture}</a><figcaption>{lines}</figcaption></figure>'


def page(title: str, pictures: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The HTML of a page.

    Args:
      title: shown as the heading.
      pictures: (path, lines of its caption), in order.
    """
    figures = "\n".join(_figure(path, caption) for path, caption in pictures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{escaped(title)}</h1>\n<main>\n{figures}\n</main></body></html>\n"
    )
