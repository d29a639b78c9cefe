"""Make the tiny models of the official code and what it says about two pictures and three texts.

Needs the `parity` extra. From the root of the repository:

    python -m tests.golden.make_official_golden

Of each model two files: NAME.pt, random weights in float16 as released (a traced TorchScript
archive, or a state dict), and NAME.ladder.safetensors, every stage that the official code computed
from them in float64, kept in float32. Made with torch 2.13.0 and clip-anytorch 2.6.0 on CPU.
`jaxclip verify tests/golden/NAME.pt --against tests/golden/NAME.ladder.safetensors` compares.
"""

from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lib.peers import official
from jaxclip import parity
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig

FOLDER = Path(__file__).parent


class Golden(NamedTuple):
    config: ClipConfig
    traced: bool  # as a TorchScript archive, else as a state dict


GOLDEN = {
    # twelve blocks a tower sort 0, 1, 10, 11, 2 as text
    "official-vit": Golden(
        ClipConfig(VisionConfig(32, 8, 64, 12, 1), TextConfig(64, 12, 1, 16, 101), 48), True
    ),
    "official-resnet": Golden(
        ClipConfig(ResNetConfig(64, 8, (2, 1, 2, 1)), TextConfig(64, 2, 1, 16, 101), 40), True
    ),
    # no two widths alike, more heads than one, a patch and a picture of odd size, a state dict
    "official-odd": Golden(
        ClipConfig(VisionConfig(35, 7, 128, 2, 2), TextConfig(64, 1, 1, 13, 97), 37), False
    ),
}


def inputs(config: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Two random pictures [2, h, w, c] and three texts [3, l] that end at different places."""
    rng = np.random.default_rng(7)
    size, text = config.vision.image_size, config.text
    images = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    end = text.vocab_size - 1
    tokens = np.zeros((3, text.context_length), np.int32)
    for row, length in zip(tokens, (3, 7, text.context_length), strict=True):
        row[:length] = [end - 1, *rng.integers(1, end - 1, length - 2), end]
    return images, tokens


def main() -> None:
    import torch

    for seed, (name, (config, traced)) in enumerate(GOLDEN.items()):
        path = FOLDER / f"{name}.pt"
        model = official.model(config, seed)
        if traced:
            official.save_traced(model, path, config)
        else:
            arrays = official.arrays(model)
            torch.save({key: torch.from_numpy(x) for key, x in arrays.items()}, path)
        double = official.in_float64(official.model(config, seed))
        stages = official.ladder(double, *inputs(config))
        kept = {n: x if n == "tokens" else np.float32(x) for n, x in stages.items()}
        by = f"the official code in float64, torch {version('torch')}"
        parity.record(FOLDER / f"{name}.ladder.safetensors", kept, {"by": by, "model": name})
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
