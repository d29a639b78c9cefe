"""The layout of big_vision's SigLIP checkpoints, `.npz` files of named arrays, read only.

Flax as we are: kernels [in, out], but attention split by heads [d, a, k]. Where the blocks were
scanned, one array holds all of them. The file has no config: its shapes show every size, heads
included, and the rest is what its two-tower models have in common.
Source: google-research/big_vision, models/vit.py (MlpBlock: Flax's GELU, by tanh; LayerNorm's
epsilon 1e-6; MAPHead) and models/proj/image_text/text_transformer.py (pool_type "last").
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxclip.checkpoint import Flat
from jaxclip.config import ClipConfig, TextConfig, VisionConfig

from .infer import mlp_width
from .table import Config, Extras, Layout, layers_of, refuse, shape_of

IMAGE, TEXT = "params/img", "params/txt"
MODULES = {
    "visual.conv1.kernel": f"{IMAGE}/embedding/kernel",
    "visual.conv1.bias": f"{IMAGE}/embedding/bias",
    "visual.positional_embedding": f"{IMAGE}/pos_embedding",
    "visual.ln_post.scale": f"{IMAGE}/Transformer/encoder_norm/scale",
    "visual.ln_post.bias": f"{IMAGE}/Transformer/encoder_norm/bias",
    "visual.proj.kernel": f"{IMAGE}/head/kernel",
    "visual.proj.bias": f"{IMAGE}/head/bias",
    "visual.attnpool.probe": f"{IMAGE}/MAPHead_0/probe",
    "visual.attnpool.ln.scale": f"{IMAGE}/MAPHead_0/LayerNorm_0/scale",
    "visual.attnpool.ln.bias": f"{IMAGE}/MAPHead_0/LayerNorm_0/bias",
    "text.token_embedding.embedding": f"{TEXT}/Embed_0/embedding",
    "text.positional_embedding": f"{TEXT}/pos_embedding",
    "text.ln_final.scale": f"{TEXT}/Encoder_0/encoder_norm/scale",
    "text.ln_final.bias": f"{TEXT}/Encoder_0/encoder_norm/bias",
    "text.text_projection.kernel": f"{TEXT}/head/kernel",
    "text.text_projection.bias": f"{TEXT}/head/bias",
    "logit_scale": "params/t",
    "logit_bias": "params/b",
}
ATTENTION = {
    "attn.in_proj_kernel": ("query/kernel", "key/kernel", "value/kernel"),
    "attn.in_proj_bias": ("query/bias", "key/bias", "value/bias"),
    "attn.out_proj.kernel": ("out/kernel",),
    "attn.out_proj.bias": ("out/bias",),
}
MLP = {
    "mlp.c_fc.kernel": "Dense_0/kernel",
    "mlp.c_fc.bias": "Dense_0/bias",
    "mlp.c_proj.kernel": "Dense_1/kernel",
    "mlp.c_proj.bias": "Dense_1/bias",
}
NORMS = {
    "ln_1.scale": "LayerNorm_0/scale",
    "ln_1.bias": "LayerNorm_0/bias",
    "ln_2.scale": "LayerNorm_1/scale",
    "ln_2.bias": "LayerNorm_1/bias",
}
BLOCKS = {
    "visual.transformer.resblocks": f"{IMAGE}/Transformer/encoderblock",
    "text.transformer.resblocks": f"{TEXT}/Encoder_0/encoderblock",
}
POOL = f"{IMAGE}/MAPHead_0"
AXES = {"joint": (1, 0)}  # `plain_arrays` turns it, so that its parts lie along axis 0
ONES = {
    "visual.positional_embedding": 1,
    "visual.attnpool.probe": 2,
    "text.positional_embedding": 1,
    "logit_scale": 1,
    "logit_bias": 1,
}
EPSILON = 1e-6
# Published image sizes that are no multiple of the patch: (patch, width, positions) -> size.
# Source: big_vision, README of image_text: SoViT-400m/14 at 384.
IMAGE_SIZES = {(14, 1152, 27 * 27): 384}


def _block_names(at: str, rest: str) -> tuple[str, ...]:
    if rest in ATTENTION:
        return tuple(f"{at}/MultiHeadDotProductAttention_0/{name}" for name in ATTENTION[rest])
    if rest in MLP:
        return (f"{at}/MlpBlock_0/{MLP[rest]}",)
    return (f"{at}/{NORMS[rest]}",)


def names(path: str) -> tuple[str, ...]:
    """Of a parameter of ours, in the names that `plain_arrays` gives."""
    if path in MODULES:
        return (MODULES[path],)
    for ours, theirs in BLOCKS.items():
        if path.startswith(f"{ours}."):
            layer, _, rest = path.removeprefix(f"{ours}.").partition(".")
            return _block_names(f"{theirs}_{layer}", rest)
    if path.startswith("visual.attnpool."):
        return _block_names(POOL, path.removeprefix("visual.attnpool."))
    raise ValueError(f"{path}: expected a parameter of big_vision's SigLIP, got another")


def extras(config: Config) -> list[Extras]:
    return []


LAYOUT = Layout("big_vision", names, AXES, extras, ONES)


def is_one(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a two-tower model of big_vision."""
    return any(name.startswith((f"{IMAGE}/", f"{TEXT}/")) for name in arrays)


