"""Which tokenizer a model brings, from the files beside its weights.

A vocabulary of CLIP's size is CLIP's own. Any other needs the `tokenizer.json` of its folder;
start, end and padding are read from `tokenizer_config.json` and from that file, cleaning from the
class that transformers runs it with or from open_clip's `text_cfg`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxclip.config import Clean, TextConfig, TokenizerConfig
from jaxclip.convert.archive import strict_json
from jaxclip.convert.archive.inert import short_repr
from jaxclip.files import decode_text, read_bytes
from jaxclip.model_tokenizer import FILE_NAME, LARGEST, RULES_NAME, remember

MOST_SPARE = 1_024  # rows of an embedding beyond the ids of its tokenizer: round sizes are faster

# transformers 5.23, models/*/tokenization_*.py: the classes that clean a text beyond what the file
# says. SigLIP 2 was trained on lower-case text (siglip2/tokenization_siglip2.py); its fixed-size
# models name Gemma's class, which does not do it.
CLEAN: dict[str, Clean] = {"Siglip": "siglip", "Siglip2": "lower"}
PAD_LEFT = {"Gemma", "Siglip2"}  # `padding_side` of the class, where the config has none
OPEN_CLIP_CLEAN: dict[str, Clean] = {
    "canonicalize": "canonicalize",
    "whitespace": "whitespace",
    "lower": "whitespace, lower",
}


class Words(NamedTuple):
    """The ids of a tokenizer's file, and what its post-processor puts around a text."""

    ids: Mapping[str, int]
    largest: int
    around: tuple[list[int], list[int]] | None


def _refusal(problem: str) -> ValueError:
    return ValueError(f"{FILE_NAME}: expected a tokenizer of the package tokenizers, got {problem}")


def _ids(data: Mapping[str, Any]) -> dict[str, int]:
    """{token: id} of the model's vocabulary and of the tokens added to it."""
    model = data.get("model")
    vocabulary = model.get("vocab") if type(model) is dict else None
    if type(vocabulary) is list:  # of unigrams: [token, score] each
        pairs = [entry[0] for entry in vocabulary if type(entry) is list and entry]
        found = {token: number for number, token in enumerate(pairs) if type(token) is str}
        whole = len(pairs) == len(vocabulary)
    else:
        found, whole = vocabulary if type(vocabulary) is dict else {}, type(vocabulary) is dict
    added = data.get("added_tokens") or []
    if not whole or type(added) is not list or not all(type(x) is dict for x in added):
        raise _refusal("no vocabulary")
    found = {**found, **{str(x.get("content")): x.get("id") for x in added}}
    if not found or any(type(number) is not int or number < 0 for number in found.values()):
        raise _refusal("a vocabulary without ids")
    return found


