"""A SigLIP model in three libraries' own names, written down without our converters: tiny, random.

The first is transformers'; timm's trunk in open_clip and big_vision's Flax names are made from it.
"""

from __future__ import annotations

import re

import numpy as np

from jaxclip.config import ClipConfig, TextConfig, VisionConfig

Arrays = dict[str, np.ndarray]
VISION = VisionConfig(
    13,
    4,
    24,
    2,
    3,
    mlp_width=40,
    layer_norm_epsilon=1e-6,
    patch_bias=True,
    class_token=False,
    pre_norm=False,
    pooling="attention",
    projection="none",
)
TEXT = TextConfig(
    16,
    2,
    2,
    9,
    53,
    mlp_width=30,
    layer_norm_epsilon=1e-6,
    causal=False,
    pooling="last",
    projection="linear",
)
SIGLIP = ClipConfig(VISION, TEXT, 24, "gelu_tanh", logit_bias=True)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, d: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (d,), f"{name}.bias": (d,)}


def _encoder(tower: str, d: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        block = f"{tower}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{block}.self_attn.{part}", d, d)
        shapes |= _norm(f"{block}.layer_norm1", d) | _norm(f"{block}.layer_norm2", d)
        shapes |= _linear(f"{block}.mlp.fc1", d, inner) | _linear(f"{block}.mlp.fc2", inner, d)
    return shapes


def shapes() -> dict[str, tuple[int, ...]]:
    """Every key of SiglipModel's state dict."""
    v, t = VISION, TEXT
    d, e = v.width, t.width
    return {
        "logit_scale": (1,),
        "logit_bias": (1,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, 4, 4),
        "vision_model.embeddings.patch_embedding.bias": (d,),
        "vision_model.embeddings.position_embedding.weight": (9, d),
        **_encoder("vision_model", d, 40, 2),
        **_norm("vision_model.post_layernorm", d),
        "vision_model.head.probe": (1, 1, d),
        "vision_model.head.attention.in_proj_weight": (3 * d, d),
        "vision_model.head.attention.in_proj_bias": (3 * d,),
        **_linear("vision_model.head.attention.out_proj", d, d),
        **_norm("vision_model.head.layernorm", d),
        **_linear("vision_model.head.mlp.fc1", d, 40),
        **_linear("vision_model.head.mlp.fc2", 40, d),
        "text_model.embeddings.token_embedding.weight": (53, e),
        "text_model.embeddings.position_embedding.weight": (9, e),
        **_encoder("text_model", e, 30, 2),
        **_norm("text_model.final_layer_norm", e),
        **_linear("text_model.head", e, 24),
    }


def hugging_face(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes().items()}


def hugging_face_config() -> dict[str, object]:
    """`config.json`, as short as the library's defaults allow."""
    return {
        "model_type": "siglip",
        "text_config": {
            "hidden_size": 16,
            "intermediate_size": 30,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 9,
            "vocab_size": 53,
            "projection_size": 24,
        },
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 13,
            "patch_size": 4,
        },
    }


_FLAX = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "params/img/embedding/"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "params/img/pos_embedding"),
    (r"^text_model\.embeddings\.token_embedding\.weight$", "params/txt/Embed_0/embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "params/txt/pos_embedding"),
    (r"^vision_model\.post_layernorm\.", "params/img/Transformer/encoder_norm/"),
    (r"^text_model\.final_layer_norm\.", "params/txt/Encoder_0/encoder_norm/"),
    (r"^text_model\.head\.", "params/txt/head/"),
    (r"^vision_model\.head\.probe$", "params/img/MAPHead_0/probe"),
    (r"^vision_model\.head\.layernorm\.", "params/img/MAPHead_0/LayerNorm_0/"),
    (r"^vision_model\.head\.", "params/img/MAPHead_0/"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"params/img/Transformer/encoderblock_\1/"),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"params/txt/Encoder_0/encoderblock_\1/"),
    (r"layer_norm1\.", "LayerNorm_0/"),
    (r"layer_norm2\.", "LayerNorm_1/"),
    (r"mlp\.fc1\.", "MlpBlock_0/Dense_0/"),
    (r"mlp\.fc2\.", "MlpBlock_0/Dense_1/"),
    (r"(self_attn|attention)\.(q|k|v|out)_proj\.", r"MultiHeadDotProductAttention_0/\2/"),
    (r"^logit_scale$", "params/t"),
    (r"^logit_bias$", "params/b"),
)
_PARTS = {"q": "query", "k": "key", "v": "value", "out": "out"}


