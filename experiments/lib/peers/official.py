"""The official PyTorch code with random weights: for parity tests, recipes and the parity table.

Needs the `parity` extra; torch is imported inside the functions, so that importing this file does
not need it. Nothing of jaxclip's own arithmetic is used here.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.peers.parity_support import official_module
from jaxclip.config import ClipConfig, ResNetConfig


def model(config: ClipConfig, seed: int) -> Any:
    """The official module, random weights that keep every path alive, rounded to float16."""
    import torch

    code = official_module("model")
    torch.manual_seed(seed)
    vision, text = config.vision, config.text
    is_resnet = isinstance(vision, ResNetConfig)
    made = code.CLIP(
        config.embed_dim,
        vision.image_size,
        vision.layers,
        vision.width,
        None if is_resnet else vision.patch_size,
        text.context_length,
        text.vocab_size,
        text.width,
        text.heads,
        text.layers,
    ).eval()
    with torch.no_grad():
        for name, value in [*made.named_parameters(), *made.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.05)
            elif name.endswith("bn3.weight"):  # zero in a new model: the block would do nothing
                value.uniform_(0.2, 0.6)
        made.logit_scale.fill_(np.log(97.5))
    code.convert_weights(made)
    return made


def arrays(model: Any) -> dict[str, np.ndarray]:
    """The state dict with the three whole numbers that the released archives hold beside it."""
    named = {name: value.numpy() for name, value in model.state_dict().items()}
    numbers = {
        "input_resolution": model.visual.input_resolution,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    return named | {name: np.array(value, np.int64) for name, value in numbers.items()}


def run(model: Any, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Features and logits of the official module in its own number format."""
    import torch

    dtype = model.visual.conv1.weight.dtype
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
        ids = torch.from_numpy(tokens.astype(np.int64))
        image, text = model.encode_image(pixels), model.encode_text(ids)
        logits = model(pixels, ids)[0]
    named = {"image_features": image, "text_features": text, "logits": logits}
    return {name: value.double().numpy() for name, value in named.items()}


def in_float64(model: Any) -> Any:
    """The same module in float64; the official LayerNorm would go back to float32."""
    import torch

    def forward(self: Any, x: Any) -> Any:
        return torch.nn.LayerNorm.forward(self, x)

    official_module("model").LayerNorm.forward = forward
    return model.double()


def ladder(model: Any, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Every stage of the official module, under the names of `jaxclip/parity/rungs.py`.

    images [n, h, w, c], tokens [m, l]; what the modules hand on is caught by hooks, and turned from
    their [l, n, d] and [n, c, h, w] into ours.
    """
    seen: dict[str, Any] = {}
    hooks = []

    def keep(module: Any, name: str, axes: tuple[int, ...]) -> None:
        def hook(_: Any, __: Any, output: Any) -> None:
            seen[name] = output.permute(axes)

        hooks.append(module.register_forward_hook(hook))

    def keep_input(module: Any, name: str, axes: tuple[int, ...]) -> None:
        def hook(_: Any, inputs: Any) -> None:
            seen[name] = inputs[0].permute(axes)

        hooks.append(module.register_forward_pre_hook(hook))

    towers = {"image": model.visual, "text": model}
    for tower, module in towers.items():
        if not hasattr(module, "transformer"):
            keep_input(module.layer1, "image.stem", (0, 2, 3, 1))
            for i in (1, 2, 3, 4):
                keep(getattr(module, f"layer{i}"), f"image.layer{i}", (0, 2, 3, 1))
            continue
        keep_input(module.transformer, f"{tower}.stem", (1, 0, 2))
        for i, block in enumerate(module.transformer.resblocks):
            keep(block, f"{tower}.block.{i}", (1, 0, 2))
    if hasattr(model.visual, "ln_post"):
        keep(model.visual.ln_post, "image.pooled", (0, 1))
    keep(model.ln_final, "text.last", (0, 1, 2))
    try:
        ends = run(model, images, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    stages = {name: value.detach().numpy() for name, value in seen.items()}
    stages |= {"image.features": ends["image_features"], "text.features": ends["text_features"]}
    return {"tokens": tokens, "pixels": images, **stages, "logits": ends["logits"]}


def save_traced(model: Any, path: Path, config: ClipConfig) -> None:
    """As the released files were made: traced, with the numbers beside the weights as buffers."""
    import torch

    text, size = config.text, config.vision.image_size
    numbers = {"input_resolution": size, "context_length": text.context_length}
    for name, number in {**numbers, "vocab_size": text.vocab_size}.items():
        model.__dict__.pop(name, None)  # a plain number in the published code
        model.register_buffer(name, torch.tensor(number))
    example = (torch.zeros(1, 3, size, size), torch.zeros(1, text.context_length, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns about constants
        traced = torch.jit.trace(model.float(), example, check_trace=False)
        official_module("model").convert_weights(model)  # the traced module shares the weights
        traced.save(str(path))
