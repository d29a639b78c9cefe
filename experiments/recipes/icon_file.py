"""Icons packed into one zip: sheets of drawings in lossless WebP, an index and credits."""

import io
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from experiments.recipes.artwork import CLDR, Names, write_member
from experiments.recipes.icon_captions import Icon
from experiments.recipes.icon_drawings import BLACK, COLOUR, SIZE
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import stderr

ICONIFY = ("@iconify/json", "2.2.535")
PER_SIDE = 16  # a sheet is 16 x 16 drawings
PER_SHEET = PER_SIDE**2
OPACITIES_BLACK, OPACITIES_COLOUR, COLOURS = 8, 16, 64  # values that a channel is rounded to
ABOUT = (
    "64 x 64 drawings, 16 x 16 a sheet, row by row; `sheets` gives the pictures [first, last) "
    "of each. Column by column: picture p is by sets[set[p]], shows captions[caption[p]], kind 0 "
    "is colour (RGBA), 1 is black (grey level = opacity). usefulness: 0 a common thing ... 3 rare. "
    "keywords: CLDR's, by caption."
)
CREDITS_HEADER = f"""# Credits of the icons

By npm package {ICONIFY[0]} {ICONIFY[1]}; NOTICE says what they are for and what was done to them.
"""
Credits = Mapping[str, dict[str, Any]]


def usefulness(rows: Sequence[int], icons: Sequence[Icon], names: Names) -> dict[int, int]:
    """{row: how common its caption is}.

    0: a name or keyword of CLDR's. 1: made of words of those. 2: two sets have the caption. 3: one.
    """
    whole = {text.lower() for name, keywords in names.values() for text in [name, *keywords]}
    words = {word for text in whole for word in text.split()}
    sets = defaultdict(set)
    for i in rows:
        sets[icons[i].caption].add(icons[i].set)

    def rank(caption: str) -> int:
        if caption.lower() in whole:
            return 0
        if all(word in words for word in caption.lower().split()):
            return 1
        return 2 if len(sets[caption]) > 1 else 3

    return {i: rank(icons[i].caption) for i in rows}


def round_to_levels(channel: np.ndarray, levels: int) -> np.ndarray:
    """uint8 -> uint8 of evenly spaced values, which pack smaller."""
    steps = np.round(channel.astype(np.float32) / 255 * (levels - 1))
    return np.round(steps * (255 / (levels - 1))).astype(np.uint8)


def tile(picture: np.ndarray, kind: int) -> np.ndarray:
    """[h, w, 4] -> as packed: opacity as grey [h, w, 3] where black, else [h, w, 4]."""
    if kind == BLACK:
        return np.repeat(round_to_levels(picture[..., 3:], OPACITIES_BLACK), 3, axis=2)
    opacity = round_to_levels(picture[..., 3:], OPACITIES_COLOUR)
    colour = round_to_levels(picture[..., :3], COLOURS)
    return np.concatenate([colour, opacity], -1) * (opacity > 0)


def sheet(tiles: Sequence[np.ndarray]) -> bytes:
    """Up to PER_SHEET tiles as one lossless WebP, row by row."""
    canvas = np.zeros((PER_SIDE * SIZE, PER_SIDE * SIZE, tiles[0].shape[2]), np.uint8)
    for j, drawing in enumerate(tiles):
        top, left = (SIZE * at for at in divmod(j, PER_SIDE))
        canvas[top : top + SIZE, left : left + SIZE] = drawing
    packed = io.BytesIO()
    Image.fromarray(canvas).save(packed, "WEBP", lossless=True, quality=75, method=4)
    return packed.getvalue()


def write_sheets(
    archive: zipfile.ZipFile, pictures: Sequence[np.ndarray], kinds: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Add the sheets, each of one kind; {member: (first picture, last picture + 1)}."""
    starts = [
        (f"{title}/{start // PER_SHEET:04d}.webp", rows[start : start + PER_SHEET])
        for kind, title in ((COLOUR, "colour"), (BLACK, "black"))
        for rows in [[i for i, k in enumerate(kinds) if k == kind]]
        for start in range(0, len(rows), PER_SHEET)
    ]
    sheets = {}
    for name, rows in track(starts, "packing", console=stderr):
        write_member(archive, name, sheet([tile(pictures[i], kinds[i]) for i in rows]))
        sheets[name] = (rows[0], rows[-1] + 1)
    return sheets


def count_pictures(icons: Sequence[Icon], credits: Credits) -> list[dict[str, Any]]:
    """The credits of the sets that have pictures here, with their number, by prefix."""
    counts = Counter(icon.set for icon in icons)
    return [credits[prefix] | {"pictures": counts[prefix]} for prefix in sorted(counts)]


def make_index(
    icons: Sequence[Icon], kinds: Sequence[int], ranks: Sequence[int], names: Names
) -> dict[str, list[Any] | dict[str, Any]]:
    """The columns of the index and what they number; `names` are CLDR's."""
    captions = sorted({icon.caption for icon in icons})
    caption_at = {caption: i for i, caption in enumerate(captions)}
    set_at = {prefix: i for i, prefix in enumerate(sorted({icon.set for icon in icons}))}
    return {
        "captions": captions,
        "keywords": {name: words for name, words in names.values() if name in caption_at},
        "set": [set_at[icon.set] for icon in icons],
        "caption": [caption_at[icon.caption] for icon in icons],
        "kind": [0 if kind == COLOUR else 1 for kind in kinds],
        "usefulness": list(ranks),
        "icon": [icon.name for icon in icons],
    }


def write_icons(
    out: Path,
    icons: Sequence[Icon],
    pictures: Sequence[np.ndarray],
    kinds: Sequence[int],
    ranks: Sequence[int],
    names: Names,
    credits: Sequence[dict[str, Any]],
) -> None:
    """Write the zip: icons with their pictures [h, w, 4], kinds and usefulness, in that order."""
    columns = make_index(icons, kinds, ranks, names)
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        index = {
            "about": ABOUT,
            "size": SIZE,
            "per_side": PER_SIDE,
            "packages": [list(ICONIFY), list(CLDR)],
            "sets": list(credits),
            "captions": columns.pop("captions"),
            "keywords": columns.pop("keywords"),
            "sheets": write_sheets(archive, pictures, kinds),
            **columns,
        }
        content = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
        table = json.dumps(credits, ensure_ascii=False, indent=1)
        write_member(archive, "index.json", content.encode(), zipfile.ZIP_DEFLATED)
        write_member(archive, "credits.json", table.encode(), zipfile.ZIP_DEFLATED)


def credits_page(credits: Sequence[dict[str, Any]]) -> str:
    """The credits as a Markdown page."""
    rows = [CREDITS_HEADER, "| set | author | licence | drawings |", "|---|---|---|---|"]
    for found in credits:
        name, licence = (
            f"[{label}]({address})" if address else label
            for label, address in (
                (found["name"], found["url"]),
                (found["licence"], found["licence_url"]),
            )
        )
        rows.append(f"| {name} | {found['author']} | {licence} | {found['pictures']:,} |")
    return "\n".join(rows) + "\n"
