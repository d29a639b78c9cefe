"""CLIP's tokenizer in the files of transformers, from the merges that `tokenizer` has.

transformers cleans a text by Unicode's NFC alone; ours, as the released code, repairs encodings and
HTML escapes first. Elsewhere the ids are the same.
"""

import json
from typing import Any

from jaxclip import tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
CLASS = "CLIPTokenizer"
# Of tokenization_clip.py: what the library splits a text at.
SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def _added(vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return [
        {"id": vocabulary[mark], "content": mark, **flags, "special": True} for mark in (START, END)
    ]


def _file(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    bytes_as_letters |= {"use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Removed", "invert": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_as_letters]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocabulary[END]],
            "cls": [START, vocabulary[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": bytes_as_letters,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def files(context_length: int) -> dict[str, str]:
    """{name: content} of the files that transformers reads CLIP's tokenizer from."""
    vocabulary, pairs = tokenizer.spelled()
    merges = [" ".join(pair) for pair in pairs]
    marks = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {"tokenizer_class": CLASS, **marks, "model_max_length": context_length}
    return {
        "tokenizer.json": json.dumps(_file(vocabulary, merges), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }
