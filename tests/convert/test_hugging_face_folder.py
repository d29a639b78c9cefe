"""`convert --layout huggingface`: weights, config, tokenizer and image processor, as transformers
loads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import convert, tokenizer
from jaxclip.config import ClipConfig, PictureConfig, TextConfig, VisionConfig
from jaxclip.convert.layouts import clip_words, vocabulary
from jaxclip.models import clip
from tests.support.tokenizers import TEXTS, write_gemma
from tests.support.tolerances import departure, within

NAMES = {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"}
HALF = (0.5, 0.5, 0.5)
SMALL = ClipConfig(
    VisionConfig(32, 8, 64, 2, 1), TextConfig(64, 2, 1, context_length=16), 48, "quick_gelu"
)


def siglip_config(folder: Path) -> ClipConfig:
    """A small SigLIP 2 with a tokenizer of Gemma's kind in the folder."""
    blocks: dict[str, Any] = {"layer_norm_epsilon": 1e-6}
    text = TextConfig(
        64,
        2,
        1,
        context_length=16,
        vocab_size=write_gemma(folder),
        causal=False,
        pooling="last",
        projection="linear",
        **blocks,
    )
    own = vocabulary.of_folder(folder, text, None, siglip=True)
    vision = VisionConfig(
        32,
        8,
        64,
        2,
        1,
        patch_bias=True,
        class_token=False,
        pre_norm=False,
        pooling="attention",
        projection="none",
        **blocks,
    )
    how = PictureConfig(HALF, HALF, "bilinear", "squash", steps="transformers")
    text = dataclasses.replace(text, tokenizer=own)
    return ClipConfig(vision, text, 64, "gelu_tanh", logit_bias=True, pictures=how)


def write_folder(config: ClipConfig, root: Path) -> tuple[Any, Path]:
    model = clip.create(config, 0)
    model.save(root / "ours" / "mine.safetensors")
    convert.convert(root / "ours" / "mine.safetensors", root / "hf", "huggingface")
    return model, root / "hf"


def test_clips_folder_has_all_that_transformers_reads(tmp_path: Path) -> None:
    _, folder = write_folder(SMALL, tmp_path)
    extra = {"tokenizer_config.json", "vocab.json", "merges.txt"}
    assert {path.name for path in folder.iterdir()} == NAMES | extra
    assert convert.load(folder).config == SMALL
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(ids) == tokenizer.VOCAB_SIZE and ids["<|endoftext|>"] == tokenizer.END_OF_TEXT
    assert ids["cat</w>"] == tokenizer.encode("cat")[0]
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(merges) == tokenizer.VOCAB_SIZE - 2 * 256 - 2 + 1


def test_padding_that_the_tower_reads_is_not_left_to_transformers(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    config = siglip_config(tmp_path / "words")
    text = dataclasses.replace(config.text, tokenizer=None, vocab_size=tokenizer.VOCAB_SIZE)
    with pytest.raises(ValueError, match="the text tower reads its padding"):
        write_folder(dataclasses.replace(config, text=text), tmp_path)
    assert not (tmp_path / "hf").exists() or not list((tmp_path / "hf").iterdir())


def test_a_model_with_its_own_tokenizer_keeps_it(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    config = siglip_config(tmp_path / "words")
    _, folder = write_folder(config, tmp_path)
    assert {path.name for path in folder.iterdir()} == NAMES | {"tokenizer_config.json"}
    assert convert.load(folder).config == config
    model, preprocess = jaxclip.load(folder)
    assert (model.tokenize(list(TEXTS), truncate=True)[:, -1] <= 1).all()
    assert preprocess.resize == "squash"


def test_files_of_another_model_do_not_stay(tmp_path: Path) -> None:
    _, folder = write_folder(SMALL, tmp_path)
    (tmp_path / "tower").mkdir()
    small = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, vocab_size=300))
    clip.create(small, 0).save(tmp_path / "small.safetensors")
    convert.convert(tmp_path / "small.safetensors", folder, "huggingface", force=True)
    assert {path.name for path in folder.iterdir()} == NAMES - {"tokenizer.json"}


def test_the_tokenizers_file_of_clip_gives_our_ids(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(clip_words.files(77)["tokenizer.json"])
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (*TEXTS, "it's 1,024 o'clock  in ZÜRICH", "<|endoftext|> a"):
        expected = [tokenizer.START_OF_TEXT, *tokenizer.encode(text), tokenizer.END_OF_TEXT]
        assert theirs.encode(text).ids == expected, text


# Beside transformers ------------------------------------------------------------------------------


@pytest.fixture
def torchvision() -> None:
    from experiments.lib.peers.parity_support import torchvision_transforms

    torchvision_transforms()


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (46, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parity
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_loads_the_folder_as_it_is(tmp_path: Path, kind: str) -> None:
    import torch
    import transformers

    config = SMALL if kind == "clip" else siglip_config(tmp_path / "words")
    model, folder = write_folder(config, tmp_path)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["a photo of a cat", "two rockets", "a red dog"]
    options: dict[str, Any] = {"padding": "max_length", "max_length": 16, "truncation": True}
    ids = words(texts, **options, return_tensors="np").input_ids
    ours = model.tokenize(texts)
    if kind == "clip":  # it fills the row with its end
        end = ours.argmax(axis=1)
        for row, (one, other) in enumerate(zip(ours, ids, strict=True)):
            np.testing.assert_array_equal(one[: end[row] + 1], other[: end[row] + 1])
    else:
        np.testing.assert_array_equal(ours, ids)
    _, preprocess = jaxclip.load(folder)
    pixels = processor(picture(), return_tensors="np")["pixel_values"]
    got = preprocess(picture())[None]
    np.testing.assert_array_equal(got, np.asarray(pixels).transpose(0, 2, 3, 1))
    with torch.no_grad():
        found = theirs(pixel_values=torch.tensor(pixels), input_ids=torch.tensor(ids))
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(model(got, ours)[0])
    expected = found.logits_per_image.numpy()
    assert (
        departure(logits, expected)
        <= within("float32 twice")
        < departure(logits[:, ::-1], expected)
    )