_SCANNED = re.compile(r"(.*/encoderblock)/(.*)")
_HEADS = re.compile(r".*/MultiHeadDotProductAttention_0/(query|key|value|out)/(kernel|bias)")


def _without_heads(name: str, array: np.ndarray) -> np.ndarray:
    """q, k and v as [a k, d] or [a k], the output as [a k, d]."""
    match = _HEADS.fullmatch(name)
    if match is None:
        return array
    part, leaf = match.groups()
    if leaf == "bias":
        return array if part == "out" else array.reshape(-1)
    if array.ndim != 3:
        refuse([f"{name}: expected 3 sizes, got shape {array.shape}"], LAYOUT.name)
    d = array.shape[2] if part == "out" else array.shape[0]
    return array.reshape(-1, d) if part == "out" else array.reshape(d, -1).T


def plain_arrays(arrays: Mapping[str, np.ndarray]) -> Flat:
    """The same as views: one array a layer, heads joined."""
    split: Flat = {}
    for name, array in arrays.items():
        match = _SCANNED.fullmatch(name)
        if match is None:
            split[name] = array
        elif array.ndim == 0 or not 0 < len(array) <= 1024:
            refuse([f"{name}: expected layers along axis 0, got shape {array.shape}"], LAYOUT.name)
        else:
            split |= {f"{match[1]}_{i}/{match[2]}": layer for i, layer in enumerate(array)}
    return {name: _without_heads(name, array) for name, array in split.items()}


def _heads(arrays: Mapping[str, np.ndarray], encoder: str) -> int:
    """Heads of an encoder, from the shape of its first query."""
    parts = ("MultiHeadDotProductAttention_0", "query", "kernel")
    for first, axis in ((f"{encoder}_0", 1), (encoder, 2)):  # the second is scanned
        name = "/".join((first, *parts))
        if name in arrays:
            shape = arrays[name].shape
            if len(shape) != axis + 2:
                refuse([f"{name}: expected [d, heads, head width], got shape {shape}"], LAYOUT.name)
            return int(shape[axis])
    refuse([f"- {encoder}_0/{'/'.join(parts)}"], LAYOUT.name)


def read_config(arrays: Mapping[str, np.ndarray]) -> ClipConfig:
    """The config of the arrays as they stand in the file."""
    plain = plain_arrays(arrays)
    shape, layers = shape_of(LAYOUT, plain), layers_of(LAYOUT, plain)
    if MODULES["visual.attnpool.probe"] not in plain:
        raise ValueError("expected SigLIP's attention pool (MAPHead_0), got a file without one")
    patch, _, _, d = shape("visual.conv1.kernel", 4)
    positions = shape("visual.positional_embedding", 2)[0]
    side = round(positions**0.5)
    if side**2 != positions:
        raise ValueError(f"the image tower: expected a square of positions, got {positions}")
    vision = VisionConfig(
        IMAGE_SIZES.get((patch, d, positions), side * patch),
        patch,
        d,
        layers("visual.transformer.resblocks.{}.ln_1.bias"),
        _heads(arrays, BLOCKS["visual.transformer.resblocks"]),
        mlp_width=mlp_width(d, shape("visual.transformer.resblocks.0.mlp.c_fc.kernel", 2)[1]),
        layer_norm_epsilon=EPSILON,
        patch_bias=True,
        class_token=False,
        pre_norm=False,
        pooling="attention",
        projection="linear" if MODULES["visual.proj.kernel"] in plain else "none",
    )
    vocabulary, width = shape("text.token_embedding.embedding", 2)
    text = TextConfig(
        width,
        layers("text.transformer.resblocks.{}.ln_1.bias"),
        _heads(arrays, BLOCKS["text.transformer.resblocks"]),
        context_length=shape("text.positional_embedding", 2)[0],
        vocab_size=vocabulary,
        mlp_width=mlp_width(width, shape("text.transformer.resblocks.0.mlp.c_fc.kernel", 2)[1]),
        layer_norm_epsilon=EPSILON,
        causal=False,
        pooling="last",
        projection="linear",
    )
    embed_dim = shape("text.text_projection.kernel", 2)[1]
    return ClipConfig(vision, text, embed_dim, "gelu_tanh", logit_bias="params/b" in plain)
