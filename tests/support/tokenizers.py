"""Small tokenizers of the kinds that models bring, trained on names of the embedded pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXTS = (
    "a photo of a cat",
    "A red-brown dog, running.",
    "two   rockets_and a bicycle!",
    "",
    "Ünïcode ☕",
)


def _names() -> list[str]:
    from jaxclip.data.emoji.pictures import load_emoji

    return sorted(set(load_emoji("train").names))


def write_unigram(folder: Path, size: int = 300, **settings: Any) -> int:
    """As SigLIP's (c4-en): unigrams with a metaspace, "</s>" after the text; how many ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(_names(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    said = {"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>"}
    return _write(folder, made, {**said, "unk_token": "<unk>", "model_max_length": 16, **settings})


def write_gemma(folder: Path, size: int = 400, **settings: Any) -> int:
    """As Gemma's: byte pairs with byte fallback, spaces as letters; the size of its ids."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size + 256, special_tokens=[*specials, *letters], show_progress=False
    )
    made.train_from_iterator(_names(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    made.add_special_tokens([AddedToken(token, special=True) for token in specials])
    said: dict[str, Any] = {"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}
    said |= {"add_bos_token": False, "add_eos_token": True}
    said |= {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _write(folder, made, {**said, **settings})


def write_xlm(folder: Path, size: int = 300, **settings: Any) -> int:
    """As XLM-V's: unigrams between "<s>" and "</s>", padding 1; the size of its ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.Unigram())
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(_names(), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    said = {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    return _write(folder, made, {**said, "pad_token": "<pad>", "unk_token": "<unk>", **settings})


def _write(folder: Path, made: Any, settings: dict[str, Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(made.get_vocab_size())
