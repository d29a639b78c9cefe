"""What a user records of a program: `theirs.npz`, any of its keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray]
NHWC = "pixels, channels last"  # recorded as `pixels` [n, s, s, 3]


def pictures_of(probe: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The pictures of a probe in order."""
    count = sum(key.startswith("picture_") for key in probe)
    return [probe[f"picture_{i}"] for i in range(count)]


class Run:
    """One run of a program over the probe; each stage is computed when it is first needed."""

    def __init__(self, program: Any, probe: Mapping[str, np.ndarray]) -> None:
        self.program, self.probe = program, probe
        self.stages: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor:
        if key not in self.stages:
            self.stages[key] = self.compute(key)
        return self.stages[key]

    def compute(self, key: str) -> Tensor:
        """The array of that name in theirs.npz, as the program computes it."""
        program, clip, probe = self.program, self.program.clip, self.probe
        match key:
            case "pixels":
                return torch.stack([program.preprocess(p) for p in pictures_of(probe)])
            case "tokens":
                return program.tokenizer([str(text) for text in probe["texts"]])
            case "image_features":
                return clip.encode_image(torch.tensor(probe["pixels"]))
            case "text_features":
                return clip.encode_text(torch.tensor(probe["tokens"]).long())
            case "image_features_from_pictures":
                return clip.encode_image(self.get("pixels"))
            case "text_features_from_texts":
                return clip.encode_text(self.get("tokens"))
            case "logits_per_image":
                return clip.logits(self.get("image_features"), self.get("text_features"))
            case "image_hidden":
                self.compute("image_features")
                return torch.stack(clip.visual.transformer.hidden)
            case "text_hidden":
                self.compute("text_features")
                return torch.stack(clip.text.transformer.hidden)
        if key == NHWC:
            return self.get("pixels").permute(0, 2, 3, 1)
        raise ValueError(f"expected a key of theirs.npz, got {key!r}")


def record(
    program: Any, probe: Mapping[str, np.ndarray], keys: Sequence[str], threads: int = 1
) -> Arrays:
    """{key: array} of the program's run over the probe: float32, tokens int32."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            run = Run(program, probe)
            values = {key: run.get(key) for key in keys}
    finally:
        torch.set_num_threads(before)
    return {
        key.partition(",")[0]: (value.int() if key == "tokens" else value.float()).numpy()
        for key, value in values.items()
    }
