"""The official package as its README uses it, in a process of its own: for timings side by side.

    python -m experiments.lib.peers.official_run make FOLDER  # random ViT-B/32, as released
    python -m experiments.lib.peers.official_run load FILE  # torch.load, build_model; two clocks
    python -m experiments.lib.peers.official_run load-archive FILE  # torch.jit.load; two clocks
    python -m experiments.lib.peers.official_run classify FILE PICTURE LABEL [LABEL ...]

Needs the `parity` extra. What current libraries lack for it is stood in for, see `package`.
"""

import sys
import time
from functools import partial
from types import ModuleType
from typing import Any

NAME = "ViT-B/32"


def package() -> Any:
    """`import clip`, with stand-ins for what current setuptools and torchvision do not have."""
    import packaging.version
    import torch

    stand_in: Any = ModuleType("pkg_resources")
    stand_in.packaging = packaging
    sys.modules.setdefault("pkg_resources", stand_in)
    register_fake = torch.library.register_fake

    def register_if_present(op: Any, *args: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):  # a build for CUDA
            return lambda function: function
        return register_fake(op, *args, **options)

    torch.library.register_fake = register_if_present
    import clip

    return clip


def make(folder: str) -> None:
    """The same weights as the released archive (traced) and as a state dict."""
    from pathlib import Path

    import torch

    from experiments.lib.peers import official
    from jaxclip.config import RELEASED

    model = official.model(RELEASED[NAME], 0)
    arrays = {name: torch.from_numpy(x) for name, x in official.arrays(model).items()}
    torch.save(arrays, Path(folder) / "state-dict.pt")
    official.save_traced(model, Path(folder) / "traced.pt", RELEASED[NAME])


def load(path: str, *, archive: bool = False) -> None:
    """Print the seconds from the file to the model, float32 as `clip.load` leaves it on a CPU."""
    import torch

    clip = package()
    began = time.monotonic(), time.process_time()
    if archive:
        state = torch.jit.load(path, map_location="cpu").eval().state_dict()
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    model = clip.model.build_model(state).float()
    print(time.monotonic() - began[0], time.process_time() - began[1])
    assert next(model.parameters()).dtype == torch.float32


def classify(path: str, picture: str, *labels: str) -> None:
    """The example of the official README, on a CPU."""
    clip = package()
    import torch
    from PIL import Image

    model, preprocess = clip.load(path, device="cpu")
    image = preprocess(Image.open(picture)).unsqueeze(0)
    text = clip.tokenize(list(labels))
    with torch.no_grad():
        probabilities = model(image, text)[0].softmax(dim=-1).numpy()[0]
    for label, probability in zip(labels, probabilities, strict=True):
        print(f"{label}: {100 * probability:.1f} %")


if __name__ == "__main__":
    commands: dict[str, Any] = {"make": make, "load": load, "classify": classify}
    commands["load-archive"] = partial(load, archive=True)
    commands[sys.argv[1]](*sys.argv[2:])
