"""From a path to named arrays: which container it is, and checkpoints in several files."""

import re
from pathlib import Path
from typing import NamedTuple

from jaxclip.checkpoint import Flat
from jaxclip.files import open_regular

from .archive import npz_file, safetensors_file, strict_json, torch_archive
from .archive.inert import short_repr
from .layouts import prefixes

# File names of a folder's weights, of Hugging Face and open_clip; the first that exists is read.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "model.fp16.safetensors",  # of diffusers' folders
)
LARGEST_INDEX = 16 << 20
MOST_SHARDS = 1000
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")  # no folder, no address, nothing hidden


class Weights(NamedTuple):
    arrays: Flat  # under the file's own names
    files: list[Path]  # that they were read from
    metadata: dict[str, str]  # of a safetensors file


def locate(path: Path) -> Path:
    """The file of weights: the path itself, or the one in a folder."""
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise ValueError(
        f"{path}: expected a run folder or a Hugging Face folder with one of "
        f"{', '.join(WEIGHTS)}, got a folder without any"
    )


def _read_file(path: Path) -> tuple[Flat, dict[str, str]]:
    with open_regular(path) as file:
        head, size = file.read(64), file.seek(0, 2)
    # By the whole magic: the length of a header may begin as a pickle does.
    is_torch = head.startswith((b"PK\3\4", *torch_archive.LEGACY_MAGICS))
    is_safetensors = safetensors_file.starts_like_one(head, size)
    if not is_torch and (is_safetensors or path.suffix == ".safetensors"):
        kind = None if is_safetensors else torch_archive.other_kind(head)
        if kind is not None:
            raise ValueError(f"{path}: expected a safetensors file, got {kind}")
        arrays, metadata = safetensors_file.read(path)
        return prefixes.strip(arrays), metadata
    if path.suffix == ".npz":
        return npz_file.read(path), {}
    return torch_archive.read(path), {}


def _read_sharded(path: Path) -> Weights:
    """The tensors of several files beside an index that says which lies in which."""
    index = strict_json.read(path, LARGEST_INDEX).get("weight_map")
    ending = f".{path.name.split('.')[-3]}" if path.name.count(".") > 2 else ""
    if type(index) is not dict or not index:
        raise ValueError(f"{path}: expected a weight_map of a sharded checkpoint, got none")
    index = prefixes.strip(index)
    expected: dict[str, set[str]] = {}
    for name, file_name in index.items():
        plain = type(file_name) is str and _SHARD.fullmatch(file_name)
        plain = plain and file_name.endswith(ending)
        if not plain or len(expected) > MOST_SHARDS:
            raise ValueError(
                f"{path}: expected the plain name of a file {ending} in the same folder for each "
                f"tensor, got {short_repr(file_name)}"
            )
        expected.setdefault(file_name, set()).add(name)
    arrays: Flat = {}
    files = [path.parent / name for name in sorted(expected)]
    for file in files:
        part, _ = _read_file(file)
        if part.keys() != expected[file.name]:
            wrong = sorted(part.keys() ^ expected[file.name])
            raise ValueError(
                f"{path}: {file.name} and the index disagree about {len(wrong)} tensors, "
                f"{short_repr(wrong[0])} first; get all files again"
            )
        arrays |= part
    return Weights({name: arrays[name] for name in index}, [path, *files], {})


def open_weights(path: Path) -> Weights:
    """The arrays of any checkpoint file, and the files that they were read from."""
    found = locate(path)
    if found.name.endswith(".index.json"):
        return _read_sharded(found)
    arrays, metadata = _read_file(found)
    return Weights(arrays, [found], metadata)


def read(path: str | Path) -> Flat:
    """Read any checkpoint under its own names, without torch and without running what it holds.

    Prefixes of training programs, such as `module.`, are taken off where all names carry them.

    path: a TorchScript archive or state dict (.pt, .bin), a safetensors file, an .npz, the index of
    a sharded checkpoint, or a folder with one of these as Hugging Face or open_clip name it.
    Returns {the file's own name: array} in the file's number formats (bfloat16 as of ml_dtypes);
    read-only views of the mapped file, see `torch_archive.read`. No tensor is looked at yet:
    `load` also checks that together they are a model.
    ValueError, in one line, for every file that is not sound.

    >>> import numpy as np, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "tiny.pt")
    ...     torch_archive.write(path, {"logit_scale": np.float32(2.5)})
    ...     arrays = read(path)
    >>> arrays["logit_scale"]
    array(2.5, dtype=float32)
    """
    return open_weights(Path(path)).arrays