def _around(processor: Any, ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """The ids that a post-processor puts before and after a text."""
    kind = processor.get("type") if type(processor) is dict else None
    if kind in (None, "ByteLevel"):
        return [], []
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if kind == "Sequence":
        found = [_around(each, ids) for each in processor["processors"]]
        return [i for before, _ in found for i in before], [i for _, after in found for i in after]
    if kind != "TemplateProcessing":
        raise _refusal(f"the post-processor {short_repr(kind)}, which jaxclip does not have")
    before: list[int] = []
    after: list[int] = []
    side = before
    for piece in processor["single"]:
        if "Sequence" in piece:
            side = after
        else:
            side.extend(processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return before, after


def _read_words(path: Path) -> Words:
    """What a `tokenizer.json` holds; ValueError, in one line, where it is none."""
    try:
        data = json.loads(decode_text(read_bytes(path, LARGEST), "the JSON"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise _refusal(f"another file ({error})") from None
    if type(data) is not dict:
        raise _refusal(short_repr(data))
    ids = _ids(data)
    try:
        said = data.get("post_processor")
        around = None if said is None else _around(said, ids)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise _refusal("a post-processor that says no ids") from None
    for side in around or ():
        if len(side) > 1 or any(type(number) is not int for number in side):
            raise _refusal("a post-processor with more than one token before or after a text")
    return Words(ids, max(ids.values()), around)


def _token(settings: Mapping[str, Any], name: str, words: Words) -> int | None:
    """The id of a named special token in `tokenizer_config.json`; None where it has none."""
    value = settings.get(name)
    text = value.get("content") if type(value) is dict else value
    if text is None:
        return None
    if type(text) is not str or text not in words.ids:
        raise ValueError(
            f"{RULES_NAME}: {name}: expected a token of {FILE_NAME}, got {short_repr(text)}"
        )
    return words.ids[text]


def _class(settings: Mapping[str, Any]) -> str:
    """The name of the tokenizer's class without its ending: "Siglip", "Gemma", "XLMRoberta"."""
    name = settings.get("tokenizer_class")
    return str(name).removesuffix("Fast").removesuffix("Tokenizer") if type(name) is str else ""


def _check_fit(words: Words, vocab_size: int) -> None:
    """ValueError where the ids of a tokenizer are not those of the token embedding."""
    spare = vocab_size - 1 - words.largest
    if not 0 <= spare <= MOST_SPARE:
        raise ValueError(
            f"{FILE_NAME} does not fit the vocabulary: expected ids up to {vocab_size - 1:,}, the "
            f"last row of the token embedding, got {words.largest:,}; get the model's own file"
        )


def _marks(settings: Mapping[str, Any], words: Words) -> tuple[int | None, int | None]:
    """(start, end) around a text: as the post-processor says, or else the config's flags."""
    if _class(settings) == "Siglip":  # by its class, whatever the file says
        return None, _token(settings, "eos_token", words)
    if words.around is not None:
        return next(iter(words.around[0]), None), next(iter(words.around[1]), None)
    start = _token(settings, "bos_token", words) if settings.get("add_bos_token") else None
    return start, _token(settings, "eos_token", words) if settings.get("add_eos_token") else None


def _open_clip_rules(text_cfg: Mapping[str, Any]) -> tuple[Clean, bool]:
    """(cleaning, whether the end is replaced by id 0) of open_clip's `text_cfg`."""
    said = text_cfg.get("tokenizer_kwargs") or {}
    if type(said) is not dict or said.keys() - {"clean", "strip_sep_token"}:
        raise ValueError(
            "text_cfg: tokenizer_kwargs: expected clean and strip_sep_token alone, got "
            f"{short_repr(said) if type(said) is not dict else ', '.join(map(str, sorted(said)))}"
        )
    clean = said.get("clean", "whitespace")
    if type(clean) is not str or clean not in OPEN_CLIP_CLEAN:
        raise ValueError(
            f"text_cfg: clean: expected one of {', '.join(OPEN_CLIP_CLEAN)}, got "
            f"{short_repr(clean)}"
        )
    if text_cfg.get("tokenizer_mode"):
        raise ValueError(
            f"text_cfg: tokenizer_mode {short_repr(text_cfg['tokenizer_mode'])}, which jaxclip "
            "does not have"
        )
    return OPEN_CLIP_CLEAN[clean], said.get("strip_sep_token") is True


def _pad(settings: Mapping[str, Any], words: Words, path: Path) -> int:
    """The id that fills a row."""
    pad = _token(settings, "pad_token", words)
    if pad is None:
        raise ValueError(
            f"{RULES_NAME}: expected a pad_token, which fills the rows, got none; get the file "
            f"that belongs to {path.name}"
        )
    return pad


def of_folder(
    folder: Path, text: TextConfig, text_cfg: Mapping[str, Any] | None, *, siglip: bool = False
) -> TokenizerConfig | None:
    """The tokenizer of the model in a folder; None where it is CLIP's own.

    text_cfg: of open_clip's config, where it lies there. siglip: whether the model is a SigLIP.
    ValueError, in one line: a file that does not fit the vocabulary, or rules that we lack.
    """
    if text.vocab_size == TextConfig.vocab_size or text.kind == "cbow":
        _require_plain(text_cfg)
        return None
    path = folder / FILE_NAME
    if not path.is_file():
        # CLIP's ids would fit into a larger vocabulary, and be wrong
        needs = siglip or text.vocab_size > TextConfig.vocab_size
        return TokenizerConfig(None) if needs else None
    words = _read_words(path)
    _check_fit(words, text.vocab_size)
    if words.ids.get("<|startoftext|>") == TextConfig.vocab_size - 2:
        return None  # CLIP's, in a larger embedding
    settings = strict_json.read(folder / RULES_NAME) if (folder / RULES_NAME).is_file() else {}
    start, end = _marks(settings, words)
    kind = _class(settings)
    of_siglip: Clean = "lower" if kind == "Gemma" else "siglip"
    clean: Clean = CLEAN.get(kind, of_siglip if siglip else "none")
    if text_cfg is not None:
        clean, strips = _open_clip_rules(text_cfg)
        end = 0 if strips else end
    side = settings.get("padding_side", "left" if kind in PAD_LEFT else "right")
    return TokenizerConfig(
        remember(path), _pad(settings, words, path), end, start, clean, side == "left"
    )


def _require_plain(text_cfg: Mapping[str, Any] | None) -> None:
    """ValueError where open_clip runs CLIP's vocabulary by other rules than CLIP's."""
    for key in ("tokenizer_kwargs", "tokenizer_mode", "hf_tokenizer_name"):
        if text_cfg is not None and text_cfg.get(key):
            raise ValueError(
                f"text_cfg: {key} {short_repr(text_cfg[key])}: expected none for CLIP's "
                "vocabulary, whose tokenizer has no options here"
            )
