"""What shapes do not show - heads, pooling, pictures, wrappers - is known, given or refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclip import checkpoint, convert
from jaxclip.config import RELEASED, ClipConfig, TextConfig, VisionConfig
from jaxclip.convert.archive import torch_archive
from jaxclip.convert.layouts.released_shapes import OTHER_POOLING, known_heads
from jaxclip.hub import load as hub
from tests.support import foreign
from tests.support.foreign import RESNET, VIT

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = (2, 1)  # of VIT


def put(folder: Path, arrays: foreign.Arrays, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name.endswith(".safetensors"):
        checkpoint.save_file(arrays, path, {"format": "pt"})
    else:
        torch_archive.write(path, arrays)
    return path


def message_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 2500
    return message


# Heads --------------------------------------------------------------------------------------------


def vit(
    patch: int, width: int, layers: int, embed: int, text: TextConfig, mlp: int | None = None
) -> ClipConfig:
    return ClipConfig(VisionConfig(16 * patch, patch, width, layers, 1, mlp), text, embed)


def test_heads_of_known_shapes_are_those_of_their_configs():
    """ViT-H/14 has 16 heads of 80 where a width of 64 would make 20 of them."""
    for name, config in RELEASED.items():
        assert known_heads(config) == (config.vision.heads, config.text.heads), name
    huge = vit(14, 1280, 32, 1024, TextConfig(1024, 24, 1))
    assert known_heads(huge) == (16, 16)
    assert known_heads(vit(14, 1408, 40, 1024, TextConfig(1024, 24, 1), 6144)) == (16, 16)
    assert known_heads(vit(14, 1408, 40, 1024, TextConfig(1024, 24, 1))) is None
    assert known_heads(vit(14, 1664, 48, 1280, TextConfig(1280, 32, 1), 8192)) == (16, 20)
    assert known_heads(vit(16, 384, 12, 256, TextConfig(256, 10, 1))) == (6, 4)


@pytest.mark.parametrize(
    "change",
    [{"embed_dim": 1025}, {"layers": 31}, {"patch": 15}, {"vocab_size": 49409}, {"length": 76}],
)
def test_a_shape_is_known_only_where_every_size_is_equal(change):
    text = TextConfig(
        1024, 24, 1, change.get("length", 77), vocab_size=change.get("vocab_size", 49408)
    )
    patch, layers = change.get("patch", 14), change.get("layers", 32)
    assert known_heads(vit(patch, 1280, layers, change.get("embed_dim", 1024), text)) is None


@pytest.mark.parametrize("layout", ["openai", "open_clip", "huggingface"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_heads_that_nothing_says_are_asked_for(tmp_path, layout, name):
    plain = foreign.openai(buffers=False)
    makers = {"openai": dict, "open_clip": foreign.custom_text, "huggingface": foreign.hugging_face}
    path = put(tmp_path, makers[layout](plain), name)
    message = message_of(convert.load, path, activation="gelu")
    assert "how many attention heads" in message and "heads=" in message and "--heads" in message
    assert "activation=" in message_of(convert.load, path, heads=HEADS)
    for heads in (HEADS, (4, 2), [8, 1]):
        config = convert.load(path, activation="gelu", heads=heads).config
        assert (config.vision.heads, config.text.heads) == tuple(heads)
    assert hub.load(path, activation="gelu", heads=(4, 2))[0].config.vision.heads == 4


def test_a_training_checkpoint_without_a_config_is_asked_as_well(tmp_path):
    arrays = {f"module.{k}": v for k, v in foreign.openai(buffers=False).items()}
    path = put(tmp_path, arrays, "epoch_32.pt")
    assert "--heads" in message_of(convert.load, path, activation="gelu")
    assert convert.load(path, activation="gelu", heads=HEADS).config == foreign.config(VIT, "gelu")


@pytest.mark.parametrize("heads", [(3, 1), (2, 5), (0, 1), (2,), (2, 1, 1), (True, 1), 2, "21"])
def test_heads_that_do_not_suit_are_refused(tmp_path, heads):
    path = put(tmp_path, foreign.openai(buffers=False))
    message_of(convert.load, path, activation="gelu", heads=heads)


def test_heads_that_contradict_the_file_are_refused(tmp_path):
    official = put(tmp_path / "a", foreign.openai())
    ours = tmp_path / "ours.safetensors"
    convert.convert(official, ours)
    folder = tmp_path / "hf"
    convert.convert(official, folder, "huggingface")
    for path in (official, ours, folder):
        assert convert.load(path, heads=HEADS).config == VIT
        assert "with heads (4, 1), got one with" in message_of(convert.load, path, heads=(4, 1))
    opened = convert.load(ours)
    assert "(4, 1)" in message_of(hub.load, opened, heads=(4, 1))


def test_a_resnet_has_the_heads_that_its_width_gives(tmp_path):
    path = put(tmp_path, foreign.openai(RESNET, buffers=False))
    assert "--heads" in message_of(convert.load, path, activation="quick_gelu")
    loaded = convert.load(path, activation="quick_gelu", heads=(4, 1))
    assert loaded.config == RESNET
    assert "4 heads" in message_of(convert.load, path, activation="quick_gelu", heads=(8, 1))


@pytest.mark.parametrize("name", ["official-vit", "official-odd", "official-resnet"])
def test_archives_of_the_official_code_say_their_heads(name):
    config = convert.load(GOLDEN / f"{name}.pt").config
    assert config.text.width == 64 * config.text.heads


@pytest.mark.parametrize("vocabulary", OTHER_POOLING)
def test_a_vocabulary_of_models_that_pool_elsewhere_is_refused(tmp_path, vocabulary):
    text = dataclasses.replace(VIT.text, vocab_size=101, width=64)
    arrays = foreign.openai(dataclasses.replace(VIT, text=text), buffers=False)
    arrays["token_embedding.weight"] = np.zeros((vocabulary, 64), np.float16)
    path = put(tmp_path, arrays)
    message = message_of(convert.load, path, activation="quick_gelu", heads=HEADS)
    assert "pools at the largest token id" in message and f"{vocabulary:,}" in message


# Pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder that this library wrote."""
    source = put(tmp_path / "source", foreign.openai())
    convert.convert(source, tmp_path / "hf", "huggingface")
    return tmp_path / "hf"


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    sound = json.loads((folder / "preprocessor_config.json").read_text())
    return {**sound, **changes}


