"""The pictures that a command line names: files, folders, patterns and standard input.

- A name that exists is that file, whatever its ending, or that folder, walked as `data.folders`
  says. So a file called "a[1].png" needs no quoting from us.
- Any other with `*`, `?` or `[` is a pattern: its pictures and folders count as in a folder, hidden
  names are left out. `**` stands for folders of any depth, entered once each.
- `-` is standard input: names of files and folders, one a line, or with null bytes between them if
  it holds any (`find -print0`). They are no patterns. A picture's own bytes are refused.
- A file that is named twice counts twice.
"""

import fnmatch
import glob
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from jaxclip.data.folders import find_pictures, is_hidden
from jaxclip.images.open import SUFFIXES, identify, is_picture

logger = logging.getLogger(__name__)
STDIN = "-"


def given_pictures(arguments: Iterable[str], stdin: BinaryIO) -> list[Path]:
    """The pictures that the arguments of a command name, in their order.

    An argument that leads to no picture is warned of.

    Raises:
      ValueError: none leads to any, a folder cannot be read, or `stdin` holds no names.
    """
    found: list[Path] = []
    empty: list[str] = []
    for argument in arguments:
        names = _names_on(stdin) if argument == STDIN else [argument]
        for name in names:
            pictures = list(_expand(name, pattern=argument != STDIN))
            found += pictures
            if not pictures:
                empty.append(f"{name!r} holds no picture ({', '.join(SUFFIXES)})")
        if not names:
            empty.append("standard input names no picture")
    if not found:
        told = empty[0] if empty else "no picture was given"
        raise ValueError(f"{told}; name one or more picture files or folders")
    for line in empty:
        logger.warning("%s", line)
    return found


def _names_on(stdin: BinaryIO) -> list[str]:
    content = stdin.read()
    try:
        kind = identify(io.BytesIO(content)).format
    except ValueError:  # as it should be
        lines = content.split(b"\0" if b"\0" in content else b"\n")
        return [os.fsdecode(line) for line in (x.rstrip(b"\r") for x in lines) if line.strip()]
    raise ValueError(
        f"standard input: expected names of pictures, one a line, got a {kind} picture; "
        "write it to a file and name that"
    )


def _expand(name: str, pattern: bool) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        inside = find_pictures(path)
        inside.log_left_out()
        yield from inside.pictures
    elif pattern and glob.has_magic(name) and not os.path.lexists(path):
        yield from _matches(path)
    else:
        yield path


def _matches(pattern: Path) -> Iterator[Path]:
    """The pictures of a pattern, sorted."""
    parts = pattern.parts
    if "**" in parts:
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:fixed])
        if root.is_dir():
            for picture in find_pictures(root).pictures:
                if _fits(picture.relative_to(root).parts, parts[fixed:]):
                    yield picture
        return
    for match in sorted(map(Path, glob.glob(str(pattern)))):
        if is_hidden(match.name):
            continue
        if match.is_dir():
            yield from find_pictures(match).pictures
        elif is_picture(match):
            yield match


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path below a folder, or a folder that it is in, fits a pattern with `**`."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )
