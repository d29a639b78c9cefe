"""The models of open_clip and transformers, loaded from their own files and compared.

Question:  which of the models that people load have we, and do they equal their libraries?
Command:   pip install -e '.[test,parity]' && python -m experiments.proofs.models PART [NAME ...]
           configs    every config of open_clip: names and shapes of all tensors at full size
           reduced    every model that loads, at two layers of two heads
           full       eight models at their true size; those without a row in docs/models.json
           page       the tables of docs/models.md from docs/models.json alone
           published  FOLDER: published weights, that folder loaded by its library and by us
Result:    docs/models.md; exit code 1 if one model departs. Each row is kept as soon as it is
           measured, so that a command that was stopped goes on where it stopped.

The published weights cannot be had everywhere, so random ones are drawn, written by the library
itself in its own format and read back by our reader. Judge is the library in float64: ours may
depart from it by four times what its float32 departs, and 1e-6 of the largest value.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from experiments.lib import pages
from experiments.lib.common import missing_package
from experiments.lib.model_tables import section
from jaxclip.checkpoint import replacing
from jaxclip.cli.usage import parse
from jaxclip.evaluation.results import name_processor
from jaxclip.terminal import run_program

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
COMMAND = "python -m experiments.proofs.models page"
Part = Literal["configs", "reduced", "full", "page", "published"]
Record = dict[str, dict[str, Any]]


def versions() -> str:
    """The versions that the numbers depend on."""
    packages = ("jax", "torch", "open-clip-torch", "timm", "transformers")
    return ", ".join(f"{name} {version(name)}" for name in packages)


def keep(record: Path, rows: Record, part: str, name: str, row: dict[str, Any]) -> None:
    """Add a row to the file, which is whole at any time."""
    rows.setdefault(part, {})[name] = row
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


def configs(rows: Record, record: Path) -> None:
    """One row an open_clip config: whether it loads, and the reason where it does not."""
    from experiments.lib.peers.model_cases import loadable
    from experiments.lib.peers.model_shapes import differing_shapes

    loads, refused = loadable()
    rows["configs"] = {}
    for name, reason in refused.items():
        rows["configs"][name] = {"loads": False, "reason": reason}
    for name, settings in loads.items():
        row = {"loads": True, **differing_shapes(settings)}
        print(json.dumps({name: row}), flush=True)
        keep(record, rows, "configs", name, row)


def compare(part: str, names: Sequence[str], rows: Record, record: Path) -> None:
    """Measure the cases of that name, or those without a row."""
    from experiments.lib.peers import model_cases
    from experiments.lib.peers.model_rows import measure_in_temporary_folder

    if part == "full":
        cases = model_cases.full_cases()
    else:
        cases = [
            *model_cases.open_clip_cases(),
            *model_cases.not_square_cases(),
            *model_cases.hugging_face_cases(),
        ]
    known = [case.name for case in cases]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"expected some of {', '.join(known)}, got {unknown[0]!r}")
    for case in cases:
        if case.name not in (names or set(known) - rows.get(part, {}).keys()):
            continue
        began = time.monotonic()
        row = measure_in_temporary_folder(case)
        row |= {"models": list(case.models), "versions": versions(), "machine": name_processor()}
        row["seconds"] = round(time.monotonic() - began, 1)
        print(json.dumps(row), flush=True)
        keep(record, rows, part, case.name, row)


def published(folders: Sequence[str]) -> int:
    """Compare published weights in a folder; exit code 1 if one departs."""
    from experiments.lib.peers.model_cases import Case
    from experiments.lib.peers.model_peers import saved_peer
    from experiments.lib.peers.model_rows import measure

    failed = 0
    for folder in folders:
        case = Case(folder, "published", "", lambda folder=folder: saved_peer(Path(folder)))  # type: ignore[misc]
        row = measure(case, Path(folder))[0]
        print(json.dumps(row), flush=True)
        failed += not row["holds"]
    return int(failed > 0)


def main(part: Part, names: Sequence[str], out: Path) -> int:
    """Measure, keep every row in a .json beside the page `out`, and rewrite its tables."""
    if part == "published":
        return published(names)
    if not out.exists():
        out.write_text(f"{pages.begin(COMMAND)}\n{pages.END}\n")
    pages.table_in(out, COMMAND)  # a page without marks is refused before anything is measured
    record = out.with_suffix(".json")
    rows: Record = json.loads(record.read_text()) if record.is_file() else {}
    try:
        if part == "configs":
            configs(rows, record)
        elif part != "page":
            compare(part, names, rows, record)
    except ImportError as error:
        raise missing_package(error) from error
    pages.write_table(out, COMMAND, section(rows))
    measured = [row for kind in ("reduced", "full") for row in rows.get(kind, {}).values()]
    return 0 if all(row["holds"] for row in measured) else 1


@dataclasses.dataclass(frozen=True)
class Flags:
    part: Positional[Part]
    """configs, reduced, full, page or published"""
    names: Positional[tuple[str, ...]] = ()
    """models; of published, folders"""
    out: Path = PAGE
    """a .md file, new or with the marks of docs/models.md; a .json goes beside it"""


if __name__ == "__main__":
    flags = parse(Flags, sys.argv[1:], "models", __doc__)
    raise SystemExit(run_program("models", lambda: main(flags.part, flags.names, flags.out)))
