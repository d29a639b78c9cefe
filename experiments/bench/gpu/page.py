"""The record of `bench gpu` as text: a row in a line, docs/gpu.md's tables, kernels as code."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.gpu.child import Outcome
from experiments.bench.gpu.rows import PEAKS, REAL, chip
from experiments.lib import pages

COMMAND = "python -m experiments.bench gpu"
NOTHING = "No rows yet."
ROUNDING = 0.02  # of the largest value: what bfloat16 may lose in attention and its gradient
Rows = Sequence[Mapping[str, Any]]


def words(outcome: Outcome) -> str:
    """An outcome in one line."""
    if "measured" not in outcome:
        return "; ".join(f"{name}: {why}" for name, why in outcome.items())
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in outcome["measured"].items()
        if not isinstance(value, (dict, list))
    )


def _origin(row: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
    return f"{row['date']}, {row['card']}; {versions}; code {row['code']}"


def _table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in line] for line in lines]
    shown = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in shown)


class Tables:
    """The tables of the rows that were measured; the last column says on which origin."""

    def __init__(self, rows: Rows) -> None:
        self.rows = [row for row in rows if "measured" in row]
        self.origins = list(dict.fromkeys(map(_origin, self.rows)))

    def _of(self, part: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any], int]]:
        """(settings, what was measured, number of the origin) of the rows of a part."""
        return [
            (row["settings"], row["measured"], self.origins.index(_origin(row)) + 1)
            for row in self.rows
            if row["part"] == part
        ]

    def golden(self) -> str:
        heads = ("model, float32 highest", "stages", "largest error", "on")
        lines = [
            (s["model"], m["stages"], f"{m['largest error']:.1e}", on)
            for s, m, on in self._of("golden")
        ]
        return _table(heads, lines) if lines else ""

    def gradients(self) -> str:
        heads = ("gradient beside the CPU's", "error", "worst array's", "array", "on")
        lines = [
            (f"{s['model']}, {s['batch']}, {s['dtype']}", *_errors(m), m["worst"], on)
            for s, m, on in self._of("gradients")
        ]
        return _table(heads, lines) if lines else ""

    def steps(self) -> str:
        """Each model's steps beside the peer's, on the same card."""
        lines: list[list[object]] = []
        numbers = ("ms", "images/s", "MFU %", "peak GiB", "first s")
        for model, batch, _ in REAL.steps:
            at = [row for row in self.rows if _is_step(row, model, batch)]
            for row in at:
                found, card = row["measured"], row["card"]
                theirs = [r for r in at if r["part"] == "peer" and r["card"] == card]
                if row["part"] == "peer":
                    name, beside, found = "open_clip, compiled", "", _utilised(row, at)
                else:
                    name = f"jaxclip, {row['settings']['remat']}, {found['kernels']}"
                    rate = [found["images/s"] / r["measured"]["images/s"] for r in theirs]
                    beside = f"**{rate[-1]:.2f}**" if rate else ""
                on = self.origins.index(_origin(row)) + 1
                cells = [found.get(number, "") for number in numbers]
                lines.append([f"{model}, {batch}", name, beside, *cells, on])
        heads = ("model, batch", "program", "images/s over open_clip's", "step ms", *numbers[1:])
        return _table((*heads, "on"), lines) if lines else ""

    def largest(self) -> str:
        """The first model's largest batch by policy and origin, where larger ones were tried."""
        best: dict[tuple[str, int], tuple[int, Mapping[str, Any]]] = {}
        for settings, found, on in self._of("step"):
            key = (settings["remat"], on)
            if settings["model"] == REAL.steps[0][0]:
                best[key] = max(best.get(key, (0, {})), (settings["batch"], found), key=_first)
        lines = [
            (remat, batch, found["images/s"], found.get("peak GiB", ""), on)
            for (remat, on), (batch, found) in best.items()
            if batch > REAL.steps[0][1]
        ]
        heads = (f"{REAL.steps[0][0]}: policy", "largest batch measured", "images/s", "peak GiB")
        return _table((*heads, "on"), lines) if lines else ""

    def plain(self, part: str, name: Callable[[Mapping[str, Any]], str]) -> str:
        """A line a row, a column a number."""
        found = self._of(part)
        columns = list(dict.fromkeys(column for _, m, _ in found for column in m))
        lines = [(name(s), *(m.get(c, "") for c in columns), on) for s, m, on in found]
        return _table((part, *columns, "on"), lines) if lines else ""

    def kernels(self) -> str:
        """The kinds of the newest summary, and its longest kernels."""
        found = self._of("kernels")
        if not found:
            return ""
        settings, measured, on = found[-1]
        kinds = ", ".join(f"{kind} {ms:.4g}" for kind, ms in measured["kinds"].items())
        title = f"Kernels of a step of {settings['model']}, batch {settings['batch']}, "
        title += f"{settings['remat']}, attention {settings['attention']} (on {on}): "
        title += f"{measured['ms']:.4g} ms; {kinds}."
        return title + "\n\n" + _table(("kernel", "kind", "ms", "runs"), measured["top"])


