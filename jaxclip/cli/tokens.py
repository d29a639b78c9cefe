"""The command tokenize: how a model's tokenizer cuts a text."""

import json
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.table import Table

from jaxclip.cli.shared import AsJson, UsageError, print_line, print_table
from jaxclip.config import RELEASED, TextConfig


def tokenize(
    texts: Annotated[tuple[str, ...], tyro.conf.Positional],
    model: str = "",
    show: bool = False,
    truncate: bool = False,
    as_json: AsJson = False,
) -> int:
    """Show the tokens of texts, as a model's own tokenizer cuts them.

    Args:
        texts: One or more texts.
        model: Whose tokenizer: a checkpoint in any form that jaxclip loads; CLIP's unless given.
        show: Show the row that the model gets (77 of CLIP's), one token a line: start, pieces, end,
            padding.
        truncate: With --show, cut a text that is too long instead of refusing it.
        as_json: Print one JSON object a text.
    """
    from jaxclip.model_tokenizer import encode_for, pieces_of

    if not texts:
        raise UsageError("no text was given; name one or more texts")
    config = _text_config(model)
    if show:
        return _show_rows(config, texts, truncate, as_json)
    for text in texts:
        ids = encode_for(config, text)
        pieces = pieces_of(config, ids)
        if as_json:
            print(json.dumps({"text": text, "ids": ids, "pieces": pieces}))
        else:
            print_line(" ".join(f"{piece}|{i}" for piece, i in zip(pieces, ids, strict=True)))
    return 0


def _text_config(model: str) -> TextConfig:
    """Of the model's text tower; of the released models' tokenizer where none is named."""
    if not model or model in RELEASED:
        return RELEASED["ViT-B/32"].text
    from jaxclip import convert
    from jaxclip.hub.find import find

    text = convert.load(find(model), check_numbers=False).config.text
    if text is None:
        raise ValueError(f"{model}: expected a model with a text tower, got an image tower alone")
    return text


def _show_rows(config: TextConfig, texts: Sequence[str], truncate: bool, as_json: bool) -> int:
    """Each text as the model gets it; "end" is the last position that is not padding."""
    from jaxclip.model_tokenizer import filled, pieces_of, tokenize_for

    for text in texts:
        row = tokenize_for(config, text, truncate=truncate)[0]  # [l]
        first, end = filled(config, text)
        pieces = pieces_of(config, row[first : end + 1])
        if as_json:
            print(json.dumps({"text": text, "ids": row.tolist(), "pieces": pieces, "end": end}))
            continue
        table = Table("position", "id", "piece", title=repr(text), title_justify="left")
        padding = (str(config.tokenizer.pad if config.tokenizer else 0), "(padding)")
        if first > 0:
            table.add_row(f"0 to {first - 1}", *padding)
        for i, piece in enumerate(pieces, first):
            table.add_row(str(i), str(row[i]), repr(piece))
        if end + 1 < len(row):
            table.add_row(f"{end + 1} to {len(row) - 1}", *padding)
        print_table(table)
    return 0
