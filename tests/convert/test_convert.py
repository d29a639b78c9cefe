"""Models from and to every layout: to the bit, whole or refused, and never guessed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.lib.peers import archives
from experiments.lib.peers.archives import same
from jaxclip import checkpoint, cli, convert
from jaxclip.config import RELEASED, ClipConfig, VisionConfig
from jaxclip.convert.archive import torch_archive
from jaxclip.models import clip
from jaxclip.models.parameters import from_flat, named_leaves, to_flat
from jaxclip.shapes import parameters
from tests.support import foreign
from tests.support.foreign import RESNET, VIT

EMOJI = Path(checkpoint.__file__).parents[1] / "data_files" / "emoji.safetensors"
TOWERS = {"vit": VIT, "resnet": RESNET}
towers = pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS.keys())


def put(folder: Path, arrays: foreign.Arrays, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name.endswith(".safetensors"):
        save_file({k: np.asarray(v, order="C") for k, v in arrays.items()}, path, {"format": "pt"})
    else:
        torch_archive.write(path, arrays)
    return path


def hugging_face(folder: Path, config: ClipConfig = VIT, **options: Any) -> Path:
    put(folder, foreign.hugging_face(foreign.openai(config), **options))
    foreign.write_json(folder / "config.json", foreign.hugging_face_config(config))
    return folder


def open_clip(folder: Path, config: ClipConfig = VIT, *, custom: bool = False) -> Path:
    arrays = foreign.openai(config, buffers=False)
    path = put(folder, foreign.custom_text(arrays) if custom else arrays, "open_clip_model.bin")
    changes = {"custom_text": True} if custom else {}
    described = foreign.open_clip_config(config, **changes)
    foreign.write_json(folder / "open_clip_config.json", described)
    return path


def message_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 2500
    return message


# The tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_models_have_as_many_parameters_as_published(name):
    totals = {
        "RN50": 102_007_137,
        "RN101": 119_688_033,
        "RN50x4": 178_300_601,
        "RN50x16": 290_979_217,
        "RN50x64": 623_258_305,
        "ViT-B/32": 151_277_313,
        "ViT-B/16": 149_620_737,
        "ViT-L/14": 427_616_513,
        "ViT-L/14@336px": 427_944_193,
    }
    shapes = parameters(RELEASED[name])
    statistics = (".mean", ".var")
    count = sum(int(np.prod(s)) for path, s in shapes.items() if not path.endswith(statistics))
    assert count == totals[name]


@pytest.mark.parametrize("config", [VIT, RESNET, RELEASED["ViT-B/32"], RELEASED["RN50"]])
def test_names_and_shapes_are_those_of_the_flax_modules(config):
    expected = {name: leaf.shape for name, leaf in named_leaves(clip.abstract(config)).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, shape in parameters(config).items():
        stacked = re.sub(r"resblocks\.\d+\.", "resblocks.", path)
        layers = shapes[stacked][0] + 1 if stacked in shapes else 1
        shapes[stacked] = (layers, *shape) if stacked != path else shape
    assert shapes == expected


def test_every_number_lies_where_it_belongs(tmp_path):
    """Written out by hand for one parameter of each kind."""
    arrays = foreign.openai()
    flat = convert.load(put(tmp_path, arrays)).flat
    block = "visual.transformer.resblocks.11.attn"
    assert (flat[f"{block}.in_proj_kernel"] == arrays[f"{block}.in_proj_weight"].T).all()
    assert (flat[f"{block}.out_proj.kernel"] == arrays[f"{block}.out_proj.weight"].T).all()
    assert flat["visual.conv1.kernel"][1, 4, 2, 7] == arrays["visual.conv1.weight"][7, 2, 1, 4]
    assert (flat["visual.proj"] == arrays["visual.proj"]).all()
    assert (flat["text.text_projection"] == arrays["text_projection"]).all()
    assert (flat["text.token_embedding.embedding"] == arrays["token_embedding.weight"]).all()
    assert (flat["text.ln_final.scale"] == arrays["ln_final.weight"]).all()


def test_every_number_of_a_resnet_lies_where_it_belongs(tmp_path):
    arrays = foreign.openai(RESNET)
    flat = convert.load(put(tmp_path, arrays)).flat
    name, pool = "visual.layer1.0.downsample", "visual.attnpool.c_proj"
    assert (flat[f"{name}.0.kernel"][0, 0] == arrays[f"{name}.0.weight"][:, :, 0, 0].T).all()
    assert (flat[f"{name}.1.var"] == arrays[f"{name}.1.running_var"]).all()
    assert (flat[f"{name}.1.mean"] == arrays[f"{name}.1.running_mean"]).all()
    assert (flat[f"{pool}.kernel"] == arrays[f"{pool}.weight"].T).all()


# One model in every layout ------------------------------------------------------------------------


def test_the_digest_of_a_file_that_was_changed_meanwhile_is_refused(tmp_path):
    source = tmp_path / "a.pt"
    archives.write_torchscript_like(source, foreign.openai())
    content = source.read_bytes()
    known, late = (convert.load(source).notes["source"]["sha256"] for _ in range(2))
    assert known["a.pt"] == hashlib.sha256(content).hexdigest()
    source.write_bytes(content + b" ")
    assert known["a.pt"] == hashlib.sha256(content).hexdigest()
    with pytest.raises(ValueError, match="changed since"):
        late["a.pt"]


@towers
def test_the_openai_layout_returns_to_the_bit(tmp_path, config):
    """From an archive as the official ones are, through our file, to a state dict."""
    arrays = foreign.openai(config)
    source, ours, back = (tmp_path / name for name in ("a.pt", "b.safetensors", "c.pt"))
    archives.write_torchscript_like(source, arrays)
    assert convert.convert(source, ours) == config
    assert convert.convert(ours, back, "openai") == config
    assert same(convert.read(back), arrays)
    formats = {array.dtype.name for array in checkpoint.load_stored(ours)[0].values()}
    assert formats == {"float16", "float32"}
    converted = checkpoint.load_stored(ours)[2]
    assert converted["image_policy"] == "official"
    assert len(converted["source"]["sha256"]["a.pt"]) == 64


@towers
@pytest.mark.parametrize("buffers", [True, False])
def test_a_file_without_buffers_returns_without_them(tmp_path, config, buffers):
    arrays = foreign.openai(config, buffers=buffers)
    ours = tmp_path / "ours.safetensors"
    heads = (config.vision.heads, config.text.heads)
    convert.convert(put(tmp_path, arrays), ours, activation="quick_gelu", heads=heads)
    convert.convert(ours, tmp_path / "back.pt", "openai")
    assert same(convert.read(tmp_path / "back.pt"), arrays)


@towers
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin"])
def test_the_open_clip_layout_returns_to_the_bit(tmp_path, config, custom, ending):
    config = foreign.config(config, "gelu")
    source = open_clip(tmp_path / "source", config, custom=custom)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back" / f"model{ending}"
    assert convert.convert(source, ours) == config
    assert convert.convert(ours, back, "open_clip") == config
    assert same(convert.read(back), convert.read(source))
    described = json.loads((back.parent / "open_clip_config.json").read_text())
    assert described == json.loads((source.parent / "open_clip_config.json").read_text())
    assert convert.load(back).config == config


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("position_ids", [False, True])
def test_the_hugging_face_layout_returns_to_the_bit(tmp_path, activation, position_ids):
    config = foreign.config(VIT, activation)
    source = hugging_face(tmp_path / "source", config, position_ids=position_ids)
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back"
    assert convert.convert(source, ours) == config
    assert convert.convert(ours, back, "huggingface") == config
    assert same(convert.read(back), convert.read(source))
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in back.iterdir()} == names
    assert convert.load(back).config == config


def test_all_layouts_give_the_same_model(tmp_path):
    """And a custom text tower is told from a plain one by its keys alone."""
    plain = convert.load(put(tmp_path / "openai", foreign.openai())).flat
    others = [hugging_face(tmp_path / "hf"), open_clip(tmp_path / "plain")]
    others.append(open_clip(tmp_path / "custom", custom=True))
    for path in others:
        assert same(convert.load(path).flat, plain)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_every_number_format_survives(tmp_path, dtype, name):
    floats = {"f", "V"}  # bfloat16 counts as neither for NumPy
    arrays = {
        k: v.astype(dtype) if v.dtype.kind in floats else v for k, v in foreign.openai().items()
    }
    ours = tmp_path / "ours.safetensors"
    convert.convert(put(tmp_path, arrays, name), ours)
    assert {array.dtype for array in convert.load(ours).flat.values()} == {np.dtype(dtype)}
    convert.convert(ours, tmp_path / "back.pt", "openai")
    assert same(convert.read(tmp_path / "back.pt"), arrays)
    wide = checkpoint.load(ours)[0]
    assert {array.dtype for array in wide.values()} == {np.dtype(np.float32)}
    flat = convert.load(ours).flat
    assert all((wide[k] == flat[k].astype(np.float32)).all() for k in wide)


def test_layouts_can_be_crossed(tmp_path):
    """Counts of batches go along where the other layout has them, buffers are made."""
    first = tmp_path / "first.pt"
    archives.write_torchscript_like(first, foreign.openai(RESNET))
    other = tmp_path / "other" / "model.safetensors"
    convert.convert(first, other, "open_clip")
    assert same(convert.read(other), foreign.openai(RESNET, buffers=False))
    convert.convert(other, tmp_path / "back.pt", "openai")
    assert same(convert.read(tmp_path / "back.pt"), foreign.openai(RESNET))


def test_a_model_of_ours_without_a_past_gets_what_the_layout_asks_for(tmp_path):
    loaded = convert.load(put(tmp_path, foreign.openai(RESNET)))
    ours = tmp_path / "ours.safetensors"
    checkpoint.save(ours, loaded.flat, RESNET, {"trained_by": "a test"})
    convert.convert(ours, tmp_path / "back.pt", "openai")
    back = convert.read(tmp_path / "back.pt")
    assert back.keys() == foreign.openai(RESNET).keys()
    assert {int(v) for k, v in back.items() if k.endswith("num_batches_tracked")} == {0}
    assert int(back["input_resolution"]) == RESNET.vision.image_size


@towers
def test_what_is_loaded_fills_the_flax_modules(tmp_path, config):
    flat = convert.load(put(tmp_path, foreign.openai(config))).flat
    model = from_flat(flat, clip.abstract(config))
    back = to_flat(model)
    assert all((back[name] == flat[name].astype(np.float32)).all() for name in flat)


def test_nothing_is_copied_that_need_not_be(tmp_path):
    flat = convert.load(put(tmp_path, foreign.openai())).flat
    assert not any(array.flags.owndata or array.flags.writeable for array in flat.values())


# What no file says must be given ----------------------------------------------------------------


@pytest.mark.parametrize("layout", ["openai", "open_clip", "huggingface"])
def test_an_activation_that_nothing_names_is_asked_for(tmp_path, layout):
    """Nor do shapes name it: open_clip trained models in those of the released ones with GELU."""
    plain = foreign.openai(buffers=False)
    makers = {"openai": dict, "open_clip": foreign.custom_text, "huggingface": foreign.hugging_face}
    path = put(tmp_path, makers[layout](plain))
    message = message_of(convert.load, path)
    assert "activation=" in message and "--activation" in message and str(path) in message
    for activation in ("quick_gelu", "gelu"):
        loaded = convert.load(path, activation=activation, heads=(2, 1))
        assert loaded.config == foreign.config(VIT, activation)


def test_an_activation_that_contradicts_the_file_is_refused(tmp_path):
    official = put(tmp_path / "a", foreign.openai())
    ours = tmp_path / "ours.safetensors"
    convert.convert(official, ours)
    for path in (official, ours, open_clip(tmp_path / "b"), hugging_face(tmp_path / "c")):
        message = message_of(convert.load, path, activation="gelu")
        assert "activation 'gelu', got one" in message and "'quick_gelu'" in message
        assert convert.load(path, activation="quick_gelu").config == VIT
    assert "an activation of quick_gelu" in message_of(convert.load, official, activation="relu")


# Whole or refused ---------------------------------------------------------------------------------

BLOCK = "visual.transformer.resblocks.3"


def without(arrays: foreign.Arrays, name: str) -> foreign.Arrays:
    return {k: v for k, v in arrays.items() if k != name}


def changed(name: str, value: Any) -> foreign.Arrays:
    arrays = foreign.openai()
    assert name in arrays
    return {**arrays, name: value}


def value_with(name: str, number: float) -> foreign.Arrays:
    value = foreign.openai()[name].copy()
    value.reshape(-1)[-1] = number
    return changed(name, value)


FAULTS = {
    "missing": (lambda: without(foreign.openai(), f"{BLOCK}.ln_2.bias"), f"- {BLOCK}.ln_2.bias"),
    "unexpected": (lambda: {**foreign.openai(), "logit_bias": np.zeros(())}, "+ 'logit_bias'"),
    "a gap in the layers": (
        lambda: without(foreign.openai(), f"{BLOCK}.ln_1.bias"),
        "got 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11",
    ),
    "a layer far away": (
        lambda: {**foreign.openai(), "transformer.resblocks.999999999.ln_1.bias": np.zeros(64)},
        "got 0, 1, 2, 999999999",
    ),
    "a layer written twice": (
        lambda: {**foreign.openai(), "transformer.resblocks.02.ln_1.bias": np.zeros(64)},
        "got 0, 1, 2, 2",
    ),
    "transposed": (
        lambda: changed(f"{BLOCK}.mlp.c_fc.weight", np.zeros((128, 512), np.float16)),
        f"{BLOCK}.mlp.c_fc.weight: expected shape (512, 128), got (128, 512)",
    ),
    "transposed projection": (
        lambda: changed("visual.proj", np.zeros((40, 128), np.float16)),
        "visual.proj: expected shape (128, 40), got (40, 128)",
    ),
    "not a number": (lambda: value_with(f"{BLOCK}.attn.in_proj_bias", np.nan), "not finite"),
    "infinite": (lambda: value_with("token_embedding.weight", -np.inf), "not finite"),
    "float64 that float32 cannot hold": (
        lambda: changed("logit_scale", np.float64(1e300)),
        "logit_scale: expected finite",
    ),
    "whole numbers": (
        lambda: changed("ln_final.bias", np.zeros(64, int)),
        "ln_final.bias: expected float16, bfloat16, float32 or float64, got int64",
    ),
    "logit_scale [1]": (
        lambda: changed("logit_scale", np.ones(1, np.float32)),
        "logit_scale: expected shape (), got (1,)",
    ),
    "two of three buffers": (
        lambda: without(foreign.openai(), "vocab_size"),
        "does not say which activation",
    ),
    "another resolution": (
        lambda: changed("input_resolution", np.array(25)),
        "input_resolution does not agree",
    ),
    "half a buffer": (
        lambda: changed("vocab_size", np.array(101, np.int32)),
        "vocab_size: expected int64 of shape (), got int32",
    ),
    "both towers of another kind": (
        lambda: {**foreign.openai(), **foreign.openai(RESNET)},
        "",
    ),
    "two layouts": (
        lambda: {**foreign.openai(), **foreign.hugging_face(foreign.openai())},
        "",
    ),
    "no CLIP model": (
        lambda: {"fc.weight": np.zeros((2, 3), np.float32)},
        "expected both towers of a CLIP model",
    ),
    "a width of no heads": (
        lambda: foreign.openai(dataclasses.replace(VIT, vision=VisionConfig(20, 5, 96, 2, 1))),
        "an image tower of a multiple of 64 channels",
    ),
}


@pytest.mark.parametrize("make, part", FAULTS.values(), ids=FAULTS.keys())
def test_a_model_that_is_not_whole_is_refused(tmp_path, make, part):
    path = put(tmp_path, make())
    message = message_of(convert.load, path)
    assert part in message and str(path) in message
    target = tmp_path / "ours.safetensors"
    message_of(convert.convert, path, target, activation="quick_gelu")
    assert not target.exists()


def test_a_count_that_is_negative_or_lacks_is_refused(tmp_path):
    name = "visual.bn1.num_batches_tracked"
    arrays = foreign.openai(RESNET)
    assert f"- {name}" in message_of(convert.load, put(tmp_path, without(arrays, name)))
    negative = {**arrays, name: np.array(-1)}
    assert f"{name}: expected a count, got -1" in message_of(convert.load, put(tmp_path, negative))


def test_many_faults_are_counted_and_not_all_printed(tmp_path):
    path = put(tmp_path, {**foreign.openai(), **{f"x.{i}": np.zeros(1) for i in range(500)}})
    assert "(1,); and 492 more" in message_of(convert.load, path)


def test_position_ids_that_are_not_counted_up_are_refused(tmp_path):
    arrays = foreign.hugging_face(foreign.openai(), position_ids=True)
    arrays["text_model.embeddings.position_ids"][0, 3] = 9
    put(tmp_path, arrays)
    foreign.write_json(tmp_path / "config.json", foreign.hugging_face_config())
    assert "position_ids does not agree" in message_of(convert.load, tmp_path)


# Mistakes that no check of shapes sees: what the tests above would notice -------------------------


def permuted(arrays: foreign.Arrays, order: list[int]) -> foreign.Arrays:
    def move(match: re.Match[str]) -> str:
        return f"visual.transformer.resblocks.{order[int(match[1])]}."

    return {
        re.sub(r"^visual\.transformer\.resblocks\.(\d+)\.", move, k): v for k, v in arrays.items()
    }


def swapped_q_and_k(arrays: foreign.Arrays) -> foreign.Arrays:
    d = 128
    joint = arrays[f"{BLOCK}.attn.in_proj_weight"]
    order = np.r_[d : 2 * d, :d, 2 * d : 3 * d]
    return {**arrays, f"{BLOCK}.attn.in_proj_weight": joint[order]}


def transposed_square(arrays: foreign.Arrays) -> foreign.Arrays:
    name = f"{BLOCK}.attn.out_proj.weight"
    return {**arrays, name: np.ascontiguousarray(arrays[name].T)}


@pytest.mark.parametrize(
    "mistake",
    [
        lambda arrays: permuted(arrays, sorted(range(12), key=str)),
        swapped_q_and_k,
        transposed_square,
    ],
    ids=["layers 0 1 10 11 2", "q and k", "square kernel"],
)
def test_a_mistake_of_equal_shapes_departs_from_the_right_model(tmp_path, mistake):
    """Each is a sound file, so only a comparison of numbers can tell it: and it does."""
    right = convert.load(put(tmp_path, foreign.openai())).flat
    wrong = convert.load(put(tmp_path, mistake(foreign.openai()))).flat
    assert right.keys() == wrong.keys() and not same(right, wrong)


# Configs beside the weights -----------------------------------------------------------------------


def edited(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parts, leaf = path.split("/")
    node = config
    for part in parts:
        node = node.setdefault(part, {})
    node[leaf] = value
    return config


@pytest.mark.parametrize(
    "path, value",
    [
        ("text_config/num_hidden_layers", 4),
        ("text_config/vocab_size", 102),
        ("text_config/eos_token_id", 101),
        ("text_config/eos_token_id", [100]),
        ("text_config/hidden_act", "relu"),
        ("text_config/hidden_act", ["gelu"]),
        ("text_config_dict", {"num_hidden_layers": 5}),
        ("vision_config/image_size", 25),
        ("vision_config/patch_size", 10),
        ("vision_config/num_attention_heads", 3),
        ("vision_config/num_attention_heads", 0),
        ("vision_config/num_attention_heads", -2),
        ("vision_config/intermediate_size", 128),
        ("vision_config/num_channels", 4),
        ("vision_config/layer_norm_eps", True),
        ("vision_config", []),
        ("vision_config", None),
        ("projection_dim", 41),
        ("model_type", "siglip"),
    ],
)
def test_a_config_of_hugging_face_that_describes_another_model_is_refused(tmp_path, path, value):
    folder = hugging_face(tmp_path)
    described = edited(foreign.hugging_face_config(), path, value)
    foreign.write_json(folder / "config.json", described)
    message_of(convert.load, folder)


def test_heads_are_those_of_the_config(tmp_path):
    """Four of 32 where the shapes alone would say two of 64."""
    folder = hugging_face(tmp_path / "hf")
    foreign.write_json(
        folder / "config.json",
        edited(foreign.hugging_face_config(), "vision_config/num_attention_heads", 4),
    )
    config = convert.load(folder).config
    assert config.vision.heads == 4
    other = tmp_path / "other" / "model.safetensors"
    assert convert.convert(folder, other, "open_clip") == config
    assert convert.load(other).config == config
    message = message_of(convert.convert, folder, tmp_path / "official.pt", "openai")
    assert "4 heads at width 128" in message


@pytest.mark.parametrize("end", [2, 100])
def test_both_ways_of_naming_the_end_are_the_same_model(tmp_path, end):
    """2 stands in the first files by mistake and means the largest id, which is 100 here."""
    folder = hugging_face(tmp_path)
    described = edited(foreign.hugging_face_config(), "text_config/eos_token_id", end)
    foreign.write_json(folder / "config.json", described)
    assert convert.load(folder).config == VIT


def test_text_config_dict_overrides_as_in_the_library(tmp_path):
    folder = hugging_face(tmp_path, foreign.config(VIT, "gelu"))
    described = foreign.hugging_face_config(foreign.config(VIT, "gelu"))
    for tower in ("text_config", "vision_config"):
        described[f"{tower}_dict"] = dict(described[tower])
        described[tower] = {"hidden_act": "quick_gelu"}
    foreign.write_json(folder / "config.json", described)
    assert convert.load(folder).config == foreign.config(VIT, "gelu")


@pytest.mark.parametrize(
    "key, value", [("image_mean", [0.5, 0.5]), ("crop_size", 24), ("do_center_crop", False)]
)
def test_other_pictures_are_refused(tmp_path, key, value):
    folder = tmp_path / "hf"
    convert.convert(hugging_face(tmp_path / "source"), folder, "huggingface")
    assert convert.load(folder).config == VIT
    path = folder / "preprocessor_config.json"
    foreign.write_json(path, {**json.loads(path.read_text()), key: value})
    assert key in message_of(convert.load, folder)


@pytest.mark.parametrize(
    "path, value",
    [
        ("model_cfg/vision_cfg/layers", 11),
        ("model_cfg/vision_cfg/image_size", 25),
        ("model_cfg/vision_cfg/image_size", [20, 20, 20]),
        ("model_cfg/vision_cfg/no_ln_pre", True),
        ("model_cfg/vision_cfg/pool_type", "none"),
        ("model_cfg/vision_cfg/norm_kwargs", {"elementwise_affine": False}),
        ("model_cfg/vision_cfg/mlp_ratio", 4.5),
        ("model_cfg/text_cfg/proj_bias", True),
        ("model_cfg/text_cfg/act_kwargs", {"approximate": "none"}),
        ("model_cfg/vision_cfg/timm_model_name", "vit"),
        ("model_cfg/vision_cfg/head_width", 0),
        ("model_cfg/vision_cfg/surprise", 1),
        ("model_cfg/text_cfg/heads", 2.0),
        ("model_cfg/text_cfg/heads", 7),
        ("model_cfg/text_cfg/hf_model_name", "roberta-base"),
        ("model_cfg/text_cfg/pad_id", 1),
        ("model_cfg/text_cfg", None),
        ("model_cfg/embed_dim", 41),
        ("model_cfg/quick_gelu", 1),
        ("model_cfg/init_logit_bias", -10),
        ("model_cfg", 7),
        ("preprocess_cfg/mean", [0.5, 0.5]),
        ("preprocess_cfg/interpolation", "lanczos"),
        ("preprocess_cfg/resize_mode", "crop"),
        ("preprocess_cfg/surprise", 1),
        ("preprocess_cfg", 7),
    ],
)
def test_a_config_of_open_clip_that_describes_another_model_is_refused(tmp_path, path, value):
    config = foreign.config(VIT, "gelu")
    weights = open_clip(tmp_path, config)
    assert convert.load(weights).config == config
    described = edited(foreign.open_clip_config(config), path, value)
    foreign.write_json(tmp_path / "open_clip_config.json", described)
    message_of(convert.load, weights)


@pytest.mark.parametrize(
    "path, value",
    [
        ("model_cfg/vision_cfg/norm_kwargs", {"eps": 1e-5}),
        ("model_cfg/vision_cfg/patch_dropout", 0.5),
        ("model_cfg/text_cfg/act_kwargs", {}),
        ("model_cfg/init_logit_scale", 2.6592),
        ("preprocess_cfg/size", 20),
    ],
)
def test_what_leaves_the_model_as_it_is_may_stand_in_a_config(tmp_path, path, value):
    weights = open_clip(tmp_path)
    described = edited(foreign.open_clip_config(), path, value)
    foreign.write_json(tmp_path / "open_clip_config.json", described)
    assert convert.load(weights).config == VIT


HF_VARIANTS = [
    ("text_config/eos_token_id", 99, "text", {"pooling": "end", "end_token": 99}),
    ("text_config/hidden_act", "gelu", "text", {"own_activation": "gelu"}),
    ("text_config/layer_norm_eps", 1e-6, "text", {"layer_norm_epsilon": 1e-6}),
    ("vision_config/layer_norm_eps", 1e-6, "vision", {"layer_norm_epsilon": 1e-6}),
]
OPEN_CLIP_VARIANTS = [
    ("vision_cfg/pool_type", "avg", "vision", {"pooling": "mean"}),
    ("vision_cfg/final_ln_after_pool", True, "vision", {"norm_after_pooling": True}),
    ("vision_cfg/norm_kwargs", {"eps": 1e-6}, "vision", {"layer_norm_epsilon": 1e-6}),
    ("text_cfg/norm_kwargs", {"eps": 1e-6}, "text", {"layer_norm_epsilon": 1e-6}),
    ("text_cfg/act_kwargs", {"approximate": "tanh"}, "text", {"own_activation": "gelu_tanh"}),
    ("text_cfg/no_causal_mask", True, "text", {"causal": False}),
    ("text_cfg/pool_type", "last", "text", {"pooling": "last"}),
    ("text_cfg/pool_type", "eos", "text", {"pooling": "end", "end_token": 2}),
]


@pytest.mark.parametrize("path, value, tower, fields", HF_VARIANTS)
def test_a_variant_in_a_config_of_hugging_face_is_read_and_written(
    tmp_path, path, value, tower, fields
):
    folder = hugging_face(tmp_path / "a")
    described = edited(foreign.hugging_face_config(), path, value)
    foreign.write_json(folder / "config.json", described)
    config = convert.load(folder).config
    changed_tower = dataclasses.replace(getattr(VIT, tower), **fields)
    assert config == dataclasses.replace(VIT, **{tower: changed_tower})
    convert.convert(folder, tmp_path / "b", "huggingface")
    assert convert.load(tmp_path / "b").config == config
    assert same(convert.read(tmp_path / "b"), convert.read(folder))
    message = message_of(convert.convert, folder, tmp_path / "c.pt", "openai")
    assert "the official code has no such model" in message


@pytest.mark.parametrize("path, value, tower, fields", OPEN_CLIP_VARIANTS)
def test_a_variant_in_a_config_of_open_clip_is_read_and_written(
    tmp_path, path, value, tower, fields
):
    base = foreign.config(VIT, "gelu")
    weights = open_clip(tmp_path / "a", base)
    described = edited(foreign.open_clip_config(base), f"model_cfg/{path}", value)
    foreign.write_json(tmp_path / "a" / "open_clip_config.json", described)
    config = convert.load(weights).config
    changed_tower = dataclasses.replace(getattr(base, tower), **fields)
    assert config == dataclasses.replace(base, **{tower: changed_tower})
    convert.convert(weights, tmp_path / "b" / "b.safetensors", "open_clip")
    assert convert.load(tmp_path / "b" / "b.safetensors").config == config
    assert same(convert.read(tmp_path / "b" / "b.safetensors"), convert.read(weights))


# Writing ------------------------------------------------------------------------------------------


def test_what_a_layout_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    gelu = open_clip(tmp_path / "gelu", foreign.config(VIT, "gelu"))
    resnet = put(tmp_path / "resnet", foreign.openai(RESNET))
    cases = [
        (gelu, "a.pt", "openai", "quick_gelu alone"),
        (resnet, "b", "huggingface", "no ResNet"),
        (EMOJI, "c.pt", "openai", "bag of words"),
    ]
    for source, target, layout, part in cases:
        message = message_of(convert.convert, source, tmp_path / "new" / target, layout)
        assert part in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "target, layout, part",
    [
        ("model.pt", "jaxclip", "ending in .safetensors"),
        ("model.safetensors", "openai", "ending in .pt"),
        ("model.zip", "open_clip", "ending in .safetensors or .pt or .bin"),
        ("model.safetensors", "huggingface", "expected the name of a folder"),
        ("model.safetensors", "torch", "one of jaxclip, openai"),
    ],
)
def test_a_target_that_does_not_suit_the_layout_is_refused(tmp_path, target, layout, part):
    source = put(tmp_path, foreign.openai(), "source.pt")
    assert part in message_of(convert.convert, source, tmp_path / target, layout)


@pytest.mark.parametrize("layout", ["jaxclip", "openai", "open_clip", "huggingface"])
def test_nothing_is_overwritten_unless_asked(tmp_path, layout):
    source = put(tmp_path / "source", foreign.openai())
    name = {"jaxclip": "a.safetensors", "openai": "a.pt", "open_clip": "a.bin"}.get(layout, "a")
    target = tmp_path / "target" / name
    convert.convert(source, target, layout)
    files = [p for p in (tmp_path / "target").rglob("*") if p.is_file()]
    first = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(b"precious")
        assert "exists" in message_of(convert.convert, source, target, layout)
        assert path.read_bytes() == b"precious"
    convert.convert(source, target, layout, force=True)
    assert {path: path.stat().st_size for path in first} == {p: len(b) for p, b in first.items()}
    assert [p for p in (tmp_path / "target").rglob("*") if p.is_file()].sort() == files.sort()


def test_the_source_is_never_the_target(tmp_path):
    folder = hugging_face(tmp_path / "hf")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    os.symlink(folder / "model.safetensors", tmp_path / "link.safetensors")
    os.link(folder / "model.safetensors", tmp_path / "hard.safetensors")
    for target in ("hf/model.safetensors", "link.safetensors", "hard.safetensors"):
        message = message_of(convert.convert, folder, tmp_path / target, force=True)
        assert "is what is being converted" in message
    assert "is what is" in message_of(convert.convert, folder, folder, "huggingface", force=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_write_that_fails_leaves_no_config_that_describes_other_weights(tmp_path, monkeypatch):
    source = put(tmp_path / "a", foreign.openai())
    target = tmp_path / "hf"
    convert.convert(source, target, "huggingface")

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_arrays", fail)
    with pytest.raises(OSError, match="No space left"):
        convert.convert(source, target, "huggingface", force=True)
    assert not (target / "config.json").exists()


def test_notes_that_were_tampered_with_are_refused(tmp_path):
    loaded = convert.load(put(tmp_path, foreign.openai(RESNET)))
    for extras in ({"visual.bn1.num_batches_tracked": -1}, {"a": 1 << 63}, {"a": "1"}, [], None):
        notes = {"converted": {"layout": "openai", "extras": extras}}
        ours = tmp_path / "ours.safetensors"
        checkpoint.save(ours, loaded.flat, RESNET, notes)
        message_of(convert.convert, ours, tmp_path / "back.pt", "openai")
    checkpoint.save(ours, loaded.flat, RESNET, {"converted": 7})
    message_of(convert.convert, ours, tmp_path / "back.pt", "openai")


def test_our_own_file_must_be_whole_as_well(tmp_path):
    loaded = convert.load(put(tmp_path, foreign.openai()))
    ours = tmp_path / "ours.safetensors"
    checkpoint.save(ours, without(loaded.flat, "visual.proj"), VIT, {})
    message = message_of(convert.convert, ours, tmp_path / "back.pt", "openai")
    assert "- visual.proj" in message


def test_the_command_says_what_it_did_and_fails_in_one_line(tmp_path, capsys):
    source, target = put(tmp_path, foreign.openai(), "a.pt"), tmp_path / "b.safetensors"
    assert cli.main(["convert", str(source), str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert cli.main(["convert", str(source), str(target)]) == 1
    error = capsys.readouterr().err
    assert "exists" in error and error.count("\n") == 1
    assert cli.main(["convert", str(target), str(tmp_path / "hf"), "--layout", "huggingface"]) == 0
    assert (tmp_path / "hf" / "config.json").is_file()
    with pytest.raises(SystemExit) as usage:
        cli.main(["convert", str(source)])
    assert usage.value.code == 2
