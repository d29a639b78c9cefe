"""Finding the pictures of a folder: one rule for training, evaluation, `classify` and `embed`.

- A picture is a regular file with a picture's ending (`images.open.SUFFIXES`), in any case, in the
  folder or in one below it.
- Symbolic links are followed. A folder is entered once: by its own name where that is below the
  root, else by the first link to it.
- Hidden names (".x", "._x.jpg", ".ipynb_checkpoints") and those that systems add (`__MACOSX`) are
  left out and are never a class.
- The folder of an index (`jaxclip search`) is ours, and is not even counted.
- Everything left out is counted by kind: its ending, "no ending", "hidden", "a named pipe", ...
"""

import dataclasses
import heapq
import logging
import os
import stat
from collections import Counter
from pathlib import Path

from jaxclip.files import KINDS
from jaxclip.images.open import is_picture

logger = logging.getLogger(__name__)
SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}  # macOS in archives, Synology, Windows
INDEX = ".jaxclip"  # the folder of an index beside its pictures
TEXT = ".txt"
MOST_NAMED = 9  # kinds of files left out that a warning names


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is always left out."""
    return name.startswith(".") or name in SYSTEMS


@dataclasses.dataclass
class Found:
    """The contents of a folder.

    pictures: their paths, sorted.
    texts: {path of a text file less its ending: the text file}.
    folders: names of the folders directly in the root, sorted: the classes of class folders.
    files: {ending: count} of files that are neither pictures nor texts.
    others: {kind: count} of everything left out for another reason than its ending.
    """

    root: Path
    pictures: list[Path] = dataclasses.field(default_factory=list)
    texts: dict[str, Path] = dataclasses.field(default_factory=dict)
    folders: list[str] = dataclasses.field(default_factory=list)
    files: Counter[str] = dataclasses.field(default_factory=Counter)
    others: Counter[str] = dataclasses.field(default_factory=Counter)

    def text_of(self, picture: Path) -> Path | None:
        """The text file beside a picture: x.txt beside x.jpg."""
        return self.texts.get(os.path.splitext(picture)[0])

    def class_of(self, picture: Path) -> str | None:
        """The folder in the root that a picture is in; None where it is in the root itself."""
        parts = picture.relative_to(self.root).parts
        return parts[0] if len(parts) > 1 else None

    def log_left_out(self, used_texts: int = 0) -> None:
        """Warn in one line of everything left out; `used_texts` of the texts are not."""
        files = self.files + Counter({TEXT: len(self.texts) - used_texts})
        parts = []
        if files:
            one = files.total() == 1
            noun = "file that is no picture" if one else "files that are no pictures"
            parts.append(f"{files.total()} {noun}: {_listed(files)}")
        if self.others:
            parts.append(f"also {_listed(self.others)}" if files else _listed(self.others))
        if parts:
            logger.warning("%s: left out %s", self.root, "; ".join(parts))


def _listed(counts: Counter[str]) -> str:
    named = counts.most_common(MOST_NAMED)
    rest = counts.total() - sum(count for _, count in named)
    return ", ".join([f"{what} {count}" for what, count in named] + [f"others {rest}"] * (rest > 0))


def find_pictures(root: Path) -> Found:
    """The pictures of a folder, by the rule above.

    Raises:
      ValueError: it is no folder, or cannot be read.
    """
    if not root.is_dir():
        raise ValueError(f"{str(root)!r}: expected a folder of pictures, got none of that name")
    found = Found(root)
    folders, linked = [root], list[Path]()  # still to enter; links when no other is left
    seen: set[tuple[int, int]] = set()
    while folders or linked:
        folder = folders.pop() if folders else heapq.heappop(linked)
        try:
            status, entries = folder.stat(), list(os.scandir(folder))
        except OSError as error:
            if folder == root:
                raise ValueError(f"{str(root)!r}: cannot be read ({error.strerror})") from None
            found.others["folder that cannot be read"] += 1
            continue
        key = status.st_dev, status.st_ino
        if key in seen:
            found.others["link to a folder that counts already"] += 1
            continue
        seen.add(key)
        if folder.parent == root and folder != root:
            found.folders.append(folder.name)
        for entry in entries:
            if _add(found, entry):
                if entry.is_symlink():
                    heapq.heappush(linked, Path(entry.path))
                else:
                    folders.append(Path(entry.path))
    found.pictures.sort()
    found.folders.sort()
    return found


def _add(found: Found, entry: os.DirEntry[str]) -> bool:
    """Count an entry as what it is; whether it is a folder to enter."""
    if entry.name == INDEX:
        return False
    if is_hidden(entry.name):
        found.others["hidden"] += 1
        return False
    try:
        if entry.is_dir():
            return True
        regular = entry.is_file()
        kind = "" if regular else KINDS.get(stat.S_IFMT(entry.stat().st_mode), "no regular file")
    except OSError:  # a link that leads nowhere, or round in a circle
        regular, kind = False, "broken link"
    path = Path(entry.path)
    stem, ending = os.path.splitext(path)
    if not regular:
        found.others[kind.removeprefix("a ")] += 1
    elif is_picture(entry.name):
        found.pictures.append(path)
    elif ending.lower() != TEXT:
        found.files[_shown(ending.lower())] += 1
    elif stem not in found.texts:
        found.texts[stem] = path
    else:  # x.txt and x.TXT: the former
        found.files[TEXT] += 1
        if ending == TEXT:
            found.texts[stem] = path
    return False


def _shown(ending: str) -> str:
    if not ending:
        return "no ending"
    return ending if ending.isprintable() else repr(ending)
