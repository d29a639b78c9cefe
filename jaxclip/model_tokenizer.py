"""The tokenizer of a model: CLIP's own, or the `tokenizer.json` that its config names.

Hugging Face's `tokenizers` (extra `hub`) runs the file; the rules around it (cleaning, start, end,
padding) are those of the model's own library and stand in `TokenizerConfig`. The config names the
file by its SHA-256. It lies beside the weights; whatever reads them tells `remember` where.
"""

import hashlib
import re
import shutil
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip import tokenizer
from jaxclip.config import TextConfig, TokenizerConfig
from jaxclip.files import open_regular

FILE_NAME = "tokenizer.json"
RULES_NAME = "tokenizer_config.json"
LARGEST = 256 << 20  # bytes; XLM-V's, of 901,629 tokens, has about 60 MB
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_files: dict[str, Path] = {}  # SHA-256 -> a file that has it


# Cleaning -----------------------------------------------------------------------------------------


def _remove_punctuation(text: str) -> str:
    """Source: transformers/models/siglip/tokenization_siglip.py: canonicalize_text."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def _canonicalize(text: str) -> str:
    """Source: open_clip/tokenizer.py: canonicalize_text."""
    text = tokenizer.repair(text).replace("_", " ").translate(_PUNCTUATION)
    return " ".join(text.lower().split())


def _repair(text: str) -> str:
    """Source: open_clip/tokenizer.py: _clean_whitespace."""
    return " ".join(tokenizer.repair(text).split())


CLEAN: dict[str, Callable[[str], str]] = {
    "none": str,
    "lower": str.lower,
    "siglip": _remove_punctuation,
    "canonicalize": _canonicalize,
    "whitespace": _repair,
    "whitespace, lower": lambda text: _repair(text).lower(),
}


# Files --------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """The SHA-256 of a file that is no larger than a tokenizer may be; ValueError if it is."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size > LARGEST:
            raise ValueError(f"{path}: expected at most {LARGEST:,} bytes, got {size:,}")
        file.seek(0)
        return hashlib.sha256(file.read()).hexdigest()


def remember(path: Path) -> str:
    """The SHA-256 of a tokenizer's file, which is found by it from now on."""
    sha256 = digest(path)
    _files[sha256] = path.resolve()
    return sha256


def file_of(config: TokenizerConfig) -> Path:
    """The file of a model's tokenizer, unchanged; ValueError where it is not known."""
    path = _files.get(config.sha256 or "")
    if path is None or not path.is_file() or digest(path) != config.sha256:
        named = f" with SHA-256 {config.sha256[:16]}..." if config.sha256 else ""
        raise ValueError(
            f"the model has a tokenizer of its own: expected its {FILE_NAME}{named} beside the "
            "weights, got none; put it there and load the model again"
        )
    return path


def copy_beside(config: TextConfig, folder: Path, *, force: bool = False) -> None:
    """Copy the model's tokenizer, if it has one of its own, into the folder of its weights.

    ValueError where the folder has another one, unless `force` is given.
    """
    if config.tokenizer is None or config.tokenizer.sha256 is None:
        return
    source, target = file_of(config.tokenizer), folder / FILE_NAME
    if target.exists() and digest(target) == config.tokenizer.sha256:
        return
    if target.exists() and not force:
        raise ValueError(
            f"{target}: expected the tokenizer of this model or none, got that of another; give "
            "another folder, or force=True (--force)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    rules = source.with_name(RULES_NAME)  # transformers reads them; ours are in the config
    if rules.is_file():
        shutil.copyfile(rules, folder / RULES_NAME)


# Tokens -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _backend(config: TokenizerConfig) -> Any:
    """The file as `tokenizers` runs it, without its own truncation and padding."""
    path = file_of(config)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(
            "the model has a tokenizer of its own: expected the package tokenizers, got none; "
            "pip install 'jaxclip[hub]'"
        ) from None
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: expected a tokenizer that the package tokenizers reads, got {reason}"
        ) from None
    found.no_truncation()
    found.no_padding()
    return found


def _clean(texts: Sequence[str], clean: Callable[[str], str]) -> list[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{number}]: expected a str, got {type(text).__name__}")
        if len(text) > tokenizer.LONGEST:
            raise ValueError(
                f"texts[{number}]: expected at most {tokenizer.LONGEST:,} characters, got "
                f"{len(text):,}; cut it"
            )
    return [clean(text) for text in texts]


