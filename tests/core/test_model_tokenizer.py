"""Models that bring a tokenizer: which file, which rules, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclip import model_tokenizer, tokenizer
from jaxclip.config import ClipConfig, TextConfig, TokenizerConfig, VisionConfig
from jaxclip.convert.layouts import vocabulary
from jaxclip.data.texts import Cutter
from jaxclip.model_tokenizer import tokenize_for
from jaxclip.models import clip
from tests.support.tokenizers import TEXTS, write_gemma, write_unigram, write_xlm

pytest.importorskip("tokenizers")


def text_of(folder: Path, size: int, siglip: bool = True, cfg: Any = None) -> TextConfig:
    plain = TextConfig(16, 1, 2, context_length=16, vocab_size=size)
    own = vocabulary.of_folder(folder, plain, cfg, siglip=siglip)
    return dataclasses.replace(plain, tokenizer=own)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    folder = tmp_path_factory.mktemp("siglip")
    return text_of(folder, write_unigram(folder))


def test_rules_of_siglip_are_read_and_followed(siglip: TextConfig) -> None:
    own = siglip.tokenizer
    assert own is not None
    assert (own.pad, own.end, own.start, own.clean, own.pad_left) == (1, 1, None, "siglip", False)
    tokens = tokenize_for(siglip, list(TEXTS), truncate=True)
    assert tokens.shape == (len(TEXTS), 16) and tokens.dtype == np.int32
    assert (tokens[:, -1] == 1).all() and (tokens[3] == 1).all(), "an empty text is its end alone"
    plain = tokenize_for(siglip, "a red-brown dog RUNNING")
    np.testing.assert_array_equal(tokenize_for(siglip, "A redbrown dog, running."), plain)


def test_rules_of_gemma_are_read(tmp_path: Path) -> None:
    size = write_gemma(tmp_path)
    text = text_of(tmp_path, size)
    own = text.tokenizer
    assert own is not None
    assert (own.pad, own.end, own.start, own.clean) == (0, 1, None, "lower")
    np.testing.assert_array_equal(tokenize_for(text, "A CAT"), tokenize_for(text, "a cat"))
    of_open_clip = {"tokenizer_kwargs": {"clean": "canonicalize"}}
    other = text_of(tmp_path, size, cfg=of_open_clip)
    np.testing.assert_array_equal(tokenize_for(other, "A_cat!"), tokenize_for(text, "a cat"))
    plain = text_of(tmp_path, size, siglip=False)
    assert not np.array_equal(tokenize_for(plain, "A CAT"), tokenize_for(plain, "a cat"))


def test_rules_of_xlm_are_read(tmp_path: Path) -> None:
    text = text_of(tmp_path, write_xlm(tmp_path), siglip=False)
    tokens = tokenize_for(text, ["a cat", "a very long text " * 9], truncate=True)
    assert (tokens[:, 0] == 0).all() and tokens[1, -1] == 2 and tokens[0, -1] == 1


def test_a_text_that_is_too_long_is_refused_or_cut_before_its_end(siglip: TextConfig) -> None:
    long = "rocket " * 40
    with pytest.raises(ValueError, match=r"texts\[1\] .* at most 16 tokens"):
        tokenize_for(siglip, ["a cat", long])
    row = tokenize_for(siglip, long, truncate=True)[0]
    assert row[-1] == 1 and (row[:-1] != 1).all()
    cutter = Cutter(16, "captions", siglip)
    cutter(["a cat", long])
    assert cutter.count == 1


def test_a_file_that_does_not_fit_the_vocabulary_is_refused(tmp_path: Path) -> None:
    size = write_unigram(tmp_path)
    for wrong in (size - 1, size + vocabulary.MOST_SPARE + 1):
        with pytest.raises(ValueError, match="does not fit the vocabulary: expected ids up to"):
            text_of(tmp_path, wrong)
    assert text_of(tmp_path, size + 5).tokenizer is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (b"{", "another file"),
        (b"[1]", "a list"),
        (b"{}", "no vocabulary"),
        (b'{"model": {"vocab": {"a": -1}}}', "without ids"),
        (b'{"model": {"vocab": [["a", 0.0]]}, "post_processor": {"type": "Odd"}}', "Odd"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, change: bytes, words: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(change)
    with pytest.raises(ValueError, match=words) as error:
        text_of(tmp_path, 300)
    assert "\n" not in str(error.value)


def test_a_special_token_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    size = write_unigram(tmp_path, pad_token="[PAD]")
    with pytest.raises(ValueError, match="pad_token: expected a token"):
        text_of(tmp_path, size)


def test_clips_own_tokenizer_is_for_its_own_vocabulary(tmp_path: Path) -> None:
    assert text_of(tmp_path, tokenizer.VOCAB_SIZE).tokenizer is None
    text = TextConfig(16, context_length=9)
    np.testing.assert_array_equal(tokenize_for(text, "a cat"), tokenizer.tokenize("a cat", 9))
    with pytest.raises(ValueError, match=r"tokenizer\.json beside its weights"):
        tokenize_for(dataclasses.replace(text, vocab_size=300), "a cat")


def test_without_its_file_a_model_never_guesses(tmp_path: Path) -> None:
    """CLIP's ids would fit into Gemma's vocabulary."""
    text = text_of(tmp_path, 256_000)
    assert text.tokenizer == TokenizerConfig(None)
    with pytest.raises(ValueError, match=r"expected its tokenizer.json beside the weights"):
        tokenize_for(text, "a cat")


def test_the_file_travels_beside_the_weights(siglip: TextConfig, tmp_path: Path) -> None:
    import jaxclip

    config = ClipConfig(VisionConfig(16, 8, 16, 1, 2), siglip, 8)
    model = clip.create(config)
    path = tmp_path / "run" / "mine.safetensors"
    model.save(path)
    copied = path.parent / "tokenizer.json"
    assert siglip.tokenizer is not None
    assert model_tokenizer.digest(copied) == siglip.tokenizer.sha256
    model_tokenizer._files.clear()
    model_tokenizer._backend.cache_clear()
    loaded, _ = jaxclip.load(path)
    assert loaded.config == config
    np.testing.assert_array_equal(loaded.tokenize(list(TEXTS)), model.tokenize(list(TEXTS)))
    copied.write_text(json.dumps({"model": {}}))  # another one
    model_tokenizer._files.clear()
    model_tokenizer._backend.cache_clear()
    with pytest.raises(ValueError, match=r"expected its tokenizer\.json with SHA-256"):
        jaxclip.load(path)[0].tokenize("a cat")


def test_another_models_file_is_not_overwritten(siglip: TextConfig, tmp_path: Path) -> None:
    own = siglip.tokenizer
    assert own is not None
    write_unigram(tmp_path / "again")
    model_tokenizer.remember(tmp_path / "again" / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    text = text_of(tmp_path / "again", siglip.vocab_size)
    with pytest.raises(ValueError, match="got that of another"):
        model_tokenizer.copy_beside(text, tmp_path)
    model_tokenizer.copy_beside(text, tmp_path, force=True)
    assert text.tokenizer is not None
    assert model_tokenizer.digest(tmp_path / "tokenizer.json") == text.tokenizer.sha256


def test_the_config_keeps_the_tokenizer(siglip: TextConfig) -> None:
    config = ClipConfig(VisionConfig(16, 8, 16, 1, 2), siglip, 8)
    assert ClipConfig.from_json(config.to_json()) == config
    assert "tokenizer" not in ClipConfig(config.vision, TextConfig(16, heads=2), 8).to_json()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(tmp_path, write_unigram(tmp_path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model_tokenizer._backend.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'jaxclip\[hub\]'"):
        tokenize_for(text, "a cat")


# Beside the libraries -----------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["GemmaTokenizer", "Siglip2Tokenizer", "XLMRobertaTokenizer"])
def test_rows_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    import transformers

    write = write_xlm if kind.startswith("XLM") else write_gemma
    size = write(tmp_path, tokenizer_class=kind)
    text = text_of(tmp_path, size, siglip=False)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    texts = [*TEXTS, "a very long text of many words " * 5]
    options: dict[str, Any] = {"padding": "max_length", "max_length": 16, "truncation": True}
    expected = theirs(texts, **options, return_tensors="np").input_ids
    np.testing.assert_array_equal(tokenize_for(text, texts, truncate=True), expected)
    own = text.tokenizer
    assert own is not None
    wrong = dataclasses.replace(text, tokenizer=dataclasses.replace(own, end=None))
    assert not np.array_equal(tokenize_for(wrong, texts, truncate=True), expected)


@pytest.mark.parity
@pytest.mark.parametrize("clean", ["canonicalize", "whitespace", "lower"])
def test_rows_equal_those_of_open_clip(tmp_path: Path, clean: str) -> None:
    from experiments.lib.peers.parity_support import torchvision_transforms

    torchvision_transforms()
    from open_clip.tokenizer import HFTokenizer

    size = write_gemma(tmp_path)
    text = text_of(tmp_path, size, cfg={"tokenizer_kwargs": {"clean": clean}})
    texts = [*TEXTS, "Fish &amp;amp; chips_here", "a very long text of many words " * 5]
    expected = HFTokenizer(str(tmp_path), context_length=16, clean=clean)(texts).numpy()
    np.testing.assert_array_equal(tokenize_for(text, texts, truncate=True), expected)


@pytest.mark.parity
def test_cleaning_equals_that_of_transformers_siglip() -> None:
    pytest.importorskip("sentencepiece")
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    theirs = SiglipTokenizer.__new__(SiglipTokenizer)
    theirs.do_lower_case = True
    for text in TEXTS:
        assert model_tokenizer.CLEAN["siglip"](text) == theirs.canonicalize_text(text)