OTHER_PICTURES = [
    ("image_processor_type", "ViTImageProcessor"),
    ("image_processor_type", "Siglip2ImageProcessor"),
    ("image_processor_type", 7),
    ("feature_extractor_type", "ViTFeatureExtractor"),
    ("rescale_factor", 1 / 127.5),
    ("rescale_factor", 1.0),
    ("do_rescale", False),
    ("do_convert_rgb", False),
    ("do_normalize", None),
    ("do_pad", True),
    ("do_flip_channel_order", True),
    ("resample", 1),
    ("resample", "bicubic"),
    ("size", {"height": 20, "width": 24}),
    ("size", {"shortest_edge": 24}),
    ("size", 24),
    ("crop_size", {"height": 20, "width": 24}),
    ("image_mean", [0.5, 0.5]),
    ("image_std", "half"),
    ("default_to_square", True),
    ("offset", [1]),
]


@pytest.mark.parametrize("place", ["preprocessor", "processor", "both"])
@pytest.mark.parametrize(("key", "value"), OTHER_PICTURES)
def test_settings_that_change_pixels_are_refused(folder, key, value, place):
    changed = settings(folder, **{key: value})
    if place == "preprocessor":
        foreign.write_json(folder / "preprocessor_config.json", changed)
    else:  # transformers 5
        inside = {"image_processor": changed, "processor_class": "CLIPProcessor"}
        foreign.write_json(folder / "processor_config.json", inside)
    if place == "processor":
        (folder / "preprocessor_config.json").unlink()
    message = message_of(convert.load, folder)
    assert key in message and ("preprocessor" in message) == (place == "preprocessor")
    (folder / "config.json").unlink()  # beside lone weights as well
    assert key in message_of(convert.load, folder, activation="quick_gelu", heads=HEADS)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "CLIPImageProcessorFast", "do_pad": None, "data_format": "first"},
        {"image_processor_type": "CLIPFeatureExtractor"},
        {"size": 20, "crop_size": 20, "default_to_square": False},
        {"size": {"shortest_edge": 20, "longest_edge": None}, "do_flip_channel_order": False},
        {"rescale_factor": 0.00392156862745098, "processor_class": "CLIPProcessor"},
    ],
)
def test_settings_of_the_released_preprocessing_are_read(folder, changes):
    foreign.write_json(folder / "preprocessor_config.json", settings(folder, **changes))
    inside = {"image_processor": settings(folder, **changes)}
    foreign.write_json(folder / "processor_config.json", inside)
    assert convert.load(folder).config == VIT


@pytest.mark.parametrize(
    "said",
    [
        {"image_mean": [0.5, 0.5, 0.5]},
        {"feature_extractor": {"resample": 2}},
        {"image_processor_type": "SiglipImageProcessor"},
        {"processor_class": "SiglipProcessor"},
        {"processor_class": "SiglipProcessor", "image_processor": {}},
    ],
)
def test_settings_in_another_place_of_a_processor_file_count(folder, said):
    foreign.write_json(folder / "processor_config.json", {"processor_class": "CLIPProcessor"})
    assert convert.load(folder).config == VIT
    foreign.write_json(folder / "processor_config.json", said)
    assert "for other pictures" in message_of(convert.load, folder)


