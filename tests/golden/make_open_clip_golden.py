"""Make a tiny model of open_clip whose pictures are not square, and what open_clip says about it.

Needs the `parity` extra. From the root of the repository:

    python -m tests.golden.make_open_clip_golden

`open_clip-tall/` is the model as open_clip saves it: pictures of 30 x 18 pixels in patches of 6,
random weights in float16. `open_clip-tall.npz` has two inputs, their features and logits by
open_clip in float64, kept in float32, and the pixels of two pictures in each of its resize modes.
Made with torch 2.13.0 and open_clip 3.3.0 on CPU.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.lib.peers.model_peers import arrays, inputs, open_clip_peer
from jaxclip import checkpoint
from jaxclip.config import TextConfig
from jaxclip.convert.layouts import pictures as settings
from tests.golden.open_clip_tall import FOLDER, HOW, RESULTS, SIZE, make_pictures

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": list(SIZE),
        "patch_size": 6,
        "width": 24,
        "head_width": 8,
        "layers": 2,
    },
    "text_cfg": {"context_length": 11, "vocab_size": 101, "width": 16, "heads": 2, "layers": 1},
}


def their_pixels(resize: str, image: Image.Image) -> np.ndarray:
    """uint8 [h, w, 3] of open_clip's own transform, before it is normalised."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    how = settings.to_open_clip(HOW[resize]) | {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform = image_transform_v2(PreprocessCfg(SIZE, **how), is_train=False)
    return np.rint(transform(image).numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


def main() -> None:
    peer = open_clip_peer(MODEL)
    model = peer.model.half()
    FOLDER.mkdir(exist_ok=True)
    weights: Path = FOLDER / "open_clip_model.safetensors"
    checkpoint.save_arrays(weights, arrays(model), {"format": "pt"})
    said = {"model_cfg": MODEL, "preprocess_cfg": {}}
    (FOLDER / "open_clip_config.json").write_text(json.dumps(said, indent=2) + "\n")
    images, tokens = inputs(SIZE, TextConfig(16, 1, 2, 11, 101))
    stages = peer.run(model.double(), images, tokens)
    kept = {name: np.float32(x) for name, x in stages.items()} | {"pixels": images}
    for resize in HOW:
        for i, image in enumerate(make_pictures()):
            kept[f"{resize} {i}"] = their_pixels(resize, image)
    np.savez_compressed(RESULTS, tokens=tokens, **kept)
    print(f"{weights}: {weights.stat().st_size:,} bytes, {RESULTS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
