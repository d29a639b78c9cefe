"""The record of `bench gpu`: a JSON file of rows, complete after each of them.

A row is known by all that its numbers depend on: what is measured at which settings, the card, the
versions and the code. With any of them changed it is measured again.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.bench.gpu.child import OUT_OF_MEMORY, ROOT, Outcome
from experiments.bench.gpu.rows import Row
from jaxclip.checkpoint import replacing

TRIES = 2  # of a row that fails; of one that runs out of memory, 1
OUTCOMES = ("measured", "failed", "skipped")
KEYS = ("part", "settings", "card", "versions", "code", "date", "tries")
OURS = ("jaxclip", "convert", "experiments/bench/training.py")
OURS += ("experiments/bench/batches.py", "experiments/bench/gpu/measure.py")
OURS += ("experiments/bench/gpu/attention.py", "experiments/bench/gpu/gradients.py")
PEER = ("experiments/bench/open_clip_training.py", "experiments/bench/batches.py")
PEER += ("experiments/bench/gpu/peer.py",)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the numbers of a part depend on beside a row's settings."""

    card: str
    versions: Mapping[str, str]
    code: str


def digest(*paths: str) -> str:
    """A digest of the Python files and folders of those names in the tree."""
    total = hashlib.sha256()
    for path in paths:
        found = ROOT / path
        for file in [found] if found.is_file() else sorted(found.rglob("*.py")):
            total.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:12]


class Record:
    """The rows of a file, and which of them need not be measured again."""

    def __init__(self, path: Path, origins: Mapping[str, Origin]) -> None:
        self.path, self.origins = path, origins
        self.rows: list[dict[str, Any]] = read(path)

    def _about(self, row: Row) -> dict[str, Any]:
        origin = self.origins[row.part]
        return {"part": row.part, "settings": dict(row.settings), **dataclasses.asdict(origin)}

    def _find(self, row: Row) -> dict[str, Any] | None:
        about = self._about(row)
        return next((r for r in self.rows if {k: r[k] for k in about} == about), None)

    def outcome(self, row: Row) -> str | None:
        """ "measured", "failed" or "skipped"; None where there is no such row yet."""
        found = self._find(row)
        return None if found is None else next(name for name in OUTCOMES if name in found)

    def finished(self, row: Row) -> bool:
        """Whether the row is measured or skipped, or has failed as often as it is tried."""
        found = self._find(row)
        if found is None:
            return False
        memory = found.get("failed", "").startswith(OUT_OF_MEMORY)
        return "failed" not in found or memory or found["tries"] >= TRIES

    def keep(self, row: Row, outcome: Outcome, seconds: float) -> None:
        """Write the file anew with this row; one of older code with the same settings goes."""
        about = self._about(row)
        same = {name: value for name, value in about.items() if name != "code"}
        when = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "took s": round(seconds, 1),
            "tries": (self._find(row) or {"tries": 0})["tries"] + 1,
        }
        self.rows = [r for r in self.rows if {k: r[k] for k in same} != same]
        self.rows.append({**about, **when, **outcome})
        with replacing(self.path) as temporary:
            lines = ",\n".join(json.dumps(each) for each in self.rows)
            temporary.write_text(f'{{"rows": [\n{lines}\n]}}\n')


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a record; none where there is no file. ValueError for another kind of file."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())["rows"]
        for row in rows:
            assert all(name in row for name in KEYS)
            assert any(name in row for name in OUTCOMES)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path}: expected a record of bench gpu; name another --out") from None
    return list(rows)
