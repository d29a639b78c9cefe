"""The table and the plot of `compare_supervised`, from the files of its runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.supervised.data import Data
from experiments.supervised.runs import SIDES, Plan
from jaxclip.checkpoint import replacing
from jaxclip.evaluation import results

DRAWS = 2000
NAMES = {
    "supervised": "trained on labels",
    "zero": "CLIP, zero-shot by class names",
    "clip_full": "CLIP, linear probe on all training pictures",
    "supervised_full": "trained on labels, linear probe on all training pictures",
    "nearest": "nearest training picture, by pixels",
    "emoji_zero": "emoji model, zero-shot, bare names",
    "emoji_zero_photo": 'emoji model, zero-shot, "a photo of a {}."',
}
KINDS = {"clip": "CLIP", "supervised": "supervised", "pixels": "pixels", "emoji": "emoji model"}


@dataclass(frozen=True)
class Row:
    """One line of the table: shares in 0..1.

    seeds: one a seed. low, high: bootstrap over test pictures, 95 %, of the mean over seeds.
    """

    what: str
    tower: str
    seeds: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 of a single one."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else 0.0


def row(what: str, tower: str, hits: np.ndarray) -> Row:
    """hits bool (or -1, 0, 1 of a difference) [seeds, n] -> its row."""
    by_picture = hits.mean(axis=0)
    low, high = interval(by_picture)
    seeds = tuple(float(x) for x in hits.mean(axis=1))
    return Row(what, tower, seeds, float(by_picture.mean()), low, high)


def interval(by_picture: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean, 95 %; pictures are drawn, each with all its seeds.

    There are few different values, so drawing their counts is the same.
    """
    values, counts = np.unique(by_picture, return_counts=True)
    n = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=DRAWS) @ values / n
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


class Answers:
    """The answers of the runs in a folder on the test pictures: hits by run and array.

    labels: the right answers, int [n].
    """

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        self.folder, self.labels = folder, labels

    def hits(self, names: Sequence[str], arrays: Sequence[str]) -> np.ndarray | None:
        """bool [seeds, n]; None unless every run is finished and has the array."""
        found = []
        for name, array in zip(names, arrays, strict=True):
            path = self.folder / f"{name}.npz"
            if not path.is_file():
                return None
            with np.load(path, allow_pickle=False) as file:
                if array not in file:
                    return None
                found.append(file[array] == self.labels)
        return np.stack(found)


def table_lines(plan: Plan, data: Data) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """(what, tower, runs, their arrays) of every line."""
    n = len(plan.seeds)
    for tower in plan.towers:
        clips, labels = ([f"{side}-{tower}-{seed}" for seed in plan.seeds] for side in SIDES)
        yield NAMES["supervised"], tower, labels, ["answers"] * n
        yield NAMES["zero"], tower, clips, ["answers"] * n
        probes = {
            "clip": [f"probe-{x}" for x in clips],
            "supervised": [f"probe-{x}" for x in labels],
        }
        for side in SIDES:
            yield NAMES[f"{side}_full"], tower, probes[side], ["full"] * n
        for shots in data.shots:
            for side in SIDES:
                yield few_shot_line(side, shots), tower, probes[side], [f"shots_{shots}"] * n
    for shots in data.shots:
        pixels = [f"pixels-{seed}" for seed in plan.seeds]
        yield few_shot_line("pixels", shots), "", pixels, [f"shots_{shots}"] * n
        arrays = [f"shots_{shots}_{seed}" for seed in plan.seeds]
        yield few_shot_line("emoji", shots), "embedded", ["emoji"] * n, arrays
    yield NAMES["nearest"], "", ["nearest-pixels"], ["nearest"]
    yield NAMES["emoji_zero"], "embedded", ["emoji"], ["zero_shot"]
    yield NAMES["emoji_zero_photo"], "embedded", ["emoji"], ["zero_shot_photo"]


def few_shot_line(side: str, shots: int) -> str:
    """The name of a line of few-shot probes."""
    return f"probe on {shots} a class, features: {KINDS[side]}"


