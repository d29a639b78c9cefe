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
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from experiments.lib.common import run_experiment
from jaxclip.cli.usage import Positive

try:
    import resvg_py
except ImportError:
    raise SystemExit("make_emoji needs resvg-py: pip install -e '.[recipes]'") from None

TRAINING = {"noto": "1.2.9", "noto-v1": "1.2.5", "twemoji": "1.2.5", "emojione": "1.2.3"}
TEST = {"fluent-emoji-flat": "1.2.6"}
CLDR = ("cldr-annotations-full", "48.2.0")
SKIN_TONE = re.compile(
    r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?(?=-|$)|-tone[1-5]"
)
EXAMPLES = ("cat-face", "rocket", "hot-beverage", "bicycle")
VALIDATION_SHARE = 16  # one training picture in 16


def fetch(package: str, version: str, member: str, folder: Path) -> Any:
    """Parsed JSON file `member` of an npm package, fetched with npm into `folder`."""
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    name = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    with tarfile.open(folder / name.strip()) as archive:
        content = archive.extractfile(f"package/{member}")
        assert content is not None, f"{package} has no {member}"
        return json.load(content)


def slug(text: str) -> str:
    """The icon name that a CLDR name turns into: "cat’s face" -> "cats-face"."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "").replace("&", "and")).strip("-")


def words_by_slug(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """{slug: (CLDR name, CLDR keywords)} of every annotated character."""
    table = fetch(*CLDR, "annotations/en/annotations.json", folder)["annotations"]["annotations"]
    return {
        slug(entry["tts"][0]): (entry["tts"][0], entry.get("default", []))
        for entry in table.values()
        if "tts" in entry
    }


def icons(artist: str, version: str, folder: Path) -> dict[str, str]:
    """{icon name: SVG document} of one icon set, without hidden icons and skin tones."""
    data = fetch(f"@iconify-json/{artist}", version, "icons.json", folder)
    drawn = {}
    for name, icon in sorted(data["icons"].items()):
        if icon.get("hidden") or SKIN_TONE.search(name):
            continue
        box = {k: icon.get(k, data.get(k, 0)) for k in ("left", "top", "width", "height")}
        side = max(box["width"], box["height"])
        left = box["left"] - (side - box["width"]) / 2
        top = box["top"] - (side - box["height"]) / 2
        drawn[name] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
        )
    return drawn


def draw(svg: str, size: int) -> Image.Image:
    """RGBA picture of `size` x `size` pixels."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def split_of(artist: str, name: str) -> str:
    """Test for the unseen artist; a sixteenth of the others, by hash, for validation."""
    if artist in TEST:
        return "test"
    digest = hashlib.sha256(f"{artist}/{name}".encode()).digest()
    return "validation" if digest[0] % VALIDATION_SHARE == 0 else "train"


def write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """One stored member with a fixed date, so that the same pictures give the same file."""
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


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
    records = []
    with tempfile.TemporaryDirectory() as work, zipfile.ZipFile(flags.out, "w") as archive:
        words = words_by_slug(Path(work))
        for artist, version in {**TRAINING, **TEST}.items():
            drawings = icons(artist, version, Path(work))
            for icon, svg in track(drawings.items(), description=artist):
                key = re.sub(r"^flag-for-(flag-)?", "flag-", icon)
                name, keywords = words.get(key, (key.replace("-", " "), []))
                file = f"{artist}/{icon}.webp"
                packed = io.BytesIO()
                draw(svg, flags.size).save(packed, "WEBP", lossless=True, quality=100, method=6)
                write(archive, file, packed.getvalue())
                split = split_of(artist, name)
                record = {"file": file, "split": split, "name": name, "keywords": keywords}
                records.append(record)
            if artist in TEST:
                for icon in EXAMPLES:
                    draw(drawings[icon], 256).save(flags.examples / f"{icon}.png", optimize=True)
        write(archive, "pictures.jsonl", "\n".join(map(json.dumps, records)).encode())
    print(f"{flags.out}: {len(records)} pictures, {flags.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    raise SystemExit(run_experiment(pack, Flags, sys.argv[1:], "make_emoji", __doc__))