def _split_joint(arrays: Arrays) -> Arrays:
    """The pool's joint projection as three, as the blocks have them."""
    split = dict(arrays)
    for leaf in ("weight", "bias"):
        joint = split.pop(f"vision_model.head.attention.in_proj_{leaf}")
        for part, own in zip("qkv", np.split(joint, 3), strict=True):
            split[f"vision_model.head.attention.{part}_proj.{leaf}"] = own
    return split


def _flax_array(name: str, value: np.ndarray, heads: int) -> tuple[str, np.ndarray]:
    """Under Flax's leaf, kernels [in, out], attention split by heads."""
    attention = re.search(r"MultiHeadDotProductAttention_0/(q|k|v|out)/", name)
    if attention:
        name = name.replace(f"_0/{attention[1]}/", f"_0/{_PARTS[attention[1]]}/")
    if value.ndim == 4:
        return name.replace("weight", "kernel"), value.transpose(2, 3, 1, 0)
    if value.ndim == 2 and name.endswith("weight"):
        name, value = name.replace("weight", "kernel"), value.T
    elif name.endswith("weight"):
        name = name.replace("weight", "scale")
    if attention and attention[1] != "out":
        value = value.reshape(*value.shape[:-1], heads, -1)
    elif attention and value.ndim == 2:
        value = value.reshape(heads, -1, value.shape[1])
    return name, value


def big_vision(official: Arrays, *, scanned: bool = False) -> Arrays:
    """The same model under big_vision's names; scanned: all blocks of a tower in one array."""
    arrays: Arrays = {}
    for name, value in _split_joint(official).items():
        heads = 3 if name.startswith("vision_model") else 2
        for pattern, replacement in _FLAX:
            name = re.sub(pattern, replacement, name)
        name, value = _flax_array(name, value, heads)
        arrays[name] = value[None] if name.endswith("pos_embedding") else value
    if not scanned:
        return arrays
    stacked: dict[str, list[np.ndarray]] = {}
    for name, value in sorted(arrays.items()):
        stacked.setdefault(re.sub(r"encoderblock_\d+/", "encoderblock/", name), []).append(value)
    return {
        name: np.stack(values) if "encoderblock/" in name else values[0]
        for name, values in stacked.items()
    }


_TIMM = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"visual.trunk.blocks.\1."),
    (r"(blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"(blocks\.\d+)\.self_attn\.out_proj\.", r"\1.attn.proj."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.ln_final."),
    (r"^text_model\.head\.", "text.text_projection."),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"text.transformer.resblocks.\1."),
    (r"(resblocks\.\d+)\.layer_norm([12])\.", r"\1.ln_\2."),
    (r"(resblocks\.\d+)\.self_attn\.out_proj\.", r"\1.attn.out_proj."),
    (r"(resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"(resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
)


def open_clip_timm(official: Arrays) -> Arrays:
    """The same model under the names of open_clip's CustomTextCLIP with timm's trunk."""
    arrays: Arrays = {}
    joint: dict[str, list[np.ndarray]] = {}
    for name, value in official.items():
        if part := re.match(r"(.*)\.self_attn\.[qkv]_proj\.(weight|bias)$", name):
            tower = "visual.trunk.blocks" if name.startswith("vision") else "text.transformer."
            layer = part[1].rpartition(".")[2]
            end = f"{layer}.attn.qkv.{part[2]}"
            if tower.startswith("text"):
                end = f"{layer}.attn.in_proj_{part[2]}"
            key = f"{tower}.{end}" if tower.startswith("visual") else f"{tower}resblocks.{end}"
            joint.setdefault(key, []).append(value)
            continue
        if pool := re.match(r"vision_model\.head\.attention\.in_proj_(weight|bias)$", name):
            q, k, v = np.split(value, 3)
            arrays[f"visual.trunk.attn_pool.q.{pool[1]}"] = q
            arrays[f"visual.trunk.attn_pool.kv.{pool[1]}"] = np.concatenate([k, v])
            continue
        for pattern, replacement in _TIMM:
            name = re.sub(pattern, replacement, name)
        if name in ("logit_scale", "logit_bias"):
            value = value.reshape(())
        arrays[name] = value[None] if name == "visual.trunk.pos_embed" else value
    # q, k and v come in another order than theirs: by their names
    return arrays | {name: _in_order(official, name, parts) for name, parts in joint.items()}


def _in_order(official: Arrays, name: str, parts: list[np.ndarray]) -> np.ndarray:
    layer, leaf = re.findall(r"\d+", name)[0], re.findall(r"weight|bias", name)[0]
    tower = "vision_model" if name.startswith("visual") else "text_model"
    block = f"{tower}.encoder.layers.{layer}.self_attn"
    assert len(parts) == 3
    return np.concatenate([official[f"{block}.{part}_proj.{leaf}"] for part in "qkv"])
