"""Whether the pictures of a dataset have classes or captions."""

from typing import Literal

from jaxclip.data.shards import Shards
from jaxclip.data.spec import DataSpec
from jaxclip.data.tables import table_rows

Contents = Literal["classes", "captions", "unknown"]


def detect_contents(spec: DataSpec, label: str = "label", caption: str = "caption") -> Contents:
    """The kind: "classes", "captions", or "unknown" for tar shards whose texts may be either.

    label, caption: the columns of a table.
    """
    if spec.kind == "captions":
        return "captions"
    if spec.kind == "table":
        rows = (row for _, row in table_rows(spec.paths[0], ()) if not isinstance(row, str))
        first = next(rows, {})
        return "captions" if caption in first and label not in first else "classes"
    if spec.kind == "tar":
        shards = Shards(spec.paths[:1])
        members = (shards.entry(i).members for i in range(len(shards)))
        return "classes" if any("cls" in suffixes for suffixes in members) else "unknown"
    return "classes"
