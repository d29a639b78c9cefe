"""What an experiment leaves in its folder: `result.json` and `predictions.npz`, written whole.

result.json, one object; every number is a share in 0..1 unless its name says otherwise:

    experiment   "zero_shot", "celeba_identity", "retrieval", "linear_probe", ...
    data         what --data said
    dataset      the list of classes and prompts that was used: "cifar100", "custom", ...
    model        what --model said
    metric       name of the metric that is published for it: "top1", "mean_per_class", ...
    value        that metric
    interval     [low, high], bootstrap, 95 %
    metrics      {name: value} of all metrics
    n            pictures that count
    skipped      {reason: count} of those that were left out
    empty        classes without a picture
    expected     [{"value", "source"}, ...]: published figures for this model and data, maybe none
    verdict      one line: how value and expected compare
    checksums    {"weights", "prompts", "preprocessing"}: SHA-256
    classes      [c] names
    per_class    [{"class", "n", "accuracy"}, ...] in the order of classes; accuracy null if n is 0
    key          {part: SHA-256} of all that the result depends on; maybe none
    columns      {"image", "label"}: features or columns that pictures and classes were read from
    versions     {library: version}, with "python", "machine" and "backend"
    date         ISO 8601, with the zone

predictions.npz, for experiments that choose among classes:

    label        int [n], index into classes
    top          int [n, min(5, c)], best class first
    score        float [n, min(5, c)], theirs (cosines for zero-shot)
    where        str [n], the file or row that a picture came from
    confusion    int [c, c], label down, answer (top[:, 0]) across

The pictures of a run lie beside them: confusion.png and so on. A reader takes missing keys of
result.json for not measured.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import replacing

REQUIRED = ("experiment", "data", "model", "metric", "value", "interval", "versions", "date")
ARRAYS = ("label", "top", "score", "where", "confusion")


def save(folder: Path, result: dict[str, Any], predictions: dict[str, np.ndarray] | None) -> None:
    """Write both files, each whole or not at all; ValueError when a key is missing.

    Args:
      folder: made if it is not there.
      result: the object of result.json.
      predictions: the arrays of predictions.npz; None where nothing is predicted, or where the file
        is there already.
    """
    missing = [key for key in REQUIRED if key not in result]
    missing += [name for name in ARRAYS if predictions is not None and name not in predictions]
    if missing:
        raise ValueError(f"a result without {', '.join(missing)} came; all of it was expected")
    folder.mkdir(parents=True, exist_ok=True)
    if predictions is not None:
        # should this be interrupted, no result of another run stands beside these predictions
        (folder / "result.json").unlink(missing_ok=True)
        with replacing(folder / "predictions.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **predictions)
    with replacing(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def join(folder: Path, parts: Sequence[Path], confusion: np.ndarray) -> None:
    """predictions.npz from .npz files that hold a block each; one block is in memory at a time.

    Args:
      folder: where it is written, whole or not at all.
      parts: files with `label`, `top`, `score` and `where`, in order.
      confusion: int [c, c].
    """
    first = [_member(parts, name) for name in ARRAYS[:4]]
    with (
        replacing(folder / "predictions.npz") as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, (shape, dtype) in zip(ARRAYS[:4], first, strict=True):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    with np.load(part, allow_pickle=False) as arrays:
                        file.write(arrays[name].astype(dtype).tobytes())
        with archive.open("confusion.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, confusion, allow_pickle=False)


def _member(parts: Sequence[Path], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and number format (for texts the widest) of an array over all parts."""
    rows, dtype, rest = 0, np.dtype("U1"), ()
    for part in parts:
        with np.load(part, allow_pickle=False) as arrays:
            array = arrays[name]
        if len(array):
            dtype = np.promote_types(dtype, array.dtype) if array.dtype.kind == "U" else array.dtype
            rest = array.shape[1:]
        rows += len(array)
    return (rows, *rest), dtype


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """(result, predictions or None) that `save` wrote; ValueError when they are not sound."""
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
