"""One HTML file that shows a run: tables, curves, answers, similarities, where the model looks.

Question:  what came of a training run or an evaluation, for somebody without the machine?
Command:   python -m experiments.report FOLDER [FOLDER ...] --out report.html
Result:    one file that needs no network and no script; look at it in any browser.

A FOLDER holds what `jaxclip train` leaves (config.json, metrics.jsonl, model.safetensors, of the
emoji also result.json with `scores`), what an evaluation leaves (result.json, predictions.npz), or
both; of several folders, each adds what it has. What a section would need and is not there is said
in its place.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import common
from experiments.report import markup, pictures
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import load_model, print_line
from jaxclip.evaluation import results
from jaxclip.files import read_text, require_writable
from jaxclip.terminal import printable

Lines = list[dict[str, Any]]
WORST = 40  # classes in the table


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "not measured" if share is None else f"{100 * share:.2f} %"


class Found:
    """What the folders hold; None or empty where it is not there."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.config: dict[str, Any] | None = None
        self.log: Lines = []
        self.result: dict[str, Any] | None = None
        self.predictions: dict[str, np.ndarray] | None = None
        self.scores: dict[str, Any] | None = None  # `jaxclip train emoji` on the unseen artist
        self.model: str | None = None
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"{folder}: no such folder; a run or an evaluation was expected")
            self._add(folder)
        if not (self.config or self.log or self.result or self.scores):
            raise ValueError(
                f"{', '.join(map(str, folders))}: neither config.json, metrics.jsonl nor "
                "result.json is there; a run or an evaluation was expected"
            )
        if self.result and not self.model:
            self.model = str(self.result["model"])

    def _add(self, folder: Path) -> None:
        if (folder / "config.json").is_file():
            self.config = _object(folder / "config.json")
        if (folder / "metrics.jsonl").is_file():
            self.log = read_log(folder / "metrics.jsonl")
        if (folder / "result.json").is_file():
            self._add_result(folder)
        if (folder / "model.safetensors").is_file():
            self.model = str(folder / "model.safetensors")

    def _add_result(self, folder: Path) -> None:
        record = _object(folder / "result.json")
        if "scores" in record:
            self.scores = check_scores(record, folder / "result.json")
        else:
            self.result, self.predictions = results.load(folder)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return found


