"""One HTML file that shows a run: tables, curves, answers, similarities, where the model looks.

Question:  how did a training run or an evaluation go, for somebody without the machine?
Command:   python -m experiments.report FOLDER [FOLDER ...] --out report.html
Result:    one file that needs no network and no script; look at it in any browser.

A FOLDER holds what `jaxclip train` leaves (config.json, metrics.jsonl, model.safetensors, of the
emoji also result.json with `scores`), what an evaluation leaves (result.json, predictions.npz), or
both; of several folders, each adds what it has. What a section would need and is not there is said
in its place.
"""

import base64
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, UndefinedError
from matplotlib.figure import Figure
from tyro.conf import Positional

from experiments.lib import common
from experiments.report import pictures
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import load_model, print_line
from jaxclip.evaluation import plots, results
from jaxclip.files import read_text, require_writable

Lines = list[dict[str, Any]]
TEMPLATE = Path(__file__).with_name("template.html")


@dataclasses.dataclass(frozen=True)
class Flags:
    folders: Positional[tuple[Path, ...]]
    """run folders and evaluation folders"""
    out: Path
    """the .html file"""
    data: str | None = None
    """pictures to show; else those of the evaluation, or the emoji"""
    data_dir: Path | None = None
    """where tensorflow-datasets were prepared"""
    force: bool = False
    """write over --out"""


# The folders --------------------------------------------------------------------------------------


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
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


def read_folders(folders: Sequence[Path]) -> dict[str, Any]:
    """What the folders hold: config, log, result and predictions, scores, model; some are None."""
    found: dict[str, Any] = dict.fromkeys(("config", "result", "predictions", "scores", "model"))
    found["log"] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"expected the folder of a run or an evaluation, got {folder}")
        if (folder / "config.json").is_file():
            found["config"] = _object(folder / "config.json")
        if (folder / "metrics.jsonl").is_file():
            found["log"] = read_log(folder / "metrics.jsonl")
        if (folder / "result.json").is_file():
            record = _object(folder / "result.json")
            if "scores" in record:
                found["scores"] = check_scores(record, folder / "result.json")
            else:
                found["result"], found["predictions"] = results.load(folder)
        if (folder / "model.safetensors").is_file():
            found["model"] = str(folder / "model.safetensors")
    if not any(found[name] for name in ("config", "log", "result", "scores")):
        raise ValueError(
            "expected config.json, metrics.jsonl or result.json of a run or an evaluation, got "
            f"none of them in {', '.join(map(str, folders)) or 'no folder'}"
        )
    if found["result"] and not found["model"]:
        found["model"] = str(found["result"]["model"])
    return found


# The page -----------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "not measured" if share is None else f"{100 * share:.2f} %"


def data_uri(picture: Any) -> str:
    """A PIL image or a matplotlib figure as a PNG inside of the page."""
    file = io.BytesIO()
    save = picture.savefig if isinstance(picture, Figure) else picture.save
    save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def curves(log: Lines) -> dict[str, Any] | None:
    """Loss against step, every score that was measured on the way, and the last of each."""
    losses = [(x["step"], x["loss"]) for x in log if "loss" in x]
    keys = dict.fromkeys(key for x in log for key in x)
    names = [key for key in keys if key.startswith(("top", "accuracy"))]
    if not losses and not names:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    panels = figure.subplots(1, 2 if losses and names else 1, squeeze=False)[0]
    last = []
    if losses:
        panels[0].plot(*zip(*losses, strict=True))
        panels[0].set(xlabel="step", ylabel="loss")
        last.append(f"loss {losses[-1][1]:.4g} at step {losses[-1][0]}")
    for name in names:
        points = [(x["step"], 100 * x[name]) for x in log if name in x]
        panels[-1].plot(*zip(*points, strict=True), "o-", label=name)
        panels[-1].set(xlabel="step", ylabel="%")
        panels[-1].legend()
        last.append(f"{name} {points[-1][1]:.2f} %")
    return {"figure": figure, "last": ", ".join(last)}


def confusion(classes: Sequence[str], counts: np.ndarray) -> dict[str, Any]:
    """The matrix as a figure, and the pairs that were taken for each other most."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    rows = [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
    return {"figure": plots.confusion_figure(counts, classes), "pairs": rows}


def attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    """(what `make` returns, ""), or (None, why it failed)."""
    try:
        return make(), ""
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())


def show_pictures(found: dict[str, Any], data: str | None, data_dir: Path | None) -> dict[str, Any]:
    """The parts of the page that need the pictures again, and the model."""
    result, page = found["result"] or {}, dict[str, Any]()
    spec = data or result.get("data", "emoji:test" if found["scores"] else "emoji:validation")
    columns = {} if data else result.get("columns", {})
    source, page["pictures_lacking"] = attempt(lambda: pictures.open_(spec, data_dir, columns))
    if source is None:
        return page
    shown = pictures.some(source)
    if found["predictions"] is not None and result.get("classes"):
        skipped = sum(result.get("skipped", {}).values())
        answered = pictures.answered(source, found["predictions"], result["classes"], skipped)
        page["answers"] = pictures.answers(answered)
        shown = answered[: pictures.EACH] or shown
    if found["model"] is None or not shown:
        return page
    loaded, page["model_lacking"] = attempt(lambda: load_model(found["model"]))
    if loaded is not None:
        template = (result.get("templates") or ["{}"])[0]
        page["similarity"] = pictures.similarity(*loaded, shown, template)
        page["attention"] = pictures.attention(*loaded, shown)
    return page


def report(folders: Sequence[Path], data: str | None = None, data_dir: Path | None = None) -> str:
    """The whole page; ValueError when a folder holds neither a run nor an evaluation."""
    found = read_folders(folders)
    result, scores, counts = found["result"] or {}, found["scores"] or {}, None
    if found["predictions"] is not None and result.get("classes"):
        counts = confusion(result["classes"], found["predictions"]["confusion"])
    measured = [x for x in result.get("per_class", []) if x["accuracy"] is not None]
    columns = scores.get("scores", {}).values()
    page = dict.fromkeys(("answers", "similarity", "attention", "model_lacking"))
    page |= show_pictures(found, data, data_dir)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters.update(percent=percent, uri=data_uri, json=json.dumps)
    page |= found | {
        "title": " and ".join(folder.resolve().name for folder in folders),
        "now": results.now(),
        "metrics": dict.fromkeys(metric for column in columns for metric in column),
        "curves": curves(found["log"]),
        "classes": sorted(measured, key=lambda x: x["accuracy"]),
        "confusion": counts,
    }
    try:
        return environment.from_string(TEMPLATE.read_text("utf-8")).render(page)
    except UndefinedError as error:
        raise ValueError(f"expected a complete result.json, got one where {error}") from None


def work(flags: Flags) -> None:
    """Write the page."""
    if flags.out.exists() and not flags.force:
        raise ValueError(f"{flags.out} is there already; add --force or another --out")
    require_writable(flags.out)
    page = report(flags.folders, flags.data, flags.data_dir)
    with replacing(flags.out) as temporary:
        # a class folder may have a name that is not UTF-8
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    print_line(f"wrote {flags.out}, {flags.out.stat().st_size / 1e6:.1f} MB")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run_experiment(work, Flags, given, "report", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
