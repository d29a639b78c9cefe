"""From a name or a path to a model: every layout loads, names are fetched once, paths never."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from experiments.lib.peers import archives
from jaxclip import checkpoint, convert, reference
from jaxclip.config import RELEASED, ClipConfig
from jaxclip.convert.archive import torch_archive
from jaxclip.hardware import cpu
from jaxclip.hub import released as downloads
from jaxclip.hub.find import find
from jaxclip.models import clip, parameters
from tests.support import file_server, foreign
from tests.support.tolerances import departure, within

ARRAYS = foreign.openai()
CONFIG = foreign.config()
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 20, 20, 3)).astype(np.float32)
TOKENS = np.array([[99, 5, 7, 100, 0], [99, 8, 100, 0, 0]], np.int32)


def write_openai(path: Path) -> Path:
    archives.write_torchscript_like(path, ARRAYS)
    return path


def write_hugging_face(folder: Path) -> Path:
    folder.mkdir()
    arrays = foreign.hugging_face(ARRAYS)
    checkpoint.save_arrays(folder / "model.safetensors", arrays, {"format": "pt"})
    foreign.write_json(folder / "config.json", foreign.hugging_face_config())
    return folder


def write_open_clip(path: Path) -> Path:
    arrays = {k: v for k, v in ARRAYS.items() if not k.endswith(("resolution", "length", "size"))}
    checkpoint.save_arrays(path, arrays, {"format": "pt"})
    foreign.write_json(path.parent / "open_clip_config.json", foreign.open_clip_config())
    return path


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The logits of the reference in float64, its parameters renamed by hand, not by converters."""
    flat: dict[str, Any] = {}
    for name, value in ARRAYS.items():
        x = value.astype(np.float64)
        if name in ("input_resolution", "context_length", "vocab_size"):
            continue
        ours = name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}"
        if name == "visual.conv1.weight":
            ours, x = "visual.conv1.kernel", x.transpose(2, 3, 1, 0)
        elif name.endswith("in_proj_weight"):
            ours, x = ours.replace("in_proj_weight", "in_proj_kernel"), x.T
        elif name == "token_embedding.weight":
            ours = "text.token_embedding.embedding"
        elif ".ln_" in ours and name.endswith("weight"):
            ours = ours.replace(".weight", ".scale")
        elif name.endswith(".weight"):
            ours, x = ours.replace(".weight", ".kernel"), x.T
        flat[ours] = x
    params = checkpoint.nest(flat)
    images = IMAGES.astype(np.float64)
    return reference.clip(images, TOKENS, params, vision_heads=2, text_heads=1)[0]


@pytest.mark.parametrize("write", [write_openai, write_hugging_face, write_open_clip])
def test_every_layout_gives_the_same_model(tmp_path: Path, write: Any, expected: Any) -> None:
    model, preprocess = jaxclip.load(write(tmp_path / "model.safetensors"))
    logits_per_image, logits_per_text = model(IMAGES, TOKENS)
    assert departure(logits_per_image, expected) < within("logits")
    assert np.array_equal(logits_per_text, logits_per_image.T)
    assert model.config == CONFIG and preprocess.size == 20
    assert model.notes["source"]["sha256"]


def test_another_activation_is_another_model(tmp_path: Path, expected: Any) -> None:
    """The negative twin: what a guess instead of an error would give."""
    path = tmp_path / "bare.pt"
    torch_archive.write(path, foreign.openai(buffers=False))
    with pytest.raises(ValueError, match="activation"):
        jaxclip.load(path)
    wrong, _ = jaxclip.load(path, activation="gelu", heads=(2, 1))
    assert departure(wrong(IMAGES, TOKENS)[0], expected) > 100 * within("logits")
    right, _ = jaxclip.load(path, activation="quick_gelu", heads=(2, 1))
    assert departure(right(IMAGES, TOKENS)[0], expected) < within("logits")


def test_a_path_never_opens_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    jaxclip.load(write_openai(tmp_path / "model.pt"))
    jaxclip.load("emoji")


