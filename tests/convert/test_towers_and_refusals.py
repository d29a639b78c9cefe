"""Towers alone, files in shards, defaults of configs; and models refused by what they have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.lib.peers.archives import same
from jaxclip import convert
from jaxclip.config import TextConfig, TowerConfig, VisionConfig
from jaxclip.convert.archive import torch_archive
from jaxclip.convert.layouts import huggingface_config, refusals, timm_trunk
from jaxclip.hub import load as hub
from tests.support import foreign
from tests.support.foreign import VIT


def put(folder: Path, arrays: foreign.Arrays, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".bin"):
        torch_archive.write(folder / name, arrays)
    else:
        contiguous = {k: np.asarray(v, order="C") for k, v in arrays.items()}
        save_file(contiguous, folder / name, {"format": "pt"})
    return folder


def message_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# One tower alone ----------------------------------------------------------------------------------

TEXT_NAMES, VISION_NAMES = ("text_model.", "text_projection."), ("vision_model.", "visual_proj")


def tower(kind: str, *, projection: bool, prefix: bool) -> tuple[foreign.Arrays, dict[str, Any]]:
    """(state dict, config.json) of one tower of `VIT` in Hugging Face's layout."""
    names = TEXT_NAMES if kind == "text" else VISION_NAMES
    whole = foreign.hugging_face(foreign.openai())
    arrays = {k: v for k, v in whole.items() if k.startswith(names)}
    if not projection:
        arrays = {k: v for k, v in arrays.items() if "projection" not in k}
    if not prefix:
        arrays = {k.removeprefix(f"{kind}_model."): v for k, v in arrays.items()}
    config = foreign.hugging_face_config()[f"{kind}_config"]
    return arrays, {"model_type": f"clip_{kind}_model", "projection_dim": 40, **config}


FORMS = [(True, True), (False, True), (False, False)]  # projection, prefix


def write_tower(folder: Path, kind: str, projection: bool, prefix: bool, **changes: Any) -> Path:
    arrays, config = tower(kind, projection=projection, prefix=prefix)
    put(folder, arrays)
    foreign.write_json(folder / "config.json", {**config, **changes})
    return folder


@pytest.mark.parametrize("projection, prefix", FORMS)
@pytest.mark.parametrize("kind", ["text", "vision"])
def test_a_tower_alone_is_read_and_returns(tmp_path, kind, projection, prefix):
    source = write_tower(tmp_path / "a", kind, projection, prefix)
    loaded = convert.load(source)
    whole = VIT.text if kind == "text" else VIT.vision
    right = dataclasses.replace(whole, projection="matrix" if projection else "none")
    assert loaded.config == TowerConfig(right, 40 if projection else right.width)
    everything = convert.load(put(tmp_path / "w", foreign.openai())).flat
    assert all(np.array_equal(loaded.flat[name], everything[name]) for name in loaded.flat)
    ours = tmp_path / "ours.safetensors"
    assert convert.convert(source, ours) == loaded.config
    convert.convert(ours, tmp_path / "b", "huggingface")
    assert same(convert.read(tmp_path / "b"), convert.read(source))
    assert convert.load(tmp_path / "b").config == loaded.config
    for layout, target in (("openai", "c.pt"), ("open_clip", "c.bin")):
        message = message_of(convert.convert, ours, tmp_path / target, layout)
        assert "one tower alone" in message


def test_a_tower_of_a_whole_config_is_read(tmp_path):
    """Files of old have the whole model's config beside one tower."""
    arrays, _ = tower("text", projection=True, prefix=True)
    put(tmp_path, arrays)
    whole = foreign.hugging_face_config()
    whole["text_config"]["projection_dim"] = 40
    foreign.write_json(tmp_path / "config.json", whole)
    assert convert.load(tmp_path).config == TowerConfig(VIT.text, 40)


def test_a_tower_asked_for_the_other_is_refused(tmp_path):
    source = write_tower(tmp_path, "text", True, True)
    assert "tower: expected text" in message_of(hub.load, source, tower="image")
    assert "tower='text'" in message_of(hub.load, source)


def test_a_tower_without_its_config_is_refused(tmp_path):
    arrays, _ = tower("text", projection=True, prefix=True)
    message = message_of(convert.load, put(tmp_path, arrays), activation="quick_gelu", heads=(2, 1))
    assert "one tower alone" in message and "config.json" in message


# Where the text tower pools -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_type, end, expected",
    [
        ("clip", 2, ("largest", None)),
        ("clip", 100, ("largest", None)),
        ("clip", 7, ("end", 7)),
        ("metaclip_2", 2, ("end", 2)),
        ("metaclip_2", 100, ("end", 100)),
        ("metaclip_2", 7, ("end", 7)),
    ],
)
def test_eos_token_id_2_means_the_largest_id_for_clip_alone(tmp_path, model_type, end, expected):
    folder = put(tmp_path / "a", foreign.hugging_face(foreign.openai()))
    config = foreign.hugging_face_config(model_type=model_type)
    config["text_config"]["eos_token_id"] = end
    foreign.write_json(folder / "config.json", config)
    text = convert.load(folder).config.text
    assert (text.pooling, text.end_token) == expected
    convert.convert(folder, tmp_path / "b", "huggingface")
    again = convert.load(tmp_path / "b").config.text
    assert (again.pooling, again.end_token) == expected


