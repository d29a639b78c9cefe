"""Make `torch_script.pt`, `torch_zip.pt` and `torch_legacy.pt`: one small file of each kind.

Needs torch alone. From the root of the repository:

    python -m tests.golden.make_torch_archives

Made with torch 2.13.0. The first two come out the same every time; in the third the names of the
storages, which are memory addresses, differ. All hold `experiments.lib.peers.archives.sample()`.
"""

import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from experiments.lib.peers import archives

FOLDER = Path(__file__).parent


class Node(torch.nn.Module):
    """A module that only holds things, so that no source code gets into the archive."""


def tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:  # torch does not know the type of NumPy's arrays
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(array).copy())


def tree(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Modules within modules whose state dict is `tensors`."""
    root = Node()
    for name, value in tensors.items():
        *folders, leaf = name.split(".")
        node: Any = root
        for folder in folders:
            if folder not in node._modules:
                node.add_module(folder, Node())
            node = node._modules[folder]
        if value.is_floating_point():
            node.register_parameter(leaf, torch.nn.Parameter(value))
        else:
            node.register_buffer(leaf, value)
    return root


def save_script(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is, and still the format
        torch.jit.script(tree(tensors)).save(str(path))


def main() -> None:
    tensors = {name: tensor(array) for name, array in archives.sample().items()}
    save_script(tensors, FOLDER / "torch_script.pt")
    state = tree(tensors).state_dict()  # an OrderedDict with `_metadata`
    torch.save(state, FOLDER / "torch_zip.pt")
    legacy = FOLDER / "torch_legacy.pt"
    torch.save(state, legacy, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
