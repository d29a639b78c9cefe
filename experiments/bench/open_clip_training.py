"""One training step of open_clip on PyTorch; needs torch and open_clip, and no jax."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.batches import arrays
from experiments.lib.peers.parity_support import torchvision_transforms
from jaxclip.config import ClipConfig, ResNetConfig

RATE, DECAY = 1e-4, 0.2


def new_open_clip(config: ClipConfig) -> Any:
    """open_clip's model of these shapes, with fresh random weights."""
    torchvision_transforms()
    import open_clip

    v, t = config.vision, config.text
    vision = {"image_size": v.image_size, "layers": v.layers, "width": v.width}
    if not isinstance(v, ResNetConfig):
        vision |= {"patch_size": v.patch_size}
    text = {
        "context_length": t.context_length,
        "vocab_size": t.vocab_size,
        "width": t.width,
        "heads": t.heads,
        "layers": t.layers,
    }
    return open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=True).float()


def step(config: ClipConfig, batch: int, precision: str) -> Callable[..., float]:
    """A function that makes so many steps (AdamW with two groups) and returns the last loss.

    On a GPU the model is compiled, the optimizer fused, and the float32 products that autocast
    leaves are TF32. The batch waits on the device.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    model = new_open_clip(config).to(device).train()
    if isinstance(config.vision, ResNetConfig):
        model = model.to(memory_format=torch.channels_last)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6, fused=fused)
    forward = torch.compile(model) if device == "cuda" else model
    images, tokens = arrays(config, batch)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
    if isinstance(config.vision, ResNetConfig):
        pixels = pixels.to(memory_format=torch.channels_last)
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    own = torch.arange(batch, device=device)

    def make_step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            image, text, scale = forward(pixels, ids)[:3]
            logits = scale * image @ text.T
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits.float(), own) + cross_entropy(logits.T.float(), own)) / 2
        loss.backward()
        optimizer.step()
        return loss.detach()

    def run(steps: int = 1) -> float:
        for _ in range(steps):
            loss = make_step()
        return float(loss)  # waits for the device

    return run
