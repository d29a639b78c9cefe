"""Results of evaluations: `result.json` and `predictions.npz`, each written whole or not at all.

result.json, one object; every number is a share in 0..1 unless its name says otherwise:

    experiment   "zero_shot", "celeba_identity", "retrieval", "linear_probe", ...
    data         the dataset spec
    dataset      the list of classes and prompts that was used: "cifar100", "custom", ...
    model        its name
    metric       the metric that is published for it: "top1", "mean_per_class", ...
    value        that metric
    interval     [low, high], bootstrap, 95 %
    metrics      {name: value} of all metrics
    n            pictures that count
    skipped      {reason: count} of those that do not count
    empty        classes without a picture
    expected     [{"value", "source"}, ...]: published figures for this model and data; maybe none
    verdict      one line: how value and expected compare; maybe none
    checksums    {"weights", "prompts", "preprocessing"}: SHA-256
    classes      [c] names
    per_class    [{"class", "n", "accuracy"}, ...] in the order of classes; accuracy null if n is 0
    key          {part: SHA-256} of all that the result depends on; maybe none
    columns      {"image", "label"}: features or columns that pictures and classes were read from
    versions     {library: version}, with "python", "machine" and "backend"
    date         ISO 8601, with the zone

predictions.npz, for evaluations that choose among classes:

    label        int [n], index into classes
    top          int [n, min(5, c)], best class first
    score        float [n, min(5, c)], theirs (cosines for zero-shot)
    where        str [n], the file or row of a picture
    confusion    int [c, c], label down, answer (top[:, 0]) across

Plots of a run, such as confusion.png, are beside them. Readers take missing keys of result.json
for not measured.
"""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import replacing
from jaxclip.evaluation.metrics import Tally

REQUIRED = ("experiment", "data", "model", "metric", "value", "interval", "versions", "date")
ARRAYS = ("label", "top", "score", "where", "confusion")


def name_processor() -> str:
    """The processor as the kernel names it: family and model tell the generation."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor() or "unknown"
    lines = (line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    numbers = ", ".join(f"{k} {fields[k]}" for k in ("cpu family", "model") if k in fields)
    return f"{fields.get('model name', 'unknown')} ({numbers}), {os.cpu_count()} cores"


def read_versions() -> dict[str, str]:
    """Versions of libraries and Python, machine and backend, which the numbers depend on."""
    import jax

    names = ("jaxclip", "jax", "flax", "numpy", "pillow")
    versions = {name: version(name) for name in names} | {"python": platform.python_version()}
    return versions | {"machine": name_processor(), "backend": jax.default_backend()}


def now() -> str:
    """Date and time, with the zone, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def verdict(value: float, interval: tuple[float, float], expected: Sequence[dict[str, Any]]) -> str:
    """One line: the published figures inside of the interval, and how far off the others are."""
    if not expected:
        return "nothing is published for this model on this data"
    parts = []
    for row in expected:
        inside = interval[0] <= row["value"] <= interval[1]
        off = 100 * (value - row["value"])
        how = "within the interval" if inside else f"{off:+.1f} points from it, outside"
        parts.append(f"{100 * row['value']:.1f} ({row['source']}): {how}")
    return "; ".join(parts)


def describe_tally(
    tally: Tally,
    classes: Sequence[str],
    metric: str,
    expected: Sequence[dict[str, Any]] | None,
) -> dict[str, Any]:
    """The keys of result.json that follow from a tally.

    expected: published figures for `metric`; None where nothing is to be compared.
    """
    metrics, interval = tally.metrics(), tally.interval(metric)
    per_class = [
        {"class": name, "n": int(n), "accuracy": None if n == 0 else float(accuracy)}
        for name, n, accuracy in zip(classes, tally.counts, tally.per_class(), strict=True)
    ]
    described = {
        "metric": metric,
        "value": metrics[metric],
        "interval": list(interval),
        "metrics": metrics,
        "n": tally.n,
        "empty": [row["class"] for row in per_class if row["n"] == 0],
        "classes": list(classes),
        "per_class": per_class,
    }
    if expected is not None:
        comparison = verdict(metrics[metric], interval, expected)
        described |= {"expected": list(expected), "verdict": comparison}
    return described


def save(folder: Path, result: dict[str, Any], predictions: dict[str, np.ndarray] | None) -> None:
    """Write both files, each whole or not at all; ValueError when a key is missing.

    Args:
      folder: created if it does not exist.
      result: the object of result.json.
      predictions: the arrays of predictions.npz; None where there are none, or the file exists.
    """
    missing = [key for key in REQUIRED if key not in result]
    missing += [name for name in ARRAYS if predictions is not None and name not in predictions]
    if missing:
        raise ValueError(f"expected a result with all its keys, got none of {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    if predictions is not None:
        # after an interruption there must be no result of another run beside these predictions
        (folder / "result.json").unlink(missing_ok=True)
        with replacing(folder / "predictions.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **predictions)
    with replacing(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """(result, predictions or None) that `save` wrote; ValueError when they are damaged."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no result.json that can be read ({error})") from None
    if not isinstance(result, dict) or any(key not in result for key in REQUIRED):
        raise ValueError(
            f"{folder / 'result.json'} is not a result; expected {', '.join(REQUIRED)}"
        )
    path = folder / "predictions.npz"
    if not path.is_file():
        return result, None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return result, {name: file[name] for name in ARRAYS}
    except Exception as error:  # a damaged zip raises all kinds
        raise ValueError(f"{path} cannot be read ({error}); run the experiment again") from None