@pytest.mark.parametrize("inside", [[], None, 7, {"image_processor": 7}, {"image_processor": None}])
def test_processor_files_that_are_no_settings_are_refused(folder, inside):
    foreign.write_json(folder / "processor_config.json", inside)
    message_of(convert.load, folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_pipe_in_the_place_of_a_config_is_refused(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "named pipe" in message_of(convert.load, folder)


# Wrappers of training programs --------------------------------------------------------------------

PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.bin"])
def test_prefixes_before_all_names_are_taken_off(tmp_path, prefix, name):
    right = convert.load(put(tmp_path / "plain", foreign.openai())).flat
    for maker in (dict, foreign.hugging_face):
        arrays = {f"{prefix}{k}": v for k, v in maker(foreign.openai()).items()}
        given: Any = {} if maker is dict else {"activation": "quick_gelu", "heads": HEADS}
        flat = convert.load(put(tmp_path, arrays, name), **given).flat
        assert all((flat[path] == right[path]).all() for path in right)


def test_prefixes_in_a_sharded_checkpoint_are_taken_off(tmp_path):
    arrays = {f"model.{k}": v for k, v in foreign.openai().items()}
    names, half = list(arrays), len(arrays) // 2
    shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for file, own in shards.items():
        put(tmp_path, {name: arrays[name] for name in own}, file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    foreign.write_json(tmp_path / "model.safetensors.index.json", index)
    assert convert.load(tmp_path).config == VIT


@pytest.mark.parametrize("prefix", [*PREFIXES[:4], "clip.", "student.model."])
def test_a_prefix_before_some_names_only_is_named(tmp_path, prefix):
    arrays = {f"{prefix}{k}": v for k, v in foreign.openai().items()}
    path = put(tmp_path, {**arrays, "n_averaged": np.array(3)})
    message = message_of(convert.load, path)
    assert repr(prefix.split(".")[0])[1:-1] in message and "'n_averaged'" in message


@pytest.mark.parametrize("prefix", ["clip.", "net.clip_model."])
def test_an_unknown_prefix_is_named(tmp_path, prefix):
    arrays = {f"{prefix}{k}": v for k, v in foreign.openai().items()}
    assert f"prefix '{prefix}'" in message_of(convert.load, put(tmp_path, arrays))


def test_a_wrapper_inside_is_named(tmp_path):
    arrays = {
        k.replace("visual.", "visual._orig_mod."): v
        for k, v in foreign.openai(buffers=True).items()
    }
    assert "'visual._orig_mod.'" in message_of(convert.load, put(tmp_path, arrays))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_float64_is_read_and_kept(tmp_path, name):
    """To the bit through our file and back; what runs is float32."""
    wide = {
        k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in foreign.openai().items()
    }
    path, ours = put(tmp_path, wide, name), tmp_path / "ours.safetensors"
    convert.convert(path, ours)
    assert {array.dtype for array in convert.load(ours).flat.values()} == {np.dtype(np.float64)}
    convert.convert(ours, tmp_path / "back.pt", "openai")
    back = convert.read(tmp_path / "back.pt")
    assert all(back[k].dtype == v.dtype and (back[k] == v).all() for k, v in wide.items())
    model = hub.load(ours)[0]
    assert model.visual.proj[...].dtype == np.float32
    right = convert.load(put(tmp_path, foreign.openai(), "narrow.pt")).flat["visual.proj"]
    assert (np.asarray(model.visual.proj[...]) == right.astype(np.float32)).all()


# The same bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("jaxclip", "a.safetensors"),
        ("openai", "a.pt"),
        ("open_clip", "a.safetensors"),
        ("open_clip", "a.bin"),
        ("huggingface", "a"),
    ],
)
def test_converting_three_times_writes_the_same_bytes(tmp_path, layout, name):
    source = put(tmp_path / "source", foreign.openai())
    written = []
    for i in range(3):
        target = tmp_path / str(i) / name
        convert.convert(source, target, layout)
        files = sorted(path for path in (tmp_path / str(i)).rglob("*") if path.is_file())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1] == written[2]


def test_the_header_is_as_the_library_reads_it(tmp_path):
    from safetensors.numpy import load_file

    arrays = {
        "b": np.arange(3, dtype=np.float16),
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.float64(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "c": np.array([True, False, True]),
        "d": np.arange(5),
    }
    path = tmp_path / "a.safetensors"
    checkpoint.save_arrays(path, arrays, {"z": "é", "format": "pt", "notes": '{"a": 1}'})
    for loaded in (load_file(path), checkpoint.load_arrays(path)[0], convert.read(path)):
        assert loaded.keys() == arrays.keys()
        for name, array in arrays.items():
            assert loaded[name].shape == np.shape(array) and (loaded[name] == array).all()
    assert checkpoint.load_arrays(path)[1] == {"z": "é", "format": "pt", "notes": '{"a": 1}'}
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and list(header["__metadata__"]) == ["format", "notes", "z"]
    starts = [entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"]
    assert starts == sorted(starts) and header["d"]["data_offsets"][0] % 8 == 0
    with pytest.raises(ValueError, match="x: expected one of F16"):
        checkpoint.save_arrays(path, {"x": np.zeros(2, np.complex64)}, {})
    assert path.read_bytes() == content
