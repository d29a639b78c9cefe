"""The drawings of examples/drawings/, to search and classify offline.

Question:  which openly licensed drawings that no embedded model was trained on show what
           `jaxclip search`, `similar` and `classify` do with a folder?
Command:   python -m experiments.recipes.example_drawings
Result:    examples/drawings/: 200 WebP files of 64 x 64 pixels, 0.3 MB, named by what they show.

All are by the unseen artist of the embedded emoji (Fluent Emoji, NOTICE section 6), whose bytes
they are. The four of examples/*.png are among them, so that `similar examples` finds four pairs;
the others are drawn by the SHA-256 of their names, from names of one to three plain words that
training pictures by other artists have, too.
"""

import dataclasses
import hashlib
import re
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

from experiments.lib.common import run_experiment
from jaxclip.data.emoji.pictures import load_unseen_artist

OUT = Path(__file__).parents[2] / "examples" / "drawings"
COUNT = 200
FIRST = ("bicycle", "cat face", "hot beverage", "rocket")
PLAIN = re.compile(r"[A-Za-z]+( [A-Za-z]+){0,2}")
SIGNS = re.compile(  # signs and variants of one drawing, of which hundreds look alike
    r"\b(button|sign|flag|thirty|symbol|arrow|hole|square|circle|hand|input|"
    r"person|man|woman|men|women|people|male|female|keycap)\b"
)


def choose() -> dict[str, str]:
    """{name of a file in examples/drawings: member of the embedded archive}."""
    pictures = load_unseen_artist()
    member = dict(
        zip(pictures.names[::-1], pictures.files[::-1], strict=True)
    )  # the first of a name
    plain = [name for name in member if PLAIN.fullmatch(name) and not SIGNS.search(name)]
    drawn = sorted(set(plain) - set(FIRST), key=lambda x: hashlib.sha256(x.encode()).digest())
    names = sorted([*FIRST, *drawn[: COUNT - len(FIRST)]])
    return {f"{name.replace(' ', '-')}.webp": member[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Where the drawings are written."""

    out: Path = OUT


def main(flags: Flags) -> None:
    """Write the files."""
    flags.out.mkdir(parents=True, exist_ok=True)
    total = 0
    source = files("jaxclip") / "data_files" / "emoji.zip"
    with source.open("rb") as file, zipfile.ZipFile(file) as archive:
        for name, member in choose().items():
            total += (flags.out / name).write_bytes(archive.read(member))
    print(f"{flags.out}: {COUNT} drawings, {total:,} bytes")


if __name__ == "__main__":
    sys.exit(run_experiment(main, Flags, sys.argv[1:], "example_drawings", __doc__ or ""))