# Defaults of the library --------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{}, {"text_config": None, "vision_config": None}])
def test_a_config_with_no_fields_is_that_of_the_library(said):
    config = huggingface_config.from_json(
        {"model_type": "clip", **said}, is_siglip=False, tower=None
    )
    assert config.vision == VisionConfig(224, 32, 768, 12, 12)
    assert config.text == TextConfig(512) and config.embed_dim == 512
    siglip = huggingface_config.from_json({**said}, is_siglip=True, tower=None)
    assert (siglip.vision.patch_size, siglip.text.vocab_size) == (16, 32000)
    assert siglip.activation == "gelu_tanh" and siglip.text.layer_norm_epsilon == 1e-6


def test_an_end_token_that_versions_default_differently_is_asked_for():
    data = {"text_config": {"vocab_size": 49500}}
    message = message_of(huggingface_config.from_json, data, is_siglip=False, tower=None)
    assert "before version 4.31" in message and "49407" in message


# Shards, formats, shared storage ------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_in_bfloat16_are_one_model(tmp_path, ending):
    narrow = {
        k: v.astype(ml_dtypes.bfloat16) for k, v in foreign.hugging_face(foreign.openai()).items()
    }
    names, stem = sorted(narrow), "model" if ending == "safetensors" else "pytorch_model"
    index = {}
    for i in range(3):
        file = f"{stem}-0000{i + 1}-of-00003.{ending}"
        put(tmp_path, {name: narrow[name] for name in names[i::3]}, file)
        index |= dict.fromkeys(names[i::3], file)
    foreign.write_json(tmp_path / f"{stem}.{ending}.index.json", {"weight_map": index})
    foreign.write_json(tmp_path / "config.json", foreign.hugging_face_config())
    loaded = convert.load(tmp_path)
    assert loaded.config == VIT
    assert {array.dtype.name for array in loaded.flat.values()} == {"bfloat16"}
    convert.convert(tmp_path, tmp_path / "b", "huggingface")
    assert same(convert.read(tmp_path / "b"), narrow)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"


# Refused by name ----------------------------------------------------------------------------------

TENSORS = [
    ("visual.trunk.blocks.0.attn.q_bias", "EVA's attention"),
    ("visual.blocks.3.attn.q_bias", "EVA's attention"),
    ("visual.rope.freqs_cos", "RoPE"),
    ("visual.trunk.rope.freqs", "RoPE"),
    ("visual.trunk.blocks.0.mlp.fc1_g.weight", "EVA02's SwiGLU"),
    ("visual.blocks.0.mlp.w1.weight", "EVA02's SwiGLU"),
    ("visual.trunk.stem.0.conv_kxk.0.conv.weight", "FastViT"),
    ("image_encoder.model.patch_embed.0.weight", "MobileCLIP"),
    ("visual.trunk.patch_embed.backbone.0.conv.weight", "MobileCLIP's convolutional stem"),
    ("visual.trunk.patch_embed.backbone.stem.conv1.weight", "ViTamin"),
    ("text_decoder.resblocks.0.ln_1.weight", "CoCa's text decoder"),
    ("visual.attn_pool_contrastive.query", "a second attentional pooler"),
    ("visual.trunk.stages.0.blocks.0.conv_dw.weight", "ConvNeXt"),
    ("visual.transformer.resblocks.0.ls_1.gamma", "layer scale"),
    ("visual.trunk.layers.0.blocks.0.attn.relative_position_bias_table", "Swin"),
    ("text.transformer.encoder.layer.0.attention.self.query.weight", "text tower of Hugging Face"),
    ("text.transformer.embed_tokens.weight", "text tower of Hugging Face"),
    ("text.transformer.shared.weight", "text tower of Hugging Face"),
    ("transformer.resblocks.0.attn.ln_q.weight", "normalised queries"),
]


@pytest.mark.parametrize("name, part", TENSORS)
def test_tensors_of_another_model_are_named(tmp_path, name, part):
    arrays = {**foreign.openai(), name: np.zeros((2, 2), np.float32)}
    message = message_of(convert.load, put(tmp_path, arrays))
    assert part in message and message.endswith("which jaxclip does not have")


def test_pe_core_and_naflex_are_named(tmp_path):
    pool = {"visual.trunk.attn_pool.latent": np.zeros((1, 1, 4), np.float32)}
    pool |= {"visual.trunk.norm_pre.weight": np.zeros(4, np.float32)}
    assert "PE-Core" in message_of(convert.load, put(tmp_path / "a", pool))
    patch = {"vision_model.embeddings.patch_embedding.weight": np.zeros((4, 768), np.float32)}
    assert "NaFlex" in message_of(convert.load, put(tmp_path / "b", patch))