def table(plan: Plan, data: Data, answers: Answers) -> list[Row]:
    """All lines whose runs are finished."""
    found = ((what, tower, answers.hits(*runs)) for what, tower, *runs in table_lines(plan, data))
    return [row(what, tower, hits) for what, tower, hits in found if hits is not None]


def differences(plan: Plan, answers: Answers) -> list[Row]:
    """CLIP zero-shot less the supervised model, picture by picture and seed by seed."""
    rows = []
    for tower in plan.towers:
        names = [[f"{side}-{tower}-{seed}" for seed in plan.seeds] for side in SIDES]
        clips, labels = (answers.hits(runs, ["answers"] * len(runs)) for runs in names)
        if clips is not None and labels is not None:
            less = clips.astype(int) - labels.astype(int)
            rows.append(row("CLIP zero-shot less supervised, points", tower, less))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table in percent, as docs/supervised.md has it."""
    lines = [
        "| model | tower | accuracy (%) | 95 % over pictures | spread over seeds | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for x in rows:
        seeds = ", ".join(f"{100 * value:.1f}" for value in x.seeds)
        spread = f"{100 * x.spread:.1f}" if len(x.seeds) > 1 else "one run"
        lines.append(
            f"| {x.what} | {x.tower} | {100 * x.mean:.1f} | {100 * x.low:.1f} to "
            f"{100 * x.high:.1f} | {spread} | {seeds} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Row], data: Data, out: Path) -> None:
    """Few-shot probes against zero-shot, as the paper's Figure 6 draws them."""
    from matplotlib.figure import Figure

    by_name: Mapping[tuple[str, str], Row] = {(x.what, x.tower): x for x in rows}
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    colours = iter(["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:grey", "tab:purple"])
    lines = [(side, tower) for tower in data.towers for side in SIDES]
    for side, tower in [*lines, ("pixels", ""), ("emoji", "embedded")]:
        points = [by_name.get((few_shot_line(side, shots), tower)) for shots in data.shots]
        if any(point is None for point in points):
            continue
        colour = next(colours)
        label = f"{KINDS[side]} {tower if side in SIDES else ''}".strip()
        means, lows, highs = (
            [100 * getattr(point, name) for point in points] for name in ("mean", "low", "high")
        )
        axes.plot(data.shots, means, "o-", color=colour, label=f"probe on features: {label}")
        axes.fill_between(data.shots, lows, highs, color=colour, alpha=0.15)
        zero = {"clip": NAMES["zero"], "emoji": NAMES["emoji_zero"]}.get(side)
        if (zero, tower) in by_name:
            value = 100 * by_name[zero, tower].mean
            axes.plot([0.5], [value], "*", markersize=13, color=colour)
        if side == "supervised" and (NAMES["supervised"], tower) in by_name:
            value = 100 * by_name[NAMES["supervised"], tower].mean
            axes.axhline(value, color=colour, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, *data.shots], ["0", *map(str, data.shots)])
    axes.set(
        xlabel="labelled training pictures a class (star: zero-shot; dotted: all labels)",
        ylabel="accuracy on the 10,000 test pictures (%)",
    )
    axes.legend(fontsize=8, loc="lower right")
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")


def write(plan: Plan, data: Data) -> tuple[list[Row], list[Row]]:
    """table.md, comparison.json and (of few-shot probes) few_shot.png in --out.

    Returns (lines, differences).
    """
    answers = Answers(plan.out, data.labels("test"))
    rows, less = table(plan, data, answers), differences(plan, answers)
    record: dict[str, Any] = {
        "rows": [asdict(x) | {"spread": x.spread} for x in rows],
        "differences": [asdict(x) | {"spread": x.spread} for x in less],
        "data": data.name,
        "towers": {name: asdict(data.towers[name]) for name in plan.towers},
        "templates": data.templates,
        "epochs": plan.epochs,
        "versions": results.read_versions(),
        "date": results.now(),
    }
    for name, text in (
        ("table.md", markdown(rows) + "\n" + markdown(less)),
        ("comparison.json", json.dumps(record, indent=1)),
    ):
        with replacing(plan.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if data.shots:
        picture(rows, data, plan.out / "few_shot.png")
    return rows, less
