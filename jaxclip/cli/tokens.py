"""The command tokenize: how the released tokenizer cuts a text."""

import json
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.table import Table

from jaxclip.cli.shared import AsJson, UsageError, print_line, print_table


def tokenize(
    texts: Annotated[tuple[str, ...], tyro.conf.Positional],
    show: bool = False,
    truncate: bool = False,
    as_json: AsJson = False,
) -> int:
    """Show the tokens of texts, as the released tokenizer cuts them.

    Args:
        texts: One or more texts.
        show: Show the row of 77 that a model gets, one token a line: start, pieces, end, padding.
        truncate: With --show, cut a text that is too long instead of refusing it.
        as_json: Print one JSON object a text.
    """
    from jaxclip.tokenizer import decode, encode

    if not texts:
        raise UsageError("no text was given; name one or more texts")
    if show:
        return _show_rows(texts, truncate, as_json)
    for text in texts:
        ids = encode(text)
        pieces = [decode([i]) for i in ids]
        if as_json:
            print(json.dumps({"text": text, "ids": ids, "pieces": pieces}))
        else:
            print_line(" ".join(f"{piece}|{i}" for piece, i in zip(pieces, ids, strict=True)))
    return 0


def _show_rows(texts: Sequence[str], truncate: bool, as_json: bool) -> int:
    """Each text as the model gets it; the row of the features is that of the end token."""
    from jaxclip import tokenizer

    for text in texts:
        row = tokenizer.tokenize(text, truncate=truncate)[0]  # [l]
        end = int(row.argmax())
        pieces = [tokenizer.decode([int(i)]) for i in row[: end + 1]]
        if as_json:
            print(json.dumps({"text": text, "ids": row.tolist(), "pieces": pieces, "end": end}))
            continue
        table = Table("position", "id", "piece", title=repr(text), title_justify="left")
        for i, piece in enumerate(pieces):
            table.add_row(str(i), str(row[i]), repr(piece))
        if end + 1 < len(row):
            table.add_row(f"{end + 1} to {len(row) - 1}", "0", "(padding)")
        print_table(table)
    return 0
