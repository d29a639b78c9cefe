"""Commands over a folder of pictures and its index: index, search, similar."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from jaxclip.cli.given import require_free
from jaxclip.cli.search_folder import PictureFolder, open_index, update_index
from jaxclip.cli.shared import (
    AsJson,
    UsageError,
    print_line,
    print_table,
    require_whole_flag,
    warn_embedded,
    write_page,
)

IndexFlag = Annotated[Path | None, tyro.conf.arg(name="index")]


def index(
    pictures: Annotated[Path, tyro.conf.Positional],
    model: str = "emoji",
    index: IndexFlag = None,
    export: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Index a folder of pictures for `search` and `similar`; again: new and changed files only.

    For example:
        jaxclip index PHOTOS --model ViT-B/32
        jaxclip index /media/camera --index ~/camera-index      # a folder that cannot be written to
        jaxclip index PHOTOS --export OUT                       # for vector databases

    Args:
        pictures: A folder of pictures; it is walked. The index is the folder .jaxclip in it.
        model: "emoji" (the embedded model), a released model's name, a run folder or a
            checkpoint file. An index holds the vectors of several models side by side.
        index: A folder for the index, instead of .jaxclip beside the pictures.
        export: A folder to write the vectors and paths to, as clip-retrieval lays them out
            (.npy and Parquet; needs pyarrow).
        as_json: Print one JSON object with the counts and all broken files.
    """
    from jaxclip.search import export as writer
    from jaxclip.search.query import full_path, reading

    folder = PictureFolder(pictures, index, model)
    report = update_index(folder, wait=True)
    if export is not None:
        with reading(folder.where, folder.key) as snapshot:
            writer.export(snapshot, pictures, export)
    counts = {
        "pictures": report.pictures,
        "new": report.encoded,
        "moved_or_copied": report.known,
        "gone": report.gone,
        "left_out": len(report.broken),
        "blocks_made_again": report.damaged,
    }
    if as_json:
        broken = {full_path(pictures, path): why for path, why in sorted(report.broken.items())}
        print(json.dumps({"index": str(folder.where), "model": model, **counts, "broken": broken}))
        return 0
    warn_embedded(model)
    words = [f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number]
    print_line(f"{folder.where}: {', '.join(words)}")
    return 0


def _query(
    folder: PictureFolder, words: Sequence[str], like: Any, minus: Any, snapshot: Any
) -> Any:
    """The direction of words and pictures less other words: float32 [e]."""
    from jaxclip.search.query import unit

    texts = [*words, *minus]
    signs = [1.0] * len(words) + [-1.0] * len(minus)
    total = np.zeros(snapshot.model.width, np.float32)
    if texts:
        total += np.asarray(signs, np.float32) @ folder.encode_texts(texts)
    for path in like:
        total += folder.encode_picture(path, snapshot)
    return unit(total, "what to search for")


def _require_texts(words: Sequence[str], like: Sequence[Path], minus: Sequence[str]) -> None:
    if not words and not like:
        raise UsageError("expected words or --like PICTURE, got neither; give one")
    if not all(text.strip() for text in [*words, *minus]):
        raise UsageError("expected words, got an empty text")


def search(
    pictures: Annotated[Path, tyro.conf.Positional],
    words: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    like: tuple[Path, ...] = (),
    minus: tuple[str, ...] = (),
    top: int = 20,
    model: str = "emoji",
    index: IndexFlag = None,
    update: bool = True,
    html: Path | None = None,
    force: bool = False,
    as_json: AsJson = False,
) -> int:
    """Find the pictures of a folder that fit words or other pictures best.

    The first search indexes the folder; later ones read new and changed files only. Every picture
    is compared: the ranking is exact.

    For example:
        jaxclip search PHOTOS "a red boat at sunset" --model ViT-B/32
        jaxclip search PHOTOS --like boat.jpg --minus "people" --html boats.html
        jaxclip search PHOTOS "a dog" --no-update --json | head -3

    Args:
        pictures: A folder of pictures; it is walked.
        words: What to look for; several texts are added.
        like: Pictures to look for, added to the words; they need not be in the folder.
        minus: Texts to look away from, subtracted.
        top: Pictures to show.
        model: "emoji" (the embedded model), a released model's name, a run folder or a
            checkpoint file.
        index: A folder for the index, instead of .jaxclip beside the pictures.
        update: Look for new and changed files first.
        html: A file to write one self-contained page to, with thumbnails.
        force: Overwrite the page.
        as_json: Print one JSON object a picture instead of a table.
    """
    from jaxclip.search.page import page
    from jaxclip.search.query import full_path

    _require_texts(words, like, minus)
    require_whole_flag("--top", top, 1, 10**6)
    if html is not None:
        require_free("--html", html, force)
    folder = PictureFolder(pictures, index, model)
    with open_index(folder, update) as snapshot:
        hits = snapshot.search(_query(folder, words, like, minus, snapshot), top)
    found = [(full_path(pictures, hit.path), hit.score) for hit in hits]
    if html is not None:
        title = ", ".join([*words, *(f"like {x}" for x in like), *(f"minus {x}" for x in minus)])
        rows = ((path, (path, f"{score:.3f}")) for path, score in found)
        write_page(html, page(title, rows))
    if as_json:
        for path, score in found:
            print(json.dumps({"picture": path, "score": score, "model": model}))
        return 0
    warn_embedded(model)
    table = Table("cosine", "picture")
    table.columns[1].overflow = "fold"
    for path, score in found:
        table.add_row(f"{score:.3f}", path)
    print_table(table)
    return 0


def similar(
    pictures: Annotated[Path, tyro.conf.Positional],
    threshold: float = 0.95,
    model: str = "emoji",
    index: IndexFlag = None,
    update: bool = True,
    as_json: AsJson = False,
) -> int:
    """Group the near-duplicates of a folder: pictures whose cosine is at least a threshold.

    A chain makes one group: a near b and b near c join all three. Nothing is deleted.

    For example:
        jaxclip similar PHOTOS --model ViT-B/32
        jaxclip similar PHOTOS --threshold 0.99 --json

    Args:
        pictures: A folder of pictures; it is walked and indexed as by `search`.
        threshold: The least cosine of two pictures that belong together.
        model: "emoji" (the embedded model), a released model's name, a run folder or a
            checkpoint file.
        index: A folder for the index, instead of .jaxclip beside the pictures.
        update: Look for new and changed files first.
        as_json: Print one JSON object a group.
    """
    from jaxclip.search.query import full_path
    from jaxclip.search.similar import similar as find

    if not -1 <= threshold <= 1:
        raise UsageError(f"--threshold: expected a cosine from -1 to 1, got {threshold}")
    folder = PictureFolder(pictures, index, model)
    with open_index(folder, update) as snapshot:
        groups = [[full_path(pictures, path) for path in x] for x in find(snapshot, threshold)]
    for number, group in enumerate(groups, start=1):
        if as_json:
            print(json.dumps({"group": group, "threshold": threshold, "model": model}))
            continue
        print_line(f"group {number}: {len(group)} pictures")
        for path in group:
            print_line(f"  {path}")
    if not as_json:
        warn_embedded(model)
        count = sum(map(len, groups))
        print_line(f"{count} pictures in {len(groups)} groups at a cosine of {threshold} or more")
    return 0
