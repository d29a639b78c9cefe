"""What kind of file it is, by its first bytes: for errors about a file of another kind."""

from collections.abc import Collection

STARTS = {  # how a file of one of these formats starts
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\1\0": "ICO",
}
TEXTS = {  # in lower case
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML text",
    b"<": "an HTML or XML text",
    b"{": "a JSON text",
}
OTHERS = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript drawing (EPS)",
    b"\xc5\xd0\xd3\xc6": "a PostScript drawing (EPS)",
    b"8BPS": "a Photoshop document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
}
CONTAINERS = {  # brand in the box "ftyp" -> (format, what it is, what reads it)
    **dict.fromkeys(
        (b"avif", b"avis"), ("AVIF", "an AVIF picture", "install Pillow 11.3 or newer")
    ),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        ("HEIF", "a HEIC picture", "install pillow-heif"),
    ),
}


def picture_format(head: bytes) -> str | None:
    """The picture format that a file's first bytes are those of, or None."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    return next((name for start, name in STARTS.items() if head.startswith(start)), None)


def text_kind(head: bytes) -> str | None:
    """The kind of text that a file's first bytes are those of, or None.

    >>> text_kind(b"<!DOCTYPE html><title>Please log in</title>")
    'an HTML page'
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for start, kind in TEXTS.items() if text.startswith(start)), None)


def describe(head: bytes, size: int, readable: Collection[str]) -> tuple[str, str]:
    """What a file is, and what to do about it.

    Args:
        head: its first bytes, 64 or all of them.
        size: in bytes.
        readable: Pillow's names of the formats that are read.

    >>> describe(b"%PDF-1.7", 20_000, ["PNG"])
    ('a PDF document', 'convert it or leave it out')
    """
    name = picture_format(head)
    if name is not None:
        return f"a damaged {name} of {size} bytes", "fetch it again"
    others = (kind for start, kind in OTHERS.items() if head.startswith(start))
    other = text_kind(head) or next(others, None)
    if other is not None:
        return other, "convert it or leave it out"
    if head[4:8] == b"ftyp":
        kind, name, cure = CONTAINERS.get(head[8:12], ("", "a video (MP4)", "leave it out"))
        if kind in readable:
            return f"a damaged {kind} of {size} bytes", "fetch it again"
        return name, cure
    if head.isascii() and not set(head) & set(range(9)):
        return "a text file", "convert it or leave it out"
    return f"an unknown format ({head[:8].hex(' ')} ...)", "convert it or leave it out"
