"""The peers: official code, open_clip and transformers on PyTorch, with one set of random weights.

Every peer is {name: (encode_image, encode_text)} of functions that run without gradients; images
are given as they like them best (a ResNet in channels_last), before the clock starts.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.batches import arrays
from experiments.bench.open_clip_training import new_open_clip
from experiments.lib.peers import official
from jaxclip import convert
from jaxclip.config import ClipConfig, ResNetConfig

Encoders = dict[str, Callable[[Any], Any]]


def weights(config: ClipConfig, folder: Path) -> Path:
    """A file of random weights in the official layout, float16 as released."""
    import torch

    path = folder / "weights.pt"
    arrays = official.arrays(official.model(config, 0))
    torch.save({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, path)
    return path


def _official(config: ClipConfig, state: dict[str, Any]) -> Any:
    from experiments.lib.peers.parity_support import official_module

    return official_module("model").build_model(dict(state)).float().eval()


def _open_clip(config: ClipConfig, state: dict[str, Any]) -> Any:
    model = new_open_clip(config)
    model.load_state_dict(state)
    return model.eval()


def _transformers(config: ClipConfig, path: Path) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        convert.convert(path, Path(folder) / "hf", "huggingface")
        return transformers.CLIPModel.from_pretrained(Path(folder) / "hf").float().eval()


def _features(result: Any) -> Any:
    return getattr(result, "pooler_output", result)


def encoders(config: ClipConfig, path: Path, dtype: str, *, compiled: bool) -> dict[str, Encoders]:
    """{peer: {"image": encode, "text": encode}}, each in `dtype` ("float32" or "bfloat16")."""
    import torch

    torch._dynamo.config.recompile_limit = 1000  # of the shapes of a run; from 8 on it gives up
    state = torch.load(path, weights_only=True)
    buffers = ("input_resolution", "context_length", "vocab_size")
    state = {name: x for name, x in state.items() if name not in buffers}
    models = {"official": _official(config, state), "open_clip": _open_clip(config, state)}
    if not isinstance(config.vision, ResNetConfig):
        models["transformers"] = _transformers(config, path)
    found: dict[str, Encoders] = {}
    for name, model in models.items():
        model = model.to(getattr(torch, dtype))
        if name == "official":
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.float()  # it computes in float32 whatever comes
        if isinstance(config.vision, ResNetConfig):
            model = model.to(memory_format=torch.channels_last)
        if name == "transformers":
            image, text = model.get_image_features, model.get_text_features
        else:
            image, text = model.encode_image, model.encode_text
        found[name] = {"image": image, "text": text}
        if compiled:  # a program a shape, as ours: one for all shapes would be slower
            make = functools.partial(torch.compile, dynamic=False)
            found[f"{name}, compiled"] = {"image": make(image), "text": make(text)}
    return found


def inputs(config: ClipConfig, batch: int, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ours, theirs): {"image": ..., "text": ...}, the same pictures and tokens."""
    import torch

    images, tokens = arrays(config, batch)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(getattr(torch, dtype))
    if isinstance(config.vision, ResNetConfig):
        pixels = pixels.to(memory_format=torch.channels_last)
    theirs = {"image": pixels, "text": torch.from_numpy(tokens.astype(np.int64))}
    return {"image": images, "text": tokens}, theirs
