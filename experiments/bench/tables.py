"""The record of the benchmarks as the tables of docs/performance.md."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib import pages

COMMAND = "python -m experiments.bench"
Rows = Sequence[Mapping[str, Any]]
PEAK = "peak, ours over theirs"  # of memory, where a suite measures it
UNSAID = ("where", "pairs", "measured")


def about(row: Mapping[str, Any]) -> str:
    """The row's settings in words: all but the numbers and where they were measured."""
    said = {k: v for k, v in row.items() if k not in UNSAID and not k.startswith(("wall", "cpu"))}
    words = [str(v) if k in ("model", "what", "precision") else f"{k} {v}" for k, v in said.items()]
    return ", ".join(words)


def _ratio(row: Mapping[str, Any], clock: str) -> str:
    found = row[f"{clock} ratio"][row[f"{clock} best peer"]]
    return f"**{found['median']:.2f}** ({found['low']:.2f} to {found['high']:.2f})"


def _origin(row: Mapping[str, Any]) -> str:
    where = row["where"]
    return f"{where['date']}, {where['machine']}; {where['versions']}"


def table(rows: Rows, places: Sequence[str]) -> str:
    """A table of rows that have a peer: speed beside the best one, and the seconds of each side."""
    heads = ["", "speed, processor", "speed, wall", "best peer", "on", "processor s: ours, theirs"]
    with_peak = any(PEAK in row.get("measured", {}) for row in rows)
    heads += [PEAK] if with_peak else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        best = row["cpu best peer"]
        ours = next(iter(row["cpu s"]))
        taken = f"{row['cpu s'][ours]:.3g}, {row['cpu s'][best]:.3g}"
        on = str(places.index(_origin(row)) + 1)
        peak = str(row.get("measured", {}).get(PEAK, ""))
        cells = [about(row), _ratio(row, "cpu"), _ratio(row, "wall"), best, on, taken, peak]
        lines.append("| " + " | ".join(cells[: len(heads)]) + " |")
    return "\n".join(lines)


def measured(rows: Rows, places: Sequence[str]) -> str:
    """A table of rows without a peer: one column a number."""
    columns = list(dict.fromkeys(name for row in rows for name in row["measured"]))
    heads = ["", *columns, "on"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        numbers = (row["measured"].get(name, "") for name in columns)
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in numbers]
        on = str(places.index(_origin(row)) + 1)
        lines.append("| " + " | ".join([about(row), *cells, on]) + " |")
    return "\n".join(lines)


def origins(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every date, machine and set of versions that the rows come from; a table counts from 1."""
    return list(dict.fromkeys(_origin(row) for row in rows))


def suite_tables(rows: Rows) -> str:
    """The rows with a peer, then those without, then machines, dates and versions."""
    with_peer = [row for row in rows if "cpu ratio" in row]
    alone = [row for row in rows if "measured" in row and "cpu ratio" not in row]
    places = origins(rows)
    parts = [table(with_peer, places)] if with_peer else []
    parts += [measured(alone, places)] if alone else []
    return "\n\n".join([*parts, "\n".join(f"{i}. {place}" for i, place in enumerate(places, 1))])


def page(record: Mapping[str, Rows]) -> str:
    """The tables of docs/performance.md."""
    parts = []
    for suite, rows in record.items():
        parts += [f"### `{COMMAND} {suite}`", suite_tables(rows)]
    return "\n\n".join(parts)


def write(record: Mapping[str, Rows], root: Path) -> None:
    """Put the tables between the marks of docs/performance.md."""
    pages.write_table(root / "docs" / "performance.md", COMMAND, page(record))