def test_the_nine_released_models_in_the_released_order() -> None:
    names = jaxclip.available_models()
    assert names == [
        "RN50",
        "RN101",
        "RN50x4",
        "RN50x16",
        "RN50x64",
        "ViT-B/32",
        "ViT-B/16",
        "ViT-L/14",
        "ViT-L/14@336px",
    ]
    assert list(downloads.RELEASED_FILES) == names == list(RELEASED)


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with a tiny file in the place of the official ViT-B/32; no network."""
    official = write_openai(tmp_path / "ViT-B-32.pt")
    content = official.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known = downloads.ReleasedFile("https://example.invalid/ViT-B-32.pt", digest, len(content))
    monkeypatch.setitem(downloads.RELEASED_FILES, "ViT-B/32", known)
    monkeypatch.setenv("JAXCLIP_OFFLINE", "1")
    return tmp_path


def test_a_released_model_is_converted_once(released: Path, expected: Any) -> None:
    model, _ = jaxclip.load("ViT-B/32", cache_dir=released)
    assert departure(model(IMAGES, TOKENS)[0], expected) < within("logits")
    converted = released / "ViT-B-32.safetensors"
    made = converted.stat().st_mtime_ns
    (released / "ViT-B-32.pt").unlink()  # no longer needed
    again, _ = jaxclip.load("ViT-B/32", cache_dir=released)
    assert converted.stat().st_mtime_ns == made
    source, known = again.notes["source"], downloads.RELEASED_FILES["ViT-B/32"]
    assert source["url"] == known.url and source["sha256"] == {"ViT-B-32.pt": known.sha256}
    assert again.notes["image_policy"] == "official"
    assert again.notes["converted"]["converter"] == convert.CONVERTER
    assert np.array_equal(again(IMAGES, TOKENS)[0], model(IMAGES, TOKENS)[0])


def test_a_name_is_fetched_from_a_server_converted_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Any
) -> None:
    """From the name to the logits, over a connection that breaks off half-way once."""
    content = write_openai(tmp_path / "model.pt").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known = downloads.ReleasedFile("https://example.invalid/ViT-B-32.pt", digest, len(content))
    monkeypatch.setitem(downloads.RELEASED_FILES, "ViT-B/32", known)
    monkeypatch.delenv("JAXCLIP_OFFLINE", raising=False)
    cache = tmp_path / "cache"
    with file_server.running() as server:
        monkeypatch.setenv("JAXCLIP_MIRROR", server.url)
        server.script = [file_server.half(body=content), file_server.ranges(content)]
        model, _ = jaxclip.load("ViT-B/32", cache_dir=cache)
        assert departure(model(IMAGES, TOKENS)[0], expected) < within("logits")
        assert [path for path, _ in server.seen] == [f"/{digest}/ViT-B-32.pt"] * 2
        jaxclip.load("ViT-B/32", cache_dir=cache)
        assert len(server.seen) == 2
        # the negative twin: other bytes of the same length are refused and leave nothing
        other = content[:-1] + bytes([content[-1] ^ 1])
        server.script = [file_server.whole(other)]
        with pytest.raises(ValueError, match=digest):
            jaxclip.load("ViT-B/32", cache_dir=tmp_path / "elsewhere")
        assert not list((tmp_path / "elsewhere").glob("*.safetensors"))


def test_a_damaged_or_older_conversion_is_made_anew(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jaxclip.load("ViT-B/32", cache_dir=released)
    converted = released / "ViT-B-32.safetensors"
    good = converted.read_bytes()
    converted.write_bytes(good[:50])
    assert find("ViT-B/32", released) == converted
    assert checkpoint.load_notes(converted) == checkpoint.load_notes(converted)
    flat, config, notes = checkpoint.load_stored(converted)
    notes["source"]["sha256"] = {"ViT-B-32.pt": "0" * 64}
    checkpoint.save(converted, flat, config, notes)
    find("ViT-B/32", released)
    assert "0" * 64 not in json.dumps(checkpoint.load_notes(converted))


def test_what_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model is named 'ViT-B/31'.*ViT-B/32"):
        jaxclip.load("ViT-B/31")
    with pytest.raises(ValueError, match="got a folder without any"):
        jaxclip.load(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="--resume"):
        jaxclip.load(tmp_path)


@pytest.mark.parametrize("count", [1, 8, 9, 19])
def test_rows_in_turn_are_the_rows_at_once(count: int, tmp_path: Path) -> None:
    """On a CPU a few rows go through the model at a time; op by op all do."""
    path = write_openai(tmp_path / "model.pt")
    ours, whole = jaxclip.load(path, arrange=True)[0], jaxclip.load(path, jit=False)[0]
    images = np.random.default_rng(count).normal(size=(count, 20, 20, 3)).astype(np.float32)
    tokens = np.resize(TOKENS, (count, TOKENS.shape[1]))
    assert departure(ours.encode_image(images), whole.encode_image(images)) < within(
        "float32 twice"
    )
    assert departure(ours.encode_text(tokens), whole.encode_text(tokens)) < within("float32 twice")


def test_kernels_of_a_narrow_model_are_kept_narrow(tmp_path: Path) -> None:
    """The same numbers as of kernels that every call converts; norms and biases stay float32."""
    path = write_openai(tmp_path / "model.pt")
    model = jaxclip.load(path, dtype=jnp.bfloat16)[0]
    leaves = parameters.named_leaves(model)
    narrow = {name for name, leaf in leaves.items() if leaf.dtype == jnp.bfloat16}
    assert narrow == {name for name in leaves if name.endswith(("kernel", "proj", "projection"))}
    every_call = clip.abstract(model.config, remat="none", numerics=model.visual.numerics)
    flat = convert.load(path).flat
    want = jax.jit(clip.Clip.encode_image)(parameters.from_flat(flat, every_call), IMAGES)
    assert (np.asarray(model.encode_image(IMAGES)) == np.asarray(want)).all()


@pytest.mark.parametrize("config", [foreign.VIT, foreign.RESNET])
def test_a_model_is_plain_unless_it_is_to_be_arranged(config: ClipConfig, tmp_path: Path) -> None:
    """The same names and shapes on every platform; arranged, the same function."""
    path = tmp_path / "model.pt"
    archives.write_torchscript_like(path, foreign.openai(config))
    plain, arranged = (jaxclip.load(path, arrange=flag)[0] for flag in (False, True))
    expected = parameters.named_leaves(clip.abstract(config, remat="none"))
    shapes = {name: leaf.shape for name, leaf in parameters.named_leaves(plain).items()}
    assert shapes == {name: leaf.shape for name, leaf in expected.items()}
    assert type(jaxclip.load(path)[0]) is type(plain) is clip.Clip
    assert type(arranged) is (cpu.CpuClip if jax.default_backend() == "cpu" else clip.Clip)
    assert plain.notes == arranged.notes and plain.notes["source"]
    size = config.vision.image_size
    images = RNG.normal(size=(9, size, size, 3)).astype(np.float32)
    got = arranged.encode_image(images), arranged(images, TOKENS)[0]
    want = plain.encode_image(images), plain(images, TOKENS)[0]
    assert departure(got[0], want[0]) < within("float32 twice")
    assert departure(got[1], want[1]) < within("logits")


@pytest.mark.parametrize("config", [foreign.VIT, foreign.RESNET])
def test_a_tower_alone_gives_what_it_gives_in_the_whole_model(
    config: ClipConfig, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    archives.write_torchscript_like(path, foreign.openai(config))
    whole = jaxclip.load(path)[0]
    opened = convert.load(path)
    image, text = (jaxclip.load(opened, tower=tower)[0] for tower in ("image", "text"))
    size = config.vision.image_size
    images = RNG.normal(size=(2, size, size, 3)).astype(np.float32)
    assert (np.asarray(image.encode_image(images)) == whole.encode_image(images)).all()
    assert (np.asarray(text.encode_text(TOKENS)) == whole.encode_text(TOKENS)).all()
    names = [set(parameters.to_flat(each)) for each in (image, text, whole)]
    assert names[0] | names[1] == names[2] and names[0] & names[1] == {"logit_scale"}
    with pytest.raises(ValueError, match="the model: expected a model with activation 'gelu'"):
        jaxclip.load(opened, activation="gelu")
    with pytest.raises(ValueError, match="tower: expected image or text, got 'both'"):
        jaxclip.load(opened, tower="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without its text tower"):
        image.encode_text(TOKENS)
    with pytest.raises(ValueError, match="without its image tower"):
        text(images, TOKENS)


def test_a_tower_alone_is_as_sound_as_it_must_be(tmp_path: Path) -> None:
    arrays = {name: x for name, x in ARRAYS.items() if name != "ln_final.weight"}
    archives.write_torchscript_like(tmp_path / "model.pt", arrays)
    for tower in ("image", "text"):
        with pytest.raises(ValueError, match="ln_final"):
            jaxclip.load(tmp_path / "model.pt", tower=tower)


def test_a_model_is_a_part_of_somebody_s_own_program(tmp_path: Path) -> None:
    model, _ = jaxclip.load(write_openai(tmp_path / "model.pt"))
    images = np.resize(IMAGES, (9, *IMAGES.shape[1:]))
    inside = jax.jit(lambda x: model.encode_image(x))(images)
    assert departure(inside, model.encode_image(images)) < within("float32 twice")
    grown = jax.grad(lambda x: model.encode_image(x).sum())(jnp.asarray(images))
    assert grown.shape == images.shape


def test_options_that_the_compiler_does_not_know_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_no_such_option": ""})
    cpu._known_options.cache_clear()
    assert cpu.compiler_options(jnp.float32) == {} and cpu.compiler_options(jnp.bfloat16) is None
    cpu._known_options.cache_clear()
