"""Rows of classified pictures on their way out: tables, JSON lines, CSV, and a page at the end."""

import csv as csv_format
import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from rich.table import Table

from jaxclip.cli.shared import print_table, warn_embedded, write_page

if TYPE_CHECKING:
    from jaxclip.evaluation.classified import ClassifiedPicture

COLUMNS = ("picture", "rank", "label", "probability", "cosine", "none_fits")


class RowWriter:
    """Writes rows as tables or JSON lines on standard output, and as CSV (RFC 4180) to a file.

    The file is made with the first row, and every row is in it as soon as it is written. A page
    (`html`) is written at the end, also of an interrupted command, with the rows until then.
    """

    def __init__(
        self,
        model: str,
        kind: str,
        scores: str,
        *,
        csv: Path | None = None,
        html: Path | None = None,
        json: bool = False,
    ) -> None:
        self.model, self.kind, self.scores = model, kind, scores
        self.csv, self.html, self.json = csv, html, json
        self.count = 0
        self.rows: list[ClassifiedPicture] = []  # of the page
        self.file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.html is not None and self.rows:
            self._write_page(self.html)

    def leaves_terminal(self) -> bool:
        """Whether a progress bar has the terminal for itself."""
        return (self._has_file() and not self.json) or not sys.stdout.isatty()

    def _has_file(self) -> bool:
        return self.csv is not None or self.html is not None

    def write(self, row: "ClassifiedPicture") -> None:
        """Write one row, at once."""
        if not self.count:
            warn_embedded(self.model)
        self.count += 1
        if self.csv is not None:
            self._write_csv(row, self.csv)
        if self.html is not None:
            self.rows.append(row)
        if self.json:
            self._print_json(row)
        elif not self._has_file():
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

    def _write_page(self, path: Path) -> None:
        from jaxclip.search.classified_page import classified_page

        title = f"{self.count} pictures, classified by {self.model}"
        alone = self.kind == "sigmoid"
        write_page(path, classified_page(title, self.rows, alone=alone))

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
        table.caption, table.caption_justify = "\n".join(row.remarks) or None, "left"
        print_table(table)
        sys.stdout.flush()
