"""Sound implementations: the official code, open_clip, transformers, ours; three number formats."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.lib.peers.parity_support import official_module, torchvision_transforms
from experiments.proofs.planted_faults import models
from experiments.proofs.planted_faults.peers.program import Program, official_names
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.convert import Loaded
from jaxclip.convert.conversion import to_layout

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Peer:
    """Another implementation's model with the exam's calls."""

    def __init__(
        self,
        image: Callable[[Tensor], Tensor],
        text: Callable[[Tensor], Tensor],
        logit_scale: Tensor,
        dtype: torch.dtype,
        autocast: bool = False,
    ) -> None:
        self.image, self.text = image, text
        self.logit_scale, self.dtype, self.autocast = logit_scale, dtype, autocast

    def context(self) -> Any:
        return torch.autocast("cpu", self.dtype) if self.autocast else nullcontext()

    def encode_image(self, pixels: Tensor) -> Tensor:
        with self.context():
            return self.image(pixels if self.autocast else pixels.to(self.dtype))

    def encode_text(self, tokens: Tensor) -> Tensor:
        with self.context():
            return self.text(tokens)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        image = image_features / image_features.norm(dim=-1, keepdim=True)
        text = text_features / text_features.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp().to(image.dtype) * image @ text.T


def ours(program: Program, dtype: torch.dtype) -> Peer:
    """The exam's own model without a fault."""
    clip = program.clip.to(dtype)
    return Peer(clip.encode_image, clip.encode_text, clip.logit_scale, dtype)


def official(program: Program, dtype: torch.dtype) -> Peer:
    """The official code; float16 as it is released (convert_weights), bfloat16 by autocast."""
    code, config = official_module("model"), program.config
    vision, text = config.vision, config.text
    patch = None if isinstance(vision, ResNetConfig) else vision.patch_size
    sizes = (text.context_length, text.vocab_size, text.width, text.heads, text.layers)
    clip = code.CLIP(
        config.embed_dim, vision.image_size, vision.layers, vision.width, patch, *sizes
    ).eval()
    _load(clip, program)
    if dtype == torch.float16:
        code.convert_weights(clip)
    autocast = dtype == torch.bfloat16
    return Peer(clip.encode_image, clip.encode_text, clip.logit_scale, dtype, autocast)


def open_clip(program: Program, dtype: torch.dtype) -> Peer:
    """open_clip with a program's weights, in that format."""
    torchvision_transforms()
    import open_clip  # type: ignore[import-not-found]

    config: ClipConfig = program.config
    v, t = config.vision, config.text
    vision: dict[str, Any] = {"image_size": v.image_size, "layers": v.layers, "width": v.width}
    if not isinstance(v, ResNetConfig):
        vision |= {"patch_size": v.patch_size, "head_width": v.width // v.heads}
    text = {"width": t.width, "heads": t.heads, "layers": t.layers}
    quick = config.activation == "quick_gelu"
    clip = open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=quick).eval()
    _load(clip, program)
    clip = clip.to(dtype)
    return Peer(clip.encode_image, clip.encode_text, clip.logit_scale, dtype)


def transformers(program: Program, dtype: torch.dtype) -> Peer:
    """The `CLIPModel` of transformers with a program's weights, in that format."""
    from transformers import CLIPConfig, CLIPModel  # type: ignore[import-not-found]

    from jaxclip.convert.layouts import huggingface

    config = program.config
    flat = models.draw_weights(program.model)
    arrays = to_layout(Loaded(flat, config, {}), "huggingface")
    clip = CLIPModel(CLIPConfig(**huggingface.to_json(config, "float32"))).eval()
    state = {
        name: torch.tensor(np.array(array, order="C"))
        for name, array in arrays.items()
        if not name.endswith("position_ids")
    }
    _check(clip.load_state_dict(state, strict=False))
    clip = clip.to(dtype)
    return Peer(
        lambda pixels: _features(clip.get_image_features(pixel_values=pixels)),
        lambda tokens: _features(clip.get_text_features(input_ids=tokens)),
        clip.logit_scale,
        dtype,
    )


def jaxclip(program: Program, dtype: torch.dtype) -> Peer:
    """This library, by itself."""
    import jax.numpy as jnp

    from jaxclip.models.clip import abstract
    from jaxclip.models.layers import Numerics
    from jaxclip.models.parameters import from_flat

    name = str(dtype).removeprefix("torch.")
    flat = models.draw_weights(program.model)
    like = abstract(program.config, numerics=Numerics(dtype=jnp.dtype(name)))
    clip = from_flat(flat, like)

    def image(pixels: Tensor) -> Tensor:
        features = clip.encode_image(pixels.float().permute(0, 2, 3, 1).numpy())
        return torch.tensor(np.array(features, np.float32))

    def text(tokens: Tensor) -> Tensor:
        return torch.tensor(np.array(clip.encode_text(tokens.int().numpy()), np.float32))

    scale = torch.tensor(np.array(flat["logit_scale"]))
    return Peer(image, text, scale, dtype)


def _features(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def _load(module: Any, program: Program) -> None:
    state = official_names(program.config, models.draw_weights(program.model))
    _check(module.load_state_dict(state, strict=False))
    module.requires_grad_(False)


def _check(result: Any) -> None:
    """Only counters and constants may be missing."""
    harmless = ("num_batches_tracked", "attn_mask", "position_ids")
    missing = [name for name in result.missing_keys if not name.endswith(harmless)]
    if missing or result.unexpected_keys:
        raise ValueError(f"expected the names of a CLIP, got {missing}, {result.unexpected_keys}")


PEERS = {
    "official code": official,
    "open_clip": open_clip,
    "transformers": transformers,
    "the exam's own": ours,
    "jaxclip": jaxclip,
}


def sound(model: str, peer: str, dtype: str) -> SimpleNamespace:
    """A program with another implementation's model, in `dtype`, and no fault."""
    program = Program(model)
    clip = PEERS[peer](program, DTYPES[dtype])
    return SimpleNamespace(clip=clip, preprocess=program.preprocess, tokenizer=program.tokenizer)
