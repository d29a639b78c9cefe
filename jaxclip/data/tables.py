"""Rows of tables: .csv and .tsv with a header, .jsonl with an object a line.

A .csv has commas and quotes as Excel writes them; a quoted field may hold line ends. A .tsv has
tabs and no quoting: every character is literal. A table without the expected columns is refused; a
bad row is skipped alone, also where a quote is left open.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxclip.files import parse_json, read_text, split_lines

TABLES = (".csv", ".tsv", ".jsonl")
Row = dict[str, Any]


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row | str]]:
    """(line number, row by column, or why it cannot be used) of every row that is not blank.

    Args:
      path: a .csv, .tsv or .jsonl, by its ending in any case; CSV unless it is one of the others.
      columns: those that every row has to have.

    Raises:
      ValueError: it cannot be read, or has no header with these columns.
    """
    lines = split_lines(read_text(path))
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return _json_rows(lines, columns)
    if kind == ".tsv":
        return _rows(path, _tab_records(lines), columns)
    return _rows(path, _csv_records(lines), columns)


def _names(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))


def _json_rows(lines: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            yield number, str(error)
            continue
        if not isinstance(row, dict):
            yield number, "expected a JSON object, got another value"
        elif any(name not in row for name in columns):
            got = _names(list(row)[:9])[:200]
            yield number, f"expected the fields {_names(columns)}, got {got}"
        else:
            yield number, row


def _rows(
    path: Path, records: Iterator[tuple[int, list[str] | str]], columns: Sequence[str]
) -> Iterator[tuple[int, Row | str]]:
    """The records by the names of the first one, the header."""
    header: list[str] = []
    for number, cells in records:
        if isinstance(cells, str):
            if not header:
                raise ValueError(f"{path}, line {number}: {cells}")
            yield number, cells
        elif not any(cell.strip() for cell in cells):
            continue
        elif not header:
            header = _header(path, number, cells, columns)
        elif len(cells) < len(header) or any(cells[len(header) :]):
            yield number, f"expected {len(header)} columns, got {len(cells)}"
        else:
            yield number, dict(zip(header, cells, strict=False))


def _header(path: Path, number: int, cells: Sequence[str], columns: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    where = f"{path}, line {number}"
    if any(name not in header for name in columns):
        apart = "tabs" if path.suffix.lower() == ".tsv" else "commas"
        raise ValueError(
            f"{where}: expected the fields {_names(columns)} in a header with {apart} between "
            f"them, got {_names(header[:9])[:200]}"
        )
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise ValueError(f"{where}: expected one field {twice[0]!r}, got {header.count(twice[0])}")
    return header


def _tab_records(lines: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    return ((number, line.split("\t")) for number, line in enumerate(lines, start=1))


def _csv_records(lines: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    """(line number, cells or why not) of every record; a bad one ends with its first line."""
    start = 0
    while start < len(lines):
        done = start  # end of the last record that was yielded
        # A blank line behind the last: a quote that is open there runs into it.
        rest = (lines[i] + "\n" if i < len(lines) else "\n" for i in range(start, len(lines) + 1))
        reader = csv.reader(rest)
        reason = "a quote that is not closed"
        try:
            for cells in reader:
                end = start + reader.line_num
                if end - done > 1 and not _is_one_record(lines[done:end]):
                    break
                yield done + 1, cells
                done = end
            else:
                return
        except csv.Error as error:
            reason = str(error)
        yield done + 1, reason
        start = done + 1


def _is_one_record(lines: Sequence[str]) -> bool:
    """Whether lines are one record with line ends within quotes, and not an open quote."""
    try:
        return len(list(csv.reader((line + "\n" for line in lines), strict=True))) == 1
    except csv.Error:
        return False
