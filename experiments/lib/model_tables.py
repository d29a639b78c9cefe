"""The tables of docs/models.md, from the rows that `experiments.proofs.models` keeps."""

import re
from collections import defaultdict
from typing import Any

Row = dict[str, Any]


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [head, ("---",) * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _worst(row: Row) -> tuple[str, float, float]:
    """(stage, error, allowed) where the error is the largest part of what is allowed."""
    stage = max(
        row["stages"], key=lambda s: row["stages"][s]["error"] / row["stages"][s]["allowed"]
    )
    return stage, row["stages"][stage]["error"], row["stages"][stage]["allowed"]


def _reduced(rows: dict[str, Row]) -> str:
    """One line a family and layout: how many models, an example, the worst of them."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows.values():
        groups[row["family"], row["layout"]].append(row)
    lines = []
    for (family, layout), members in groups.items():
        worst = max(members, key=lambda row: _worst(row)[1] / _worst(row)[2])
        stage, error, allowed = _worst(worst)
        named = sum(max(len(row["models"]), 1) for row in members)
        counts = f"{named} ({len(members)} once reduced)" if named > len(members) else f"{named}"
        lines.append(
            (
                family,
                layout,
                counts,
                worst["model"],
                stage.replace("_", " "),
                f"{error:.1e}",
                f"{allowed:.1e}",
                str(sum(row["tensors unequal"] for row in members)),
                "yes" if all(row["holds"] for row in members) else "**no**",
            )
        )
    head = ("family", "layout", "models", "worst of them", "its worst stage", "error", "allowed")
    return _table((*head, "tensors unequal", "hold"), lines)


def _full(rows: dict[str, Row]) -> str:
    lines = []
    for row in sorted(rows.values(), key=lambda row: row["parameters"]):
        stage, error, allowed = _worst(row)
        lines.append(
            (
                row["model"],
                row["layout"],
                f"{row['parameters']:,}",
                stage.replace("_", " "),
                f"{error:.1e}",
                f"{row['stages'][stage]['torch error']:.1e}",
                f"{allowed:.1e}",
                str(row["tensors unequal"]),
                "yes" if row["holds"] else "**no**",
            )
        )
    head = ("model", "layout", "parameters", "worst stage", "error", "torch float32's", "allowed")
    return _table((*head, "tensors unequal", "holds"), lines)


def _configs(rows: dict[str, Row]) -> str:
    loads = [row for row in rows.values() if row["loads"]]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, row in rows.items():
        if not row["loads"]:
            reason = row["reason"].removeprefix("this file has ").partition(", which jaxclip")[0]
            if reason.startswith("the text tower"):
                reason = "a text tower of Hugging Face (RoBERTa, mT5, NLLB)"
            else:
                reason = re.sub(r": [a-z0-9_]+$", "", reason)
            reasons[reason].append(name)
    differ = sum(row["differ"] for row in loads)
    tensors = sum(row["tensors"] for row in loads)
    lines = [
        (reason, str(len(names)), ", ".join(names))
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
    table = _table(("has, which jaxclip does not have", "configs", "names"), lines)
    return (
        f"{len(loads)} of the {len(rows)} configs of open_clip load. Of these, {tensors:,} names "
        f"and shapes of tensors at full size were compared with the library's; {differ} differ. "
        f"The other {len(rows) - len(loads)} are refused by name:\n\n{table}"
    )


def section(rows: dict[str, dict[str, Row]]) -> str:
    """Everything between the marks of the page."""
    parts = []
    if "configs" in rows:
        parts.append(f"### Every config of open_clip\n\n{_configs(rows['configs'])}")
    if "reduced" in rows:
        text = "Two layers of two heads; width of a head, ratio, epsilon, pooling, activation kept."
        parts.append(f"### At reduced size\n\n{text}\n\n{_reduced(rows['reduced'])}")
    if "full" in rows:
        parts.append(f"### At full size\n\n{_full(rows['full'])}")
    measured = [row for kind in ("reduced", "full") for row in rows.get(kind, {}).values()]
    if measured:
        held = "; ".join(dict.fromkeys(row["versions"] for row in measured))
        machines = "; ".join(dict.fromkeys(row["machine"] for row in measured))
        parts.append(f"Measured with {held}, on {machines}.")
    return "\n\n".join(parts)