@pytest.mark.parametrize("kind", refusals.MODEL_TYPES)
def test_a_model_type_of_another_model_is_named(tmp_path, kind):
    folder = put(tmp_path, foreign.hugging_face(foreign.openai()))
    foreign.write_json(folder / "config.json", foreign.hugging_face_config(model_type=kind))
    assert refusals.MODEL_TYPES[kind] in message_of(convert.load, folder)


SETTINGS = [
    ("vision_cfg", {"timm_model_name": "eva02_base_patch16_clip_224"}, "EVA02"),
    ("vision_cfg", {"timm_model_name": "vit_pe_core_base_patch16_224"}, "PE-Core"),
    ("vision_cfg", {"timm_model_name": "vitamin_small_224"}, "ViTamin"),
    ("vision_cfg", {"timm_model_name": "resnet50"}, "'resnet50'"),
    ("vision_cfg", {"ls_init_value": 1e-4}, "layer scale"),
    ("vision_cfg", {"attentional_pool": "parallel"}, "a second attentional pooler"),
    ("vision_cfg", {"attentional_pool": True, "pool_type": "avg"}, "the first query"),
    ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "text tower xlm-roberta-base"),
    ("text_cfg", {"qk_norm": True}, "normalised queries"),
]


@pytest.mark.parametrize("tower, setting, part", SETTINGS)
def test_a_setting_of_open_clip_for_another_part_is_named(tmp_path, tower, setting, part):
    folder = put(tmp_path, foreign.openai(buffers=False), "open_clip_model.safetensors")
    config = foreign.open_clip_config()
    config["model_cfg"][tower] |= setting
    foreign.write_json(folder / "open_clip_config.json", config)
    assert f"this file has {part}" in message_of(convert.load, folder) or part in message_of(
        convert.load, folder
    )


@pytest.mark.parametrize("field", ["image_size", "patch_size"])
def test_two_equal_sides_are_one(tmp_path, field):
    native = put(tmp_path, foreign.openai(buffers=False), "open_clip_model.safetensors")
    config = foreign.open_clip_config()
    size = config["model_cfg"]["vision_cfg"][field]
    config["model_cfg"]["vision_cfg"][field] = [size, size]
    foreign.write_json(native / "open_clip_config.json", config)
    assert getattr(convert.load(native).config.vision, field) == size


@pytest.mark.parametrize("field", ["image_size", "patch_size"])
def test_what_is_not_square_is_refused_by_transformers_layout(tmp_path, field):
    """Its configs take two sides, its towers compute with one (modeling_clip.py, _siglip.py)."""
    theirs = put(tmp_path, foreign.hugging_face(foreign.openai()))
    config = foreign.hugging_face_config()
    size = config["vision_config"][field]
    config["vision_config"][field] = [size, 2 * size]
    foreign.write_json(theirs / "config.json", config)
    assert (
        f"config.json: {field}: expected one side, as an image tower of transformers takes squares "
        f"only, got {size} x {2 * size}"
    ) in message_of(convert.load, theirs)


def test_a_resnet_for_pictures_that_are_not_square_is_refused(tmp_path):
    """open_clip's own has a square attention pool."""
    native = put(
        tmp_path, foreign.openai(foreign.RESNET, buffers=False), "open_clip_model.safetensors"
    )
    config = foreign.open_clip_config(foreign.RESNET)
    config["model_cfg"]["vision_cfg"]["image_size"] = [64, 96]
    foreign.write_json(native / "open_clip_config.json", config)
    assert (
        "image_size: expected one side, as a ResNet takes squares only, got 64 x 96"
    ) in message_of(convert.load, native)


def test_a_picture_of_timm_s_tower_that_is_not_square_is_refused():
    """open_clip builds timm's tower at the size of its name, whatever image_size says."""
    name = "vit_base_patch16_siglip_224"
    settings = {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    config, _ = timm_trunk.tower(settings | {"image_size": [224, 224]})
    assert config.image_size == 224
    wanted = f"image_size: expected one side, as timm's {name} takes squares only, got 224 x 448"
    with pytest.raises(ValueError, match=wanted):
        timm_trunk.tower(settings | {"image_size": [224, 448]})


@pytest.mark.parametrize("name", ["text.cls_emb", "visual.attn_pool.query"])
def test_coca_without_its_config_is_refused(tmp_path, name):
    arrays = foreign.openai(buffers=False)
    arrays |= {name: np.zeros((2, 2), np.float32)}
    message = message_of(convert.load, put(tmp_path, arrays))
    assert "towers of CoCa" in message and "open_clip_config.json beside it" in message


def test_coca_s_pooler_as_wide_as_its_tower_is_refused(tmp_path):
    folder = put(tmp_path, foreign.openai(buffers=False), "open_clip_model.safetensors")
    config = foreign.open_clip_config()
    vision = config["model_cfg"]["vision_cfg"]
    vision |= {"attentional_pool": True, "width": config["model_cfg"]["embed_dim"]}
    foreign.write_json(folder / "open_clip_config.json", config)
    assert "of another width than embed_dim" in message_of(convert.load, folder)
