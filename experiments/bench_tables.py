"""The record of the benchmarks as tables: docs/performance.md whole, a short one in the README."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxclip.checkpoint import replacing

BEGIN = "<!-- written by python -m experiments.bench -->"
END = "<!-- end of the benchmarks -->"
Rows = Sequence[Mapping[str, Any]]
UNSAID = ("where", "pairs", "measured")


def what(row: Mapping[str, Any]) -> str:
    """What the row is about, in words."""
    said = {k: v for k, v in row.items() if k not in UNSAID and not k.startswith(("wall", "cpu"))}
    words = [str(v) if k in ("model", "what", "precision") else f"{k} {v}" for k, v in said.items()]
    return ", ".join(words)


def _ratio(row: Mapping[str, Any], clock: str) -> str:
    found = row[f"{clock} ratio"][row[f"{clock} best peer"]]
    return f"**{found['median']:.2f}** ({found['low']:.2f} to {found['high']:.2f})"


def table(rows: Rows, *, short: bool = False) -> str:
    """Of rows that compare: speed beside the best peer, and the seconds of each side."""
    heads = ["", "speed, processor", "speed, wall", "best peer", "processor s: ours, theirs"]
    heads = heads[:-1] if short else heads
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        best = row["cpu best peer"]
        ours = next(iter(row["cpu s"]))
        taken = f"{row['cpu s'][ours]:.3g}, {row['cpu s'][best]:.3g}"
        cells = [what(row), _ratio(row, "cpu"), _ratio(row, "wall"), best, taken]
        lines.append("| " + " | ".join(cells[: len(heads)]) + " |")
    return "\n".join(lines)


def measured(rows: Rows) -> str:
    """Of rows without a peer: one column a number."""
    columns = list(dict.fromkeys(name for row in rows for name in row["measured"]))
    heads = ["", *columns]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        numbers = (row["measured"].get(name, "") for name in columns)
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in numbers]
        lines.append("| " + " | ".join([what(row), *cells]) + " |")
    return "\n".join(lines)


def origins(rows: Iterable[Mapping[str, Any]]) -> str:
    """Every machine, date and set of versions that the rows come from."""
    found = dict.fromkeys(
        f"- {row['where']['date']}, {row['where']['machine']}; {row['where']['versions']}"
        for row in rows
    )
    return "\n".join(found)


def suite_tables(rows: Rows, *, short: bool = False) -> str:
    """The rows with a peer, then those without."""
    with_peer = [row for row in rows if "cpu ratio" in row]
    alone = [row for row in rows if "measured" in row and "cpu ratio" not in row]
    parts = [table(with_peer, short=short)] if with_peer else []
    parts += [measured(alone)] if alone and not short else []
    return "\n\n".join(parts)


def page(record: Mapping[str, Rows]) -> str:
    """The tables of docs/performance.md."""
    parts = []
    for suite, rows in record.items():
        parts += [f"### `python -m experiments.bench {suite}`", suite_tables(rows), origins(rows)]
    return "\n\n".join(parts)


def short_page(record: Mapping[str, Rows], suites: Sequence[str]) -> str:
    """The table of the README: the suites that have a peer, one line a row."""
    rows = [row for suite in suites for row in record.get(suite, []) if "cpu ratio" in row]
    return f"{table(rows, short=True)}\n\nMeasured on:\n\n{origins(rows)}"


def write(record: Mapping[str, Rows], root: Path) -> None:
    """Put the tables between the marks of both files; ValueError where a mark is missing."""
    from experiments.bench import SHORT

    texts = {
        root / "docs" / "performance.md": page(record),
        root / "README.md": short_page(record, SHORT),
    }
    for path, text in texts.items():
        before, _, rest = path.read_text().partition(BEGIN)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"{path} lacks {BEGIN!r} or {END!r}")
        with replacing(path) as temporary:
            temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
