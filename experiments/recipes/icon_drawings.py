"""Icons drawn as pixels, kept on disk as they are made, and thinned of near copies."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import Progress, track

from experiments.recipes.artwork import draw
from experiments.recipes.icon_captions import Icon
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import stderr

SIZE = 64  # pixels a side
BLANK, BLACK, COLOUR = range(3)  # black: one dark colour, which its opacity says all about
BLACK_COPY, COLOUR_COPY = 0.97, 0.985  # cosine above which two drawings of one caption are one
MOST_A_FAMILY = 2  # black drawings of a caption
FAMILIES = [  # sets that draw the same thing alike
    ("material", r"material-symbols(-light)?|ic|mdi(-light)?"),
    ("fa", r"fa(\d)?(-solid|-regular)?|la"),
    ("icon-park", r"icon-park.*"),
    ("pepicons", r"pepicons.*"),
    ("heroicons", r"heroicons.*|sidekickicons"),
    ("box", r"bx|bxs|boxicons"),
    ("unicons", r"ui[lmts]"),
    ("mono", r"mi|mono-icons"),
    ("lucide", r"lucide.*|feather"),
    ("ion", r"ion|famicons"),
]


def family(prefix: str) -> str:
    """The name of the sets that draw like this one."""
    return next((name for name, sets in FAMILIES if re.fullmatch(sets, prefix)), prefix)


# Drawing ------------------------------------------------------------------------------------------


def draw_icon(svg: str) -> np.ndarray | None:
    """uint8 [h, w, 4]; None where nothing is seen."""
    try:
        picture = np.asarray(draw(svg, SIZE))
    except ValueError:  # what resvg cannot read
        return None
    return picture if picture.shape == (SIZE, SIZE, 4) and picture[..., 3].max() > 32 else None


def kind_of(picture: np.ndarray) -> int:
    """BLACK or COLOUR of a picture [h, w, 4]."""
    seen = picture[picture[..., 3] > 24][:, :3]
    return BLACK if len(seen) and seen.max() < 48 else COLOUR


def draw_set(svgs: Sequence[str], out: Path) -> None:
    """Write drawings [n, h, w, 4] and, first, their kinds [n] beside `out`."""
    pictures = np.zeros((len(svgs), SIZE, SIZE, 4), np.uint8)
    kinds = np.full(len(svgs), BLANK, np.uint8)
    for i, svg in enumerate(svgs):
        if (picture := draw_icon(svg)) is not None:
            pictures[i], kinds[i] = picture, kind_of(picture)
    for path, array in ((_kinds_file(out), kinds), (out, pictures)):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)


def _kinds_file(drawings: Path) -> Path:
    return drawings.with_suffix(".kinds.npy")


def drawings_file(folder: Path, prefix: str, svgs: Sequence[str]) -> Path:
    """Where the drawings of a set are kept: another name for other SVG documents."""
    digest = hashlib.sha256("\0".join(svgs).encode())
    return folder / f"{prefix}-{digest.hexdigest()[:16]}.npy"


def draw_icons(
    icons: Sequence[Icon], workers: int, folder: Path
) -> tuple[list[np.ndarray], np.ndarray]:
    """Drawings, each [h, w, 4], and kinds [n] of icons that are sorted by set.

    Sets that were drawn before are read from `folder`, so an interrupted run continues.
    """
    files = {}
    for prefix, group in groupby(icons, lambda icon: icon.set):
        svgs = [icon.svg for icon in group]
        files[drawings_file(folder, prefix, svgs)] = svgs
    missing = {file: svgs for file, svgs in files.items() if not file.exists()}
    with Progress(console=stderr) as bar:
        task = bar.add_task("drawing", total=len(icons))
        bar.advance(task, len(icons) - sum(map(len, missing.values())))
        pool = ProcessPoolExecutor(workers, get_context("spawn"))  # the bar has a thread
        try:
            tasks = {pool.submit(draw_set, svgs, file): svgs for file, svgs in missing.items()}
            for done in as_completed(tasks):
                done.result()
                bar.advance(task, len(tasks[done]))
        finally:
            pool.shutdown(cancel_futures=True)
    pictures: list[np.ndarray] = []
    for file in files:
        pictures.extend(np.asarray(np.load(file, mmap_mode="r")))
    return pictures, np.concatenate([np.load(_kinds_file(file)) for file in files])


# Thinning -----------------------------------------------------------------------------------------


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """[n, d] -> rows of length 1; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def black_prints(pictures: np.ndarray) -> np.ndarray:
    """[n, 64, 64, 4] -> unit vectors [n, 256] of the mean opacity of 16 x 16 squares."""
    n = len(pictures)
    squares = pictures[..., 3].reshape(n, 16, 4, 16, 4)
    return unit_rows(squares.mean((2, 4), dtype=np.float32).reshape(n, 256))


def colour_prints(pictures: np.ndarray) -> np.ndarray:
    """[n, 64, 64, 4] -> unit vectors [n, 1024] of 16 x 16 squares: ink on white, and opacity."""
    n = len(pictures)
    opacity = pictures[..., 3:].astype(np.float32) / 255
    ink = (1 - pictures[..., :3].astype(np.float32) / 255) * opacity
    squares = np.concatenate([ink, opacity * 0.5], -1).reshape(n, 16, 4, 16, 4, 4)
    return unit_rows(squares.mean((2, 4)).reshape(n, -1))


def keep_apart(prints: np.ndarray, limit: float) -> list[int]:
    """The rows, in order, whose cosine with each kept row before them is at most `limit`."""
    kept: list[int] = []
    for i in range(len(prints)):
        if not kept or (prints[kept] @ prints[i]).max() <= limit:
            kept.append(i)
    return kept


def at_most_per_family(rows: Sequence[int], icons: Sequence[Icon]) -> list[int]:
    """The first MOST_A_FAMILY rows of each family of sets."""
    kept, seen = [], Counter[str]()
    for i in rows:
        seen[family(icons[i].set)] += 1
        if seen[family(icons[i].set)] <= MOST_A_FAMILY:
            kept.append(i)
    return kept


def thin_out(icons: Sequence[Icon], pictures: Sequence[np.ndarray], kinds: np.ndarray) -> list[int]:
    """Rows that stay, in order: of one caption no near copies, few black drawings a family.

    Across captions near copies stay: "bin" and "trash" are two true names of one drawing.
    """
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, icon in enumerate(icons):
        if kinds[i] != BLANK:
            groups[icon.caption.lower(), int(kinds[i])].append(i)
    stay = []
    for (_, kind), rows in track(groups.items(), "comparing", console=stderr):
        stacked = np.stack([pictures[i] for i in rows])
        if kind == BLACK:
            kept = keep_apart(black_prints(stacked), BLACK_COPY)
            stay += at_most_per_family([rows[j] for j in kept], icons)
        else:
            stay += [rows[j] for j in keep_apart(colour_prints(stacked), COLOUR_COPY)]
    return sorted(stay)