def _encode(config: TokenizerConfig, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without start and end."""
    cleaned = _clean(texts, CLEAN[config.clean])
    found = _backend(config).encode_batch(cleaned, add_special_tokens=False)
    return [encoding.ids for encoding in found]


def _rows(
    config: TokenizerConfig, texts: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [n, length], tokens [n] that each text has with its marks, cut or not)."""
    start = [] if config.start is None else [config.start]
    end = [] if config.end is None else [config.end]
    room = length - len(start) - len(end)
    if room < 0:
        raise ValueError(f"context_length: expected {length - room} or more, got {length}")
    tokens = np.full((len(texts), length), config.pad, np.int32)
    counts = np.zeros(len(texts), np.int64)
    for row, ids in enumerate(_encode(config, texts)):
        marked = [*start, *ids[:room], *end]
        counts[row] = len(start) + len(ids) + len(end)
        at = length - len(marked) if config.pad_left else 0
        tokens[row, at : at + len(marked)] = marked
    return tokens, counts


def _check_clip(config: TextConfig) -> None:
    """ValueError where CLIP's tokenizer has ids that the model's vocabulary lacks."""
    if config.vocab_size < tokenizer.VOCAB_SIZE:
        raise ValueError(
            f"expected a vocabulary of {tokenizer.VOCAB_SIZE:,} tokens for CLIP's tokenizer, got "
            f"{config.vocab_size:,}; put the model's {FILE_NAME} beside its weights and load it "
            "again, or pass token ids"
        )


def tokenize_for(
    config: TextConfig,
    texts: str | Sequence[str],
    context_length: int | None = None,
    truncate: bool = False,
) -> np.ndarray:
    """The rows of ids [n, l] that the text tower reads, by the model's own tokenizer.

    Args:
      config: of the text tower.
      texts: one text, or a list, tuple or array `[n]` of texts.
      context_length: l; the model's if not given.
      truncate: cut texts that are too long, so that the row still has its end.

    Raises:
      ValueError: a text is too long and `truncate` is False, an argument is of the wrong kind, or
        the tokenizer's file is not there, or the package that runs it.

    Source: transformers/tokenization_utils_base.py; open_clip/tokenizer.py: HFTokenizer.
    """
    length = config.context_length if context_length is None else context_length
    if config.tokenizer is None:
        _check_clip(config)
        return tokenizer.tokenize(texts, length, truncate)
    rows = tokenizer.as_list(texts)
    tokens, counts = _rows(config.tokenizer, rows, length)
    if not truncate and (counts > length).any():
        number = int(np.argmax(counts > length))
        raise ValueError(
            f"texts[{number}] ({rows[number][:40]!r}): expected at most {length} tokens with its "
            f"marks, got {counts[number]}; shorten it or pass truncate=True"
        )
    return tokens


def tokenize_and_mark(
    config: TextConfig, texts: Sequence[str], context_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [n, l], which of the texts were cut, bool [n])."""
    if config.tokenizer is not None:
        tokens, counts = _rows(config.tokenizer, texts, context_length)
        return tokens, counts > context_length
    tokens = tokenize_for(config, texts, context_length, truncate=True)
    cut = tokens[:, -1] != 0  # a full row: as long as it may be, or cut
    for i in np.flatnonzero(cut).tolist():
        longer = tokenizer.tokenize(texts[i], context_length + 1, truncate=True)
        cut[i] = longer[0, -1] != 0
    return tokens, cut


# To look at ---------------------------------------------------------------------------------------


def encode_for(config: TextConfig, text: str) -> list[int]:
    """The ids of a text by the model's own tokenizer, without start, end and padding."""
    if config.tokenizer is None:
        _check_clip(config)
        return tokenizer.encode(text)
    return _encode(config.tokenizer, [text])[0]


def pieces_of(config: TextConfig, ids: Sequence[int]) -> list[str]:
    """The piece of text that each id stands for."""
    if config.tokenizer is None:
        return [tokenizer.decode([int(i)]) for i in ids]
    backend = _backend(config.tokenizer)
    return [backend.id_to_token(int(i)) or "(no piece)" for i in ids]


def filled(config: TextConfig, text: str) -> tuple[int, int]:
    """(first, last) position of a text's row that is not padding; of a text that may be cut."""
    length, own = config.context_length, config.tokenizer
    if own is None:
        return 0, int(tokenize_for(config, text, truncate=True)[0].argmax())
    count = min(int(_rows(own, [text], length)[1][0]), length)
    first = length - count if own.pad_left else 0
    return first, first + count - 1
