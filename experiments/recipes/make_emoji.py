"""How the embedded emoji pictures were made.

Question:  which openly licensed pictures with words can travel inside the repository?
Command:   pip install -e '.[recipes]' && python -m experiments.make_emoji      (needs npm)
Result:    jaxclip/data_files/emoji.zip (one lossless WebP a picture, `pictures.jsonl`), examples/.

Four artists are for training; the fifth, Fluent, is only ever tested on. Skin-tone variants are
left out: they repeat one drawing in six colours. Every picture keeps its transparency, so that
training can put it on any background.
"""

import dataclasses
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.progress import track

from experiments.lib.common import run_experiment
from experiments.recipes.artwork import (
    CLDR,
    SKIN_TONE,
    cldr_names,
    draw,
    fetch,
    name_emoji,
    read_json,
    square_svg,
    write_member,
)
from jaxclip.checkpoint import replacing
from jaxclip.cli.usage import Positive

TRAINING = {"noto": "1.2.9", "noto-v1": "1.2.5", "twemoji": "1.2.5", "emojione": "1.2.3"}
TEST = {"fluent-emoji-flat": "1.2.6"}
EXAMPLES = ("cat-face", "rocket", "hot-beverage", "bicycle")
VALIDATION_SHARE = 16  # one training picture in 16


def icons(artist: str, version: str, folder: Path) -> dict[str, str]:
    """{icon name: SVG document} of one icon set, without hidden icons and skin tones."""
    data = read_json(fetch(f"@iconify-json/{artist}", version, folder) / "icons.json")
    return {
        name: square_svg(data, icon)
        for name, icon in sorted(data["icons"].items())
        if not icon.get("hidden") and not SKIN_TONE.search(name)
    }


def split_of(artist: str, name: str) -> str:
    """Test for the unseen artist; a sixteenth of the others, by hash, for validation."""
    if artist in TEST:
        return "test"
    digest = hashlib.sha256(f"{artist}/{name}".encode()).digest()
    return "validation" if digest[0] % VALIDATION_SHARE == 0 else "train"


@dataclasses.dataclass(frozen=True)
class Flags:
    size: Positive = 64
    """pixels a side"""
    out: Path = Path("jaxclip/data_files/emoji.zip")
    """the archive"""
    examples: Path = Path("examples")
    """the folder of the example pictures"""


def pack(flags: Flags) -> None:
    """Fetch, draw, pack."""
    import resvg_py  # noqa: F401  (one line where it is missing, before anything is fetched)

    records = []
    with (
        tempfile.TemporaryDirectory() as work,
        replacing(flags.out) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        names = cldr_names(fetch(*CLDR, Path(work)))
        for artist, version in {**TRAINING, **TEST}.items():
            drawings = icons(artist, version, Path(work))
            for icon, svg in track(drawings.items(), description=artist):
                name, keywords = name_emoji(icon, names)
                file = f"{artist}/{icon}.webp"
                packed = io.BytesIO()
                draw(svg, flags.size).save(packed, "WEBP", lossless=True, quality=100, method=6)
                write_member(archive, file, packed.getvalue())
                split = split_of(artist, name)
                record = {"file": file, "split": split, "name": name, "keywords": keywords}
                records.append(record)
            if artist in TEST:
                for icon in EXAMPLES:
                    draw(drawings[icon], 256).save(flags.examples / f"{icon}.png", optimize=True)
        write_member(archive, "pictures.jsonl", "\n".join(map(json.dumps, records)).encode())
    print(f"{flags.out}: {len(records)} pictures, {flags.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    raise SystemExit(run_experiment(pack, Flags, sys.argv[1:], "make_emoji", __doc__))
