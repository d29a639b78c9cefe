"""What the recipes of drawings share: npm packages, CLDR's names, SVG to pixels, zip members."""

import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from jaxclip.cli.shared import stderr

CLDR = ("cldr-annotations-full", "48.2.0")
SKIN_TONE = re.compile(
    r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?(?=-|$)|-tone[1-5]"
)
DEFAULT_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's
Names = dict[str, tuple[str, list[str]]]  # slug -> CLDR's name and keywords


def fetch(package: str, version: str, folder: Path) -> Path:
    """The unpacked npm package; npm fetches it into `folder` unless it is there already.

    Raises:
      ValueError: there is no npm, or npm cannot get the package.
    """
    unpacked = folder / f"{package.replace('/', '+')}@{version}"
    if not unpacked.exists():
        stderr.print(f"fetching {package} {version}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            with tarfile.open(_npm_pack(f"{package}@{version}", Path(temporary))) as archive:
                archive.extractall(Path(temporary) / "whole", filter="data")
            (Path(temporary) / "whole").rename(unpacked)
    return unpacked / "package"


def _npm_pack(package: str, folder: Path) -> Path:
    """The .tgz of a package, which npm puts into `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("expected npm on the PATH, got none; install Node.js")
    command = [npm, "pack", "--silent", "--loglevel=error", package]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ran.returncode:
        reason = (ran.stderr.strip() or ran.stdout.strip()).splitlines()[:1]
        raise ValueError(f"npm pack {package} failed: {''.join(reason) or ran.returncode}")
    return folder / ran.stdout.strip()


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def slug(text: str) -> str:
    """The icon name that a CLDR name turns into: "cat’s face" -> "cats-face"."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "").replace("&", "and")).strip("-")


def cldr_names(package: Path) -> Names:
    """{slug: (CLDR name, CLDR keywords)} of every annotated character."""
    table = read_json(package / "annotations/en/annotations.json")["annotations"]["annotations"]
    return {
        slug(entry["tts"][0]): (entry["tts"][0], entry.get("default", []))
        for entry in table.values()
        if "tts" in entry
    }


def name_emoji(icon: str, names: Names) -> tuple[str, list[str]]:
    """CLDR's name and keywords of an emoji's icon; words of the icon's name where it has none."""
    key = re.sub(r"^flag-for-(flag-)?", "flag-", icon)
    return names.get(key, (key.replace("-", " "), []))


def square_svg(icon_set: dict[str, Any], icon: dict[str, Any]) -> str:
    """An icon of an Iconify set as a square SVG document; `currentColor` is black."""
    box = {k: icon.get(k, icon_set.get(k, default)) for k, default in DEFAULT_BOX.items()}
    side = max(box["width"], box["height"])
    left = box["left"] - (side - box["width"]) / 2
    top = box["top"] - (side - box["height"]) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
    )


def draw(svg: str, size: int) -> Image.Image:
    """RGBA picture of `size` x `size` pixels; ValueError where the document is no SVG."""
    import resvg_py  # the extra `recipes`

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def write_member(
    archive: zipfile.ZipFile, name: str, content: bytes, compression: int = zipfile.ZIP_STORED
) -> None:
    """Add a member with a fixed date, so that the same content gives the same file."""
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    archive.writestr(member, content, compression, compresslevel=9)
