"""All nine architectures at full size against the official PyTorch code.

Question:  do our models equal the official ones, given the same weights, at their true sizes?
Command:   pip install -e '.[test,parity]' && python -m experiments.parity_table [NAME ...]
Result:    the table of docs/parity.md, one row a model; exit code 1 if one departs.
           Every row is kept in docs/parity.json; --rewrite makes the table from it alone.

The official files cannot be had everywhere, so random weights are drawn by the official code in
float16, as released, written in the layout of the official archives and read back by our reader.
Judge is the official code in float64. Ours may depart from it by four times what torch's own
float32 departs, and by 2e-5 of the largest value, as in `jaxclip verify`
(jaxclip/parity/rounding.py).
"""

import dataclasses
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tyro.conf import Positional

import jaxclip
from experiments.lib import pages
from experiments.lib.common import missing_package
from jaxclip import convert, parity
from jaxclip.checkpoint import replacing
from jaxclip.cli.usage import USAGE, Seed, parse
from jaxclip.config import RELEASED
from jaxclip.convert.conversion import to_layout
from jaxclip.evaluation.results import name_processor
from jaxclip.images.open import open_image
from jaxclip.models.parameters import count_parameters
from jaxclip.terminal import complain, run_program

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "parity.md"
PICTURES = ("rocket", "cat-face")
TEXTS = ("a diagram", "a dog", "a cat")
FLOOR = parity.FLOOR  # of the largest value
COMMAND = "python -m experiments.parity_table"


def versions() -> str:
    """The versions that the numbers depend on."""
    return ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cosine between rows of a and b [n, e]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def count_unequal(loaded: Any, arrays: dict[str, np.ndarray]) -> int:
    """Tensors that are not, bit for bit, the file's own: no logit shows a wrong key bias."""
    again = to_layout(loaded, "openai")
    names = again.keys() | arrays.keys()
    same = (n in again and n in arrays and np.array_equal(again[n], arrays[n]) for n in names)
    return len(names) - sum(same)


def measure(name: str, seed: int = 0) -> dict[str, Any]:
    """One row: parameters, cosines, errors of ours and of torch's float32 against float64."""
    from experiments.lib.peers import archives, official  # here: --help and --rewrite need no extra

    config = RELEASED[name]
    model = official.model(config, seed)
    arrays = official.arrays(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name.replace('/', '-').replace('@', '-')}.pt"
        archives.write_torchscript_like(path, arrays)
        loaded = convert.load(path)
        unequal = count_unequal(loaded, arrays)
        assert loaded.config == config, f"{loaded.config} was read, {config} was written"
        del loaded
        ours, preprocess = jaxclip.load(path, precision="highest")
    images = np.stack([preprocess(open_image(ROOT / f"examples/{p}.png")) for p in PICTURES])
    tokens = jaxclip.tokenize(list(TEXTS))
    began = time.monotonic()
    got = {
        "image_features": np.asarray(ours.encode_image(images), np.float64),
        "text_features": np.asarray(ours.encode_text(tokens), np.float64),
        "logits": np.asarray(ours(images, tokens)[0], np.float64),
    }
    seconds = time.monotonic() - began
    parameters = count_parameters(ours)
    del ours, arrays
    gc.collect()
    single = official.run(model.float(), images, tokens)
    double = official.run(official.in_float64(model), images, tokens)
    row: dict[str, Any] = {"model": name, "parameters": parameters, "unequal tensors": unequal}
    for stage, expected in double.items():
        largest = np.abs(expected).max()
        error, torch_error = (np.abs(x[stage] - expected).max() for x in (got, single))
        row[stage] = {
            "largest": float(largest),
            "error": float(error),
            "torch error": float(torch_error),
            "allowed": float(largest * parity.allowed(torch_error / largest)),
        }
        if stage != "logits":
            row[stage]["cosine"] = cosine(got[stage], expected)
    stages = [row[stage] for stage in double]
    cosines = [s["cosine"] for s in stages if "cosine" in s]
    within = all(s["error"] <= s["allowed"] for s in stages)
    row |= {"backend": jax.default_backend(), "precision": "float32, highest"}
    row["machine"], row["versions"] = name_processor(), versions()
    row["holds"] = bool(within and unequal == 0 and min(cosines) >= 0.999999)
    return {**row, "seconds": round(seconds, 1)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (
        "| model | parameters | logits: largest | our error | torch float32's error | allowed "
        "| 1 - cosine, image | 1 - cosine, text | tensors unequal to the file | holds |"
    )
    lines = [head, "|---" * 10 + "|"]
    for row in rows:
        logits, image, text = row["logits"], row["image_features"], row["text_features"]
        numbers = (logits["error"], logits["torch error"], logits["allowed"])
        cells = [row["model"], f"{row['parameters']:,}", f"{logits['largest']:.1f}"]
        cells += [f"{x:.1e}" for x in numbers]
        cells += [f"{1 - s['cosine']:.0e}" for s in (image, text)]
        cells += [str(row["unequal tensors"]), "yes" if row["holds"] else "**no**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(rows: Sequence[dict[str, Any]]) -> str:
    """The table, what it was measured with and on: what stands between the marks of the page."""
    machines = "\n".join(
        f"- {where}: {', '.join(row['model'] for row in rows if row['machine'] == where)}"
        for where in dict.fromkeys(row["machine"] for row in rows)
    )
    held = dict.fromkeys(f"{row['backend']}, {row['precision']}, {row['versions']}" for row in rows)
    return f"{table(rows)}\n\nMeasured with {'; '.join(held)}, on:\n\n{machines}"


def main(names: Sequence[str], out: Path, seed: int) -> int:
    """Measure, keep every row in a .json beside the page `out`, and rewrite its table."""
    if not out.exists():
        out.write_text(f"{pages.begin(COMMAND)}\n{pages.END}\n")
    pages.table_in(out, COMMAND)  # a page without marks is refused before anything is measured
    record = out.with_suffix(".json")
    rows = json.loads(record.read_text()) if record.is_file() else {}
    for name in names:
        try:
            rows[name] = measure(name, seed)
        except ImportError as error:
            raise missing_package(error) from error
        print(json.dumps(rows[name]), flush=True)
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
    pages.write_table(out, COMMAND, section([rows[name] for name in RELEASED if name in rows]))
    return 0 if all(row["holds"] for row in rows.values()) else 1


@dataclasses.dataclass(frozen=True)
class Flags:
    names: Positional[tuple[Literal[*RELEASED], ...]] = tuple(RELEASED)
    """models"""
    out: Path = PAGE
    """a .md file, new or with the marks of docs/parity.md; a .json goes beside it"""
    seed: Seed = 0
    """of the random weights"""
    rewrite: bool = False
    """measure nothing, write the table"""


if __name__ == "__main__":
    flags = parse(Flags, sys.argv[1:], "parity_table", __doc__)
    if flags.out.suffix != ".md":
        complain("parity_table", f"--out: expected a file ending in .md, got {flags.out}")
        raise SystemExit(USAGE)
    names = () if flags.rewrite else flags.names
    raise SystemExit(run_program("parity_table", lambda: main(names, flags.out, flags.seed)))
