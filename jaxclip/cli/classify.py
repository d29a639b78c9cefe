"""The command classify: labels ranked for pictures, a row as soon as it is known."""

import csv as csv_format
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import tyro
from rich.table import Table

from jaxclip.cli.given import LeftOut, find_given, progress_bar, read_lines, require_free
from jaxclip.cli.shared import (
    AsJson,
    UsageError,
    load_model,
    open_model,
    print_line,
    print_table,
    require_whole_flag,
    stderr,
    warn_embedded,
)

if TYPE_CHECKING:
    from jaxclip.evaluation.classified import ClassifiedPicture, LabelClassifier
    from jaxclip.search.read import ToPixels

BATCH = 32  # pictures a call of the model
COLUMNS = ("picture", "rank", "label", "probability", "cosine", "none_fits")


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
        force: Overwrite the CSV file.
        as_json: Print one JSON object a picture instead of tables.
    """
    chosen = _labels(labels, labels_file)
    templates = _templates(prompts)
    paths = find_given(pictures)
    if top is not None:
        require_whole_flag("--top", top, 1)
    if csv is not None:
        require_free("--csv", csv, force)
    opened = open_model(model)
    clip, _ = load_model(opened, of=model, tower="text", arrange=True)
    from jaxclip.evaluation.classified import LabelClassifier
    from jaxclip.hub.released import cache_folder

    classifier = LabelClassifier.make(clip, chosen, templates, cache_folder())
    del clip  # one tower after the other: only the larger one has to fit into memory
    clip, preprocess = load_model(opened, of=model, tower="image", arrange=True)
    left_out = LeftOut(len(paths))
    with _Output(model, _kind(clip), scores, csv, as_json) as output:
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
        return read_lines("--labels-file", file)
    cleaned = [label.strip() for label in labels]
    if not all(cleaned):
        raise UsageError("--labels holds an empty label; give one or more words to choose from")
    twice = sorted({label for label in cleaned if cleaned.count(label) > 1})
    if twice:
        raise UsageError(f"--labels names {twice[0]!r} twice; give each label once")
    return cleaned


def _templates(given: Sequence[str]) -> list[str]:
    """The templates of --prompts: each value is one, or a data set's name, or a file of them."""
    from jaxclip.evaluation import prompts

    found: list[str] = []
    for text in given:
        if "{" in text:
            found.append(text)
        elif text in prompts.available() or text.lower().endswith(".json"):
            found += prompts.load(text).templates
        elif Path(text).is_file():
            found += read_lines("--prompts", Path(text))
        else:
            raise ValueError(
                "--prompts: expected a template with one slot {}, a text file of templates or one "
                f"of {', '.join(prompts.available())}, got {text!r}"
            )
    return list(prompts.require_slots(list(dict.fromkeys(found))))


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


class _Output:
    """Writes rows as tables or JSON lines on standard output, and as CSV (RFC 4180) to a file.

    The file is made with the first row, and every row is in it as soon as it is written.
    """

    def __init__(self, model: str, kind: str, scores: str, csv: Path | None, json: bool) -> None:
        self.model, self.kind, self.scores, self.csv, self.json = model, kind, scores, csv, json
        self.count = 0
        self.file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def leaves_terminal(self) -> bool:
        """Whether a progress bar has the terminal for itself."""
        return (self.csv is not None and not self.json) or not sys.stdout.isatty()

    def write(self, row: "ClassifiedPicture") -> None:
        """Write one row, at once."""
        if not self.count:
            warn_embedded(self.model)
        self.count += 1
        if self.csv is not None:
            self._write_csv(row, self.csv)
        if self.json:
            self._print_json(row)
        elif self.csv is None:
            self._print_table(row)

    def _write_csv(self, row: "ClassifiedPicture", path: Path) -> None:
        if self.file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # surrogateescape: a name that is not UTF-8 keeps its bytes
            self.file = open(path, "w", encoding="utf-8", errors="surrogateescape", newline="")  # noqa: SIM115
            csv_format.writer(self.file).writerow(COLUMNS)
        mark = "" if row.none_fits is None else int(row.none_fits)
        lines = [
            (row.picture, rank, x.label, f"{x.probability:.6g}", f"{x.cosine:.6g}", mark)
            for rank, x in enumerate(row.labels, start=1)
        ]
        csv_format.writer(self.file).writerows(lines or [(row.picture, "", "", "", "", mark)])
        self.file.flush()

    def _print_json(self, row: "ClassifiedPicture") -> None:
        record = {"picture": row.picture, "model": self.model, "policy": "safe"}
        labels = [
            {"label": x.label, "probability": x.probability, "logit": x.logit, "cosine": x.cosine}
            for x in row.labels
        ]
        more = {"probabilities": self.kind, "none_fits": row.none_fits, "labels": labels}
        print(json.dumps(record | more), flush=True)

    def _print_table(self, row: "ClassifiedPicture") -> None:
        alone = self.scores == "probability" and self.kind == "sigmoid"
        column = f"{self.scores} (each label on its own)" if alone else self.scores
        table = Table("label", column, title=row.picture, title_justify="left")
        for x in row.labels:
            cosine, percent = f"{x.cosine:6.3f}", f"{100 * x.probability:5.1f} %"
            table.add_row(x.label, cosine if self.scores == "cosine" else percent)
        notes = ["no label has the score of --threshold"] * (not row.labels)
        notes += ["no label fits: within the noise of unrelated words"] * (row.none_fits is True)
        table.caption, table.caption_justify = "\n".join(notes) or None, "left"
        print_table(table)
        sys.stdout.flush()