def check_scores(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """What `jaxclip train emoji` wrote: `classes`, `pictures`, `scores` {who: {metric: share}}."""
    scores = record["scores"]
    columns = list(scores.values()) if isinstance(scores, dict) else []
    tables = bool(columns) and all(isinstance(column, dict) for column in columns)
    shares = [share for column in columns for share in column.values()] if tables else []
    if not shares or not all(type(x) in (int, float) and 0 <= x <= 1 for x in shares):
        raise ValueError(
            f"{path}: expected scores from 0 to 1 by name and metric, as `jaxclip train emoji` "
            "writes them; run it again"
        )
    return record


def read_log(path: Path) -> Lines:
    """The lines of metrics.jsonl, but for a last one that a stopped run left half written."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: no JSON object ({error})") from None
    return found


# Sections -----------------------------------------------------------------------------------------


def summary(result: dict[str, Any]) -> str:
    """The metric, its interval, the published figures and what was left out."""
    low, high = result["interval"]
    rows: list[Sequence[Any]] = [
        ("experiment", result["experiment"]),
        ("pictures", result["data"]),
        ("model", result["model"]),
        (result["metric"], percent(result["value"])),
        ("95 % interval", f"{percent(low)} to {percent(high)}"),
        ("pictures that count", str(result.get("n", "not measured"))),
    ]
    metrics = result.get("metrics", {})
    rows += [(name, percent(x)) for name, x in metrics.items() if name != result["metric"]]
    rows += [(f"left out: {reason}", str(n)) for reason, n in result.get("skipped", {}).items()]
    if result.get("empty"):
        rows.append(("classes without a picture", ", ".join(result["empty"])))
    rows += [(f"published: {x['source']}", percent(x["value"])) for x in result.get("expected", [])]
    rows.append(("verdict", result.get("verdict", "nothing was compared")))
    return markup.table(("what", "value"), rows)


def unseen_artist(record: dict[str, Any]) -> str:
    """The scores of the trained model beside the floors, a row a metric."""
    scores = record["scores"]
    metrics = dict.fromkeys(metric for column in scores.values() for metric in column)
    rows = [
        (metric.replace("_", " "), *(percent(column.get(metric)) for column in scores.values()))
        for metric in metrics
    ]
    counts = f"{record.get('pictures')} pictures, {record.get('classes')} names to choose from."
    return markup.table(("metric", *scores), rows) + markup.note(counts)


def per_class(result: dict[str, Any]) -> str:
    """Accuracy of every class, the lowest first."""
    known = [row for row in result.get("per_class", []) if row["accuracy"] is not None]
    rows = [
        (row["class"], row["n"], percent(row["accuracy"]))
        for row in sorted(known, key=lambda row: row["accuracy"])
    ]
    rest = len(rows) - WORST
    more = markup.note(f"The lowest {WORST}; {rest} more are in result.json.") if rest > 0 else ""
    return markup.table(("class", "pictures", "right"), rows[:WORST]) + more


def curves(log: Lines) -> str:
    """Loss against step, and every score that was measured on the way."""
    from matplotlib.figure import Figure

    losses = [(x["step"], x["loss"]) for x in log if "loss" in x]
    names = [
        n for n in dict.fromkeys(k for x in log for k in x) if n.startswith(("top", "accuracy"))
    ]
    if not losses and not names:
        return ""
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    panels = figure.subplots(1, 2 if losses and names else 1, squeeze=False)[0]
    if losses:
        panels[0].plot(*zip(*losses, strict=True))
        panels[0].set(xlabel="step", ylabel="loss")
    for name in names:
        points = [(x["step"], 100 * x[name]) for x in log if name in x]
        panels[-1].plot(*zip(*points, strict=True), "o-", label=name)
        panels[-1].set(xlabel="step", ylabel="%")
    if names:
        panels[-1].legend()
    ends = [f"loss {losses[-1][1]:.4g} at step {losses[-1][0]}"] if losses else []
    for name in names:
        ends += [f"{name} {percent(x[name])}" for x in log if name in x][-1:]
    return markup.plot(figure, "loss and scores") + markup.note(f"Last: {', '.join(ends)}.")


def confusion(result: dict[str, Any], counts: np.ndarray) -> str:
    """The matrix as a picture, and the pairs that were taken for each other most."""
    from matplotlib.figure import Figure

    classes = result.get("classes", [])
    c = len(counts)
    figure = Figure(figsize=(7.5, 6.5), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1), label="share of the label's pictures")
    axes.set(xlabel="answer", ylabel="label")
    if c <= 30:
        # $ begins a formula in matplotlib, and a class may be called anything
        short = [printable(name[:24]).replace("$", r"\$") for name in classes]
        axes.set_xticks(range(c), short, rotation=90)
        axes.set_yticks(range(c), short)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    rows = [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
    taken = markup.table(("label", "taken for", "pictures"), rows)
    return markup.plot(figure, "confusion matrix") + taken


def setup(found: Found) -> list[tuple[str, str]]:
    """How it was trained, with what it was measured."""
    sections = []
    if found.config:
        rows = [(name, json.dumps(value)) for name, value in found.config.items()]
        sections.append(("Recipe", markup.table(("setting", "value"), rows)))
    if found.result:
        said = {"date": found.result["date"], **found.result["versions"]}
        said |= {f"SHA-256 of {k}": v for k, v in found.result.get("checksums", {}).items()}
        sections.append(("Surroundings", markup.table(("what", "value"), list(said.items()))))
    return sections


def with_pictures(found: Found, data: str | None, data_dir: Path | None) -> list[tuple[str, str]]:
    """The sections that need the pictures again, and the model."""
    of_emoji = "emoji:test" if found.scores else "emoji:validation"
    asked = data or (found.result["data"] if found.result else of_emoji)
    columns = found.result.get("columns") if found.result and not data else {}
    columns = columns if isinstance(columns, dict) else {}
    source, why = attempt(lambda: pictures.opened(asked, data_dir, columns))
    if source is None:
        return [("Pictures", markup.note(f"The pictures cannot be shown: {why}"))]
    sections, shown = [], pictures.some(source)
    if found.result and found.predictions is not None and found.result.get("classes"):
        skipped = sum(found.result.get("skipped", {}).values())
        classes = found.result["classes"]
        answered = pictures.answered(source, found.predictions, classes, skipped)
        gone = markup.note("The pictures of the answers were not found again.")
        sections.append(("Right and wrong", pictures.answers_section(answered) or gone))
        shown = answered[: pictures.EACH] or shown
    if found.model is None or not shown:
        return sections
    loaded, why = attempt(lambda: load_model(str(found.model)))
    if loaded is None:
        return [*sections, ("Similarity", markup.note(f"The model cannot be loaded: {why}"))]
    templates = found.result.get("templates", []) if found.result else []
    return [
        *sections,
        ("Similarity", pictures.similarity_section(*loaded, shown, templates)),
        ("Attention", pictures.attention_section(*loaded, shown)),
    ]


def attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    """(what `make` makes, ""), or (None, why it cannot)."""
    try:
        return make(), ""
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())


def report(folders: Sequence[Path], data: str | None = None, data_dir: Path | None = None) -> str:
    """The whole page; ValueError when a folder holds neither a run nor an evaluation."""
    found = Found(folders)
    sections: list[tuple[str, str]] = []
    if found.result:
        sections.append(("Result", summary(found.result)))
    if found.scores:
        sections.append(("Unseen artist", unseen_artist(found.scores)))
    if found.log:
        sections.append(("Curves", curves(found.log)))
    if found.result:
        sections.append(("Classes", per_class(found.result)))
    if found.result and found.predictions is not None and found.result.get("classes"):
        sections.append(("Confusion", confusion(found.result, found.predictions["confusion"])))
    sections += with_pictures(found, data, data_dir)
    sections += setup(found)
    title = " and ".join(folder.resolve().name for folder in folders)
    lead = markup.note(f"Written by experiments.report, {results.now()}")
    return markup.page(title, sections, lead)


def work(arguments: argparse.Namespace) -> None:
    """Write the page."""
    if arguments.out.exists() and not arguments.force:
        raise ValueError(f"{arguments.out} is there already; add --force or another --out")
    require_writable(arguments.out)
    page = report(arguments.folders, arguments.data, arguments.data_dir)
    with replacing(arguments.out) as temporary:
        # a class folder may have a name that is not UTF-8
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    print_line(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1e6:.1f} MB")


def flags() -> common.Parser:
    """What the command line understands."""
    made = common.Parser(prog="report", description=__doc__.splitlines()[0])
    flag = made.add_argument
    flag("folders", type=Path, nargs="+", help="run folders and evaluation folders")
    flag("--out", type=Path, required=True, help="the .html file")
    flag("--data", help="pictures to show; else those of the evaluation, or the emoji")
    flag("--data-dir", type=Path, help="where tensorflow-datasets were prepared")
    flag("--force", action="store_true", help="write over --out")
    return made


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run(flags(), work, given)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