def _first(pair: tuple[int, Mapping[str, Any]]) -> int:
    return pair[0]


def _errors(measured: Mapping[str, Any]) -> tuple[str, str]:
    return f"{measured['error']:.1e}", f"{measured['worst error']:.1e}"


def _is_step(row: Mapping[str, Any], model: str, batch: int) -> bool:
    settings = row["settings"]
    named = row["part"] in ("step", "peer")
    return named and (settings["model"], settings["batch"]) == (model, batch)


def _utilised(peer: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """What was measured of the peer, with the utilisation that our count of FLOPs gives it."""
    found = dict(peer["measured"])
    counts = [row["measured"]["TFLOP"] for row in rows if row["part"] == "step"]
    name = chip(peer["card"])
    if counts and name is not None:
        found["MFU %"] = round(100 * counts[0] / (found["ms"] / 1e3) / PEAKS[name], 1)
    return found


def tables(rows: Rows) -> str:
    """The tables of docs/gpu.md."""
    made = Tables(rows)
    parts = [made.golden(), made.gradients(), made.steps(), made.kernels()]
    parts += [made.plain("attention", _attention_name), made.plain("loss", _loss_name)]
    parts += [made.plain("inference", _inference_name), made.largest()]
    parts += ["\n".join(f"{i}. {origin}" for i, origin in enumerate(made.origins, 1))]
    lacking = [row for row in rows if "measured" not in row]
    parts += [
        "\n".join(
            f"- {row['part']} {json.dumps(row['settings'])}: "
            + words({name: row[name] for name in ("failed", "skipped") if name in row})
            for row in lacking
        )
    ]
    return "\n\n".join(part for part in parts if part) or NOTHING


def _attention_name(s: Mapping[str, Any]) -> str:
    mask = ", causal" if s["causal"] else ""
    return f"{s['tokens']} tokens, {s['batch']} x {s['heads']} heads{mask}: {s['kernel']}"


def _loss_name(s: Mapping[str, Any]) -> str:
    return f"{s['loss']}, {s['pairs']:,} pairs of {s['width']}"


def _inference_name(s: Mapping[str, Any]) -> str:
    return f"{s['model']}, batch {s['batch']}, {s['dtype']}"


def attention_table(rows: Rows) -> str:
    """The kernels at each length, fastest first, as `MEASURED` of jaxclip/hardware/attention.py.

    By the time forward and backward together, of those within bfloat16's rounding.
    """
    times: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row["part"] != "attention" or "measured" not in row:
            continue
        found = row["measured"]
        if max(found["error"], found["gradient error"]) < ROUNDING:
            key = (chip(row["card"]) or row["card"], row["settings"]["tokens"])
            ms = found["forward and backward ms"]
            times.setdefault(key, {})[row["settings"]["kernel"]] = ms
    lines = []
    for (name, tokens), each in sorted(times.items()):
        kernels = sorted(each, key=each.__getitem__)
        names = ", ".join(f'"{kernel}"' for kernel in kernels) + ("," if len(kernels) == 1 else "")
        taken = ", ".join(f"{each[kernel]:.3f}" for kernel in kernels)
        lines.append(f'    ("{name}", {tokens}): ({names}),  # ms: {taken}')
    return "\n".join(["MEASURED: dict[tuple[str, int], tuple[Kernel, ...]] = {", *lines, "}"])


def write(rows: Rows, root: Path) -> None:
    """Put the tables between the marks of docs/gpu.md."""
    pages.write_table(root / "docs" / "gpu.md", COMMAND, tables(rows))
