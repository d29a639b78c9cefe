"""The command classify: labels ranked for pictures, a row as soon as it is known."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from jaxclip.cli.given import LeftOut, find_given, progress_bar, require_free
from jaxclip.cli.row_writer import RowWriter
from jaxclip.cli.shared import (
    AsJson,
    UsageError,
    load_model,
    open_model,
    print_line,
    require_whole_flag,
    stderr,
)
from jaxclip.files import distinct_lines

if TYPE_CHECKING:
    from jaxclip.evaluation.classified import ClassifiedPicture, LabelClassifier
    from jaxclip.search.read import ToPixels

BATCH = 32  # pictures a call of the model


def classify(
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional],
    labels: tuple[str, ...] = (),
    labels_file: Path | None = None,
    model: str = "emoji",
    prompts: tuple[str, ...] = ("{}",),
    top: int | None = None,
    threshold: float | None = None,
    scores: Literal["probability", "cosine"] = "probability",
    csv: Path | None = None,
    html: Path | None = None,
    force: bool = False,
    as_json: AsJson = False,
) -> int:
    """Rank labels for pictures: which words fit best?

    A row is printed as soon as it is known; Ctrl-C keeps what is done. Broken pictures are left
    out, named and counted; the command fails if none can be read. A row is marked where no label
    fits: where the best one is within the noise of unrelated words.

    For example:
        jaxclip classify PHOTOS --labels cat dog --model ViT-B/32
        jaxclip classify "PHOTOS/**/*.jpg" --labels-file names.txt --top 3 --csv out.csv
        find PHOTOS -name "*.png" -print0 | jaxclip classify - --labels cat dog --json

    Args:
        pictures: Picture files, folders (they are walked), patterns in quotes, and - for names on
            standard input, one a line (not the bytes of a picture).
        labels: Words to choose from; any words, not a fixed list of classes.
        labels_file: A text file with one label a line; empty and repeated lines do not count.
        model: "emoji" (the embedded model), a released model's name, a run folder, a
            checkpoint file or the id of a model on the Hugging Face Hub.
        prompts: Templates with one slot {}, a data set whose released templates to take
            ("imagenet"), or a text file with one template a line; the text embeddings are averaged.
        top: Show this many labels a picture, the best ones; all by default.
        threshold: Show labels of at least this score only.
        scores: The score that is shown and that --threshold means.
        csv: A CSV file to write a line a label to; rows that are done are in it at any time.
        html: A file to write one self-contained page to at the end, with thumbnails and bars.
        force: Overwrite the CSV file and the page.
        as_json: Print one JSON object a picture instead of tables.
    """
    from jaxclip.evaluation.prompts import read_templates

    chosen = _labels(labels, labels_file)
    templates = read_templates(prompts)
    paths = find_given(pictures)
    if top is not None:
        require_whole_flag("--top", top, 1)
    for flag, path in (("--csv", csv), ("--html", html)):
        if path is not None:
            require_free(flag, path, force)
    opened = open_model(model)
    clip, _ = load_model(opened, of=model, tower="text", arrange=True)
    from jaxclip.evaluation.classified import LabelClassifier
    from jaxclip.hub.released import cache_folder

    classifier = LabelClassifier.make(clip, chosen, templates, cache_folder())
    del clip  # one tower after the other: only the larger one has to fit into memory
    clip, preprocess = load_model(opened, of=model, tower="image", arrange=True)
    left_out = LeftOut(len(paths))
    with RowWriter(model, _kind(clip), scores, csv=csv, html=html, json=as_json) as output:
        try:
            with progress_bar("classifying", len(paths), output.leaves_terminal()) as advance:
                rows = _classify(clip, preprocess.safe, classifier, paths, left_out, advance)
                for row in rows:
                    output.write(row.select(top, threshold, scores))
        except KeyboardInterrupt:
            where = f" and stay in {csv}" if csv is not None and output.count else ""
            told = f"interrupted; {output.count} of {len(paths)} pictures are done{where}"
            raise ValueError(told) from None
    left_out.require_some()
    if csv is not None and not as_json:
        print_line(f"wrote {csv}: {output.count} pictures, {left_out.count} left out")
    elif left_out.count:
        stderr.print(f"left out: {left_out.count} of {len(paths)} pictures", soft_wrap=True)
    return 0


def _labels(labels: Sequence[str], file: Path | None) -> list[str]:
    if bool(labels) == (file is not None):
        got = "both" if labels else "neither"
        raise UsageError(f"expected --labels or --labels-file, got {got}; give one of them")
    if file is not None:
        return distinct_lines(file)
    cleaned = [label.strip() for label in labels]
    if not all(cleaned):
        raise UsageError("--labels holds an empty label; give one or more words to choose from")
    twice = sorted({label for label in cleaned if cleaned.count(label) > 1})
    if twice:
        raise UsageError(f"--labels names {twice[0]!r} twice; give each label once")
    return cleaned


def _classify(
    clip: Any,
    to_pixels: "ToPixels",
    classifier: "LabelClassifier",
    paths: Sequence[Path],
    left_out: LeftOut,
    advance: Callable[[int], None],
) -> Iterator["ClassifiedPicture"]:
    """The rows of all pictures that can be read, in order, a batch at a time."""
    from jaxclip.evaluation.features import map_batches
    from jaxclip.search.read import read_pictures

    batch = min(len(paths), BATCH)
    names: list[str] = []
    pixels: list[np.ndarray] = []

    def rows() -> list["ClassifiedPicture"]:
        features = np.asarray(map_batches(clip.encode_image, np.stack(pixels), batch), np.float32)
        ranked = classifier.rank(clip, names, features)
        advance(len(names))
        names.clear()
        pixels.clear()
        return ranked

    for read in read_pictures("", [os.fsencode(path) for path in paths], to_pixels):
        name = os.fsdecode(read.facts.path)
        if read.pixels is None:
            left_out.add(name, read.facts.error or "")
            advance(1)
            continue
        names.append(name)
        pixels.append(read.pixels)
        if len(pixels) == batch:
            yield from rows()
    if pixels:
        yield from rows()


def _kind(clip: Any) -> str:
    return "sigmoid" if clip.config.logit_bias else "softmax"
