"""SigLIP from transformers, from timm's trunk in open_clip and from big_vision: one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.lib.peers.archives import same
from jaxclip import convert
from jaxclip.convert.layouts import open_clip_config, timm_trunk
from jaxclip.convert.layouts.compare import config_faults
from tests.support import foreign
from tests.support.foreign_siglip import (
    SIGLIP,
    big_vision,
    hugging_face,
    hugging_face_config,
    open_clip_timm,
)


def put(folder: Path, arrays: foreign.Arrays, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    for name, data in config.items():
        foreign.write_json(folder / f"{name}.json", data)
    return folder


def siglip(folder: Path) -> Path:
    return put(folder, hugging_face(), config=hugging_face_config())


def message_of(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        convert.load(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_number_of_siglip_lies_where_it_belongs(tmp_path):
    theirs, flat = hugging_face(), convert.load(siglip(tmp_path)).flat
    head = "vision_model.head"
    assert (flat["visual.attnpool.probe"] == theirs[f"{head}.probe"][0, 0]).all()
    joint = flat["visual.attnpool.attn.in_proj_kernel"]
    assert (joint == theirs[f"{head}.attention.in_proj_weight"].T).all()
    assert (flat["visual.attnpool.mlp.c_fc.kernel"] == theirs[f"{head}.mlp.fc1.weight"].T).all()
    assert (flat["text.text_projection.kernel"] == theirs["text_model.head.weight"].T).all()
    assert flat["logit_bias"] == theirs["logit_bias"][0] and flat["logit_bias"].shape == ()
    patch = theirs["vision_model.embeddings.patch_embedding.weight"]
    assert flat["visual.conv1.kernel"][1, 3, 2, 7] == patch[7, 2, 1, 3]


def test_siglip_returns_to_the_bit(tmp_path):
    source = siglip(tmp_path / "a")
    ours = tmp_path / "ours.safetensors"
    config = convert.convert(source, ours)
    assert not config_faults(SIGLIP, config)
    convert.convert(ours, tmp_path / "b", "huggingface")
    assert same(convert.read(tmp_path / "b"), hugging_face())
    assert not config_faults(SIGLIP, convert.load(tmp_path / "b").config)


@pytest.mark.parametrize("scanned", [False, True])
def test_big_vision_gives_the_same_model(tmp_path, scanned):
    """Its pictures of 13 pixels show as the 12 that the patches cover."""
    np.savez(tmp_path / "model.npz", **big_vision(hugging_face(), scanned=scanned))
    loaded = convert.load(tmp_path / "model.npz")
    vision = dataclasses.replace(SIGLIP.vision, image_size=12)
    assert not config_faults(dataclasses.replace(SIGLIP, vision=vision), loaded.config)
    right = convert.load(siglip(tmp_path / "a")).flat
    assert loaded.flat.keys() == right.keys()
    assert all(np.array_equal(loaded.flat[name], right[name]) for name in right)
    # the negative twin: queries and keys exchanged
    wrong = big_vision(hugging_face(), scanned=scanned)
    for name in list(wrong):
        if "/query/" in name:
            other = name.replace("/query/", "/key/")
            wrong[name], wrong[other] = wrong[other], wrong[name]
    np.savez(tmp_path / "wrong.npz", **wrong)
    flat = convert.load(tmp_path / "wrong.npz").flat
    assert not all(np.array_equal(flat[name], right[name]) for name in right)


def test_bfloat16_of_big_vision_is_read(tmp_path):
    """NumPy writes it as two bytes of anything."""
    narrow = {k: v.astype(ml_dtypes.bfloat16) for k, v in big_vision(hugging_face()).items()}
    np.savez(tmp_path / "model.npz", **narrow)
    loaded = convert.load(tmp_path / "model.npz")
    assert {array.dtype.name for array in loaded.flat.values()} == {"bfloat16"}


def test_pictures_of_so400m_at_384_are_known(tmp_path):
    """27 patches of 14 are 378 pixels; the published model takes 384."""
    from jaxclip.convert.layouts import big_vision as layout

    assert layout.IMAGE_SIZES[14, 1152, 729] == 384


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda a: a.pop("params/img/MAPHead_0/probe"), "attention pool"),
        (lambda a: a.update({"params/img/extra": np.zeros(2, np.float32)}), "+ 'params/img/extra'"),
        (
            lambda a: a.update({"params/img/pos_embedding": np.zeros((1, 8, 24), np.float32)}),
            "a square of positions, got 8",
        ),
        (
            lambda a: a.pop("params/txt/Encoder_0/encoderblock_0/LayerNorm_0/bias"),
            "expected layers 0, 1, 2",
        ),
    ],
)
def test_a_file_of_big_vision_that_is_not_whole_is_refused(tmp_path, change, part):
    arrays = big_vision(hugging_face())
    change(arrays)
    np.savez(tmp_path / "model.npz", **arrays)
    assert part in message_of(tmp_path / "model.npz")


def small_timm() -> Any:
    """Our table of timm's towers with one as small as the test's, under a name of timm."""
    sizes = timm_trunk.Size(24, 2, 3, 40 / 24 + 1e-9)
    return (
        mock.patch.dict(timm_trunk.SIGLIP, {"base": sizes}),
        mock.patch.dict(timm_trunk.SIGLIP_NAMES, {("base", 4): (13,)}),
    )


def timm_config(name: str = "vit_base_patch4_siglip_13", **text: Any) -> dict[str, Any]:
    vision = {"image_size": 13, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    cfg = {"context_length": 9, "vocab_size": 53, "width": 16, "heads": 2, "layers": 2}
    cfg |= {"mlp_ratio": 1.875, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    cfg |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}, **text}
    model = {"embed_dim": 24, "init_logit_bias": -10, "custom_text": True}
    return {"model_cfg": {**model, "vision_cfg": vision, "text_cfg": cfg}, "preprocess_cfg": {}}


def test_timm_s_trunk_gives_the_same_numbers_and_returns(tmp_path):
    arrays = open_clip_timm(hugging_face())
    source = put(tmp_path / "a", arrays, open_clip_config=timm_config())
    tables = small_timm()
    with tables[0], tables[1]:
        loaded = convert.load(source)
        right = convert.load(siglip(tmp_path / "b")).flat
        assert all(np.array_equal(loaded.flat[name], right[name]) for name in right)
        assert loaded.config.activation == "gelu"  # timm's, where transformers has tanh
        assert loaded.config.text.own_activation == "gelu_tanh"
        target = tmp_path / "c" / "open_clip_model.safetensors"
        convert.convert(source, target, "open_clip")
        assert same(convert.read(target), arrays)
        assert not config_faults(loaded.config, convert.load(target).config)
        with pytest.raises(ValueError, match=r"has gelu, the image tower gelu_tanh"):
            convert.convert(tmp_path / "b", tmp_path / "d.safetensors", "open_clip")


@pytest.mark.parametrize(
    "name, part",
    [
        ("vit_base_patch16_siglip_225", "a name of timm"),
        ("vit_base_patch4_siglip_13", "c_fc"),
        ("fastvit_mci1", "MobileCLIP's FastViT trunk"),
        ("vit_base_patch16_siglip_gap_224", "timm"),
    ],
)
def test_another_trunk_is_refused(tmp_path, name, part):
    config = timm_config(name, mlp_ratio=2.0)
    source = put(tmp_path, open_clip_timm(hugging_face()), open_clip_config=config)
    tables = small_timm()
    with tables[0], tables[1]:
        assert part in message_of(source)


def test_towers_that_timm_has_are_known_by_name():
    for (size, patch), image_sizes in timm_trunk.SIGLIP_NAMES.items():
        for image_size in image_sizes:
            name = f"vit_{size}_patch{patch}_siglip_{image_size}"
            settings = {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
            config, activation = timm_trunk.tower({**settings, "image_size": image_size})
            assert timm_trunk.settings(config, activation)["timm_model_name"] == name
    tanh = {"timm_model_name": "vit_so400m_patch16_siglip_256", "timm_pool": "map"}
    tanh |= {"timm_proj": "none", "image_size": 256}
    assert timm_trunk.tower(tanh)[1] == "gelu_tanh"


def test_siglip_without_its_config_is_refused(tmp_path):
    message = message_of(put(tmp_path / "a", hugging_face()))
    assert "towers of SigLIP" in message and "config.json" in message
    message = message_of(put(tmp_path / "b", open_clip_timm(hugging_face())))
    assert "timm" in message and open_clip_config.CONFIG_NAME in message


@pytest.mark.parametrize(
    "config, part",
    [
        ({"model_type": "clip"}, "expected siglip, got 'clip'"),
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"vision_config": {"vision_use_head": False}}, "without its attention pool"),
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"text_config": {"projection_size": 40}}, "embed_dim"),
        ({"vision_config": {"num_attention_heads": 5}}, "multiple of 5 heads"),
        ({"auto_map": {"AutoModel": "x"}}, "code of its own"),
    ],
)
def test_a_config_of_siglip_that_describes_another_model_is_refused(tmp_path, config, part):
    right: Any = hugging_face_config()
    for key, value in config.items():
        right[key] = {**right[key], **value} if key.endswith("_config") else value
    assert part in message_of(put(tmp_path, hugging_face(), config=right))
