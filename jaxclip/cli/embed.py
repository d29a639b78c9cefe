"""The command embed: vectors of pictures or captions in one file, made without losing any work."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxclip.cli.given import LeftOut, find_given, require_free
from jaxclip.cli.shared import (
    UsageError,
    load_model,
    open_model,
    print_line,
    require_whole_flag,
    show_progress,
    warn_embedded,
)


def embed(
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: Path,
    model: str = "emoji",
    captions: Path | None = None,
    policy: Literal["safe", "official"] = "safe",
    batch_size: int = 32,
    normalize: bool = True,
    skip_limit: int = 100,
    force: bool = False,
) -> int:
    """Write the embeddings of pictures, or of captions, to a .npz or .parquet file.

    What is encoded is kept in a folder beside the file until it is written: after Ctrl-C or a kill
    the same command continues. Broken pictures are left out, named and counted.

    For example:
        jaxclip embed PHOTOS --out photos.npz --model ViT-B/32
        jaxclip embed "PHOTOS/*.jpg" MORE --out photos.parquet
        jaxclip embed --captions captions.txt --out captions.npz

    Args:
        pictures: Picture files, folders (they are walked), patterns in quotes, and - for names on
            standard input, one a line (not the bytes of a picture).
        out: The file to write: .npz, or .parquet (needs pyarrow).
        model: "emoji", a released model's name, a run folder, a checkpoint file or a Hub id.
        captions: A text file with one caption a line, to embed in place of pictures.
        policy: How pictures become pixels: "safe" (rotation applied, transparency on white) or
            "official" (the released pipeline, bit for bit).
        batch_size: Pictures or captions that go through the model at once.
        normalize: Scale every row to length one.
        skip_limit: Broken pictures that are counted and left out before the command fails.
        force: Overwrite the file.
    """
    require_whole_flag("--batch-size", batch_size, 1, 2**20)
    require_whole_flag("--skip-limit", skip_limit, 0)
    if captions is not None and pictures:
        raise UsageError("expected pictures or --captions, got both; give one of them")
    from jaxclip.reference import l2_normalize
    from jaxclip.search import vectors
    from jaxclip.search.update import Tower

    given: vectors.ToEmbed = (
        vectors.Captions(captions)
        if captions is not None
        else vectors.Pictures(find_given(pictures), policy)
    )
    write = _writer(out)
    require_free("--out", out, force)
    left_out = LeftOut(len(given.names), skip_limit)
    opened = open_model(model)
    key = vectors.model_key(opened, given)
    work = out.with_name(f".{out.name}.work")

    def load() -> Any:
        clip, _ = load_model(opened, of=model, tower=given.side, arrange=True)
        return clip.encode_image if given.side == "image" else clip.encode_text

    tower = Tower(key, model, load, np.asarray, min(batch_size, len(given.names)))
    with _writing(work, out) as catalogue:
        _encode(given.items(opened.config), work, catalogue, tower, left_out)
        features, columns = vectors.read_table(given, work, catalogue, key)
    embeds = l2_normalize(features) if normalize else features
    facts = {
        "model": model,
        "key": key,
        "preprocessing": json.dumps(given.preprocessing(opened.config)),
    }
    write(out, {"embeds": embeds, **columns, **{name: np.array(x) for name, x in facts.items()}})
    shutil.rmtree(work, ignore_errors=True)
    warn_embedded(model)
    gone = f"{left_out.count + given.empty} {given.noun} left out"
    print_line(f"wrote {out}: {len(embeds)} embeddings of {embeds.shape[1]}, {gone}")
    return 0


def _writer(out: Path) -> Any:
    """The function that writes a file of that ending; UsageError for another ending."""
    from jaxclip.search import export, vectors

    if out.suffix == ".parquet":
        export.require_pyarrow()
        return vectors.write_parquet
    if out.suffix == ".npz":
        return vectors.write_npz
    raise UsageError(f"--out: expected a file ending in .npz or .parquet, got {out}")


@contextlib.contextmanager
def _writing(work: Path, out: Path) -> Iterator[Any]:
    """The facts in the work folder, for this process alone."""
    from jaxclip.search import index

    try:
        with index.writing(work) as catalogue:
            yield catalogue
    except index.BeingWritten:
        raise ValueError(f"{str(out)!r}: another process writes this file") from None


def _encode(items: Any, work: Path, catalogue: Any, tower: Any, left_out: LeftOut) -> None:
    """Encode what the work folder does not hold yet."""
    from jaxclip.search.update import encode_items

    def watch(reads: Iterable[Any], total: int) -> Iterator[Any]:
        for read in show_progress(reads, "embedding", total) if total else reads:
            if read.facts.error is not None:
                left_out.add(os.fsdecode(read.facts.path), read.facts.error)
            yield read

    try:
        report = encode_items(items, work, catalogue, tower, watch)
    except KeyboardInterrupt:
        raise ValueError("interrupted; what is encoded stays, the same command continues") from None
    for path in report.broken.keys() - set(report.new):  # found by an earlier run
        left_out.add(os.fsdecode(path), report.broken[path])
    left_out.require_some()
