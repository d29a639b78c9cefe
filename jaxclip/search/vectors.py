"""Vectors of pictures or captions as one table, made in a folder that survives any interruption.

The folder is an index (`search.index`) with rows in float32 as the tower returns them. It stands
beside the file to write and is removed when that is written.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxclip.checkpoint import replacing
from jaxclip.data.texts import Cutter
from jaxclip.files import read_text, split_lines
from jaxclip.images.preprocess import Preprocess
from jaxclip.search import index
from jaxclip.search.catalogue import Catalogue, FileFacts
from jaxclip.search.export import parquet_text, require_pyarrow
from jaxclip.search.lines import Lines
from jaxclip.search.update import Files, Items

FORM = "jaxclip features 1"  # part of a model's key: as the tower returns them, float32
Table = dict[str, np.ndarray]  # columns [n, ...], and facts about all rows []
PARQUET = {  # names of columns, one value a row
    "embeds": "embedding",
    "files": "file",
    "sizes": "size",
    "modified": "modified",
    "digests": "digest",
    "captions": "caption",
    "lines": "line",
}


class ToEmbed(Protocol):
    """What is to be embedded.

    side: of the model. noun: what is left out, `empty` of which are already.
    names: one a row, in order.
    """

    @property
    def side(self) -> str: ...
    @property
    def noun(self) -> str: ...
    @property
    def empty(self) -> int: ...
    @property
    def names(self) -> Sequence[bytes]: ...

    def preprocessing(self, config: Any) -> dict[str, Any]:
        """What happens to it before the model reads it."""

    def items(self, config: Any) -> Items:
        """What to encode, each name once."""

    def columns(self, facts: Sequence[FileFacts]) -> Table:
        """The columns about rows of these facts."""


class Pictures:
    """Picture files; policy: "safe" or "official"."""

    side, noun, empty = "image", "pictures", 0

    def __init__(self, paths: Sequence[Path], policy: str) -> None:
        self.names, self.policy = [os.fsencode(path) for path in paths], policy

    def preprocessing(self, config: Any) -> dict[str, Any]:
        """Policy, size, mean, standard deviation and so on."""
        return {"policy": self.policy, **dataclasses.asdict(Preprocess.of(config))}

    def items(self, config: Any) -> Items:
        """The files."""
        preprocess = Preprocess.of(config)
        to_pixels = preprocess.safe if self.policy == "safe" else preprocess
        return Files("", list(dict.fromkeys(self.names)), to_pixels)

    def columns(self, facts: Sequence[FileFacts]) -> Table:
        """Names, sizes, times and digests of the files."""
        return {
            "files": np.array([os.fsdecode(x.path) for x in facts]),
            "sizes": np.array([x.size for x in facts], np.int64),
            "modified": np.array([x.modified // 1000 for x in facts], "datetime64[us]"),
            "digests": np.array([x.digest.hex() for x in facts if x.digest is not None]),
        }


class Captions:
    """The lines of a text file, stripped; empty ones are left out. ValueError if no other is."""

    side, noun = "text", "empty lines"

    def __init__(self, path: Path) -> None:
        lines = [line.strip() for line in split_lines(read_text(path))]
        self.texts = {b"%d" % i: line for i, line in enumerate(lines, start=1) if line}
        self.names, self.empty = list(self.texts), len(lines) - len(self.texts)
        if not self.texts:
            raise ValueError(f"{str(path)!r}: expected a caption on each line, got none")

    def preprocessing(self, config: Any) -> dict[str, Any]:
        """After how many tokens a caption is cut."""
        return {"tokens": config.text.context_length}

    def items(self, config: Any) -> Items:
        """The captions; those that are cut are warned of."""
        return Lines(self.texts, Cutter(config.text.context_length, "captions", config.text))

    def columns(self, facts: Sequence[FileFacts]) -> Table:
        """The captions and the numbers of their lines, from 1."""
        return {
            "captions": np.array([self.texts[x.path] for x in facts]),
            "lines": np.array([int(x.path) for x in facts], np.int64),
        }


def model_key(opened: Any, given: ToEmbed) -> str:
    """SHA-256 of what a vector depends on: tower, config, preprocessing."""
    side = {"image": "visual.", "text": "text."}[given.side]
    form = json.dumps([FORM, given.preprocessing(opened.config)])
    return index.model_key(opened, form, side)


def read_table(
    given: ToEmbed, folder: Path, catalogue: Catalogue, key: str
) -> tuple[np.ndarray, Table]:
    """The features [n, e] float32 of all that was encoded, in order, and the columns about them."""
    model, files = catalogue.model(key), catalogue.files()
    assert model is not None
    row_of = {digest: row for row, digest in catalogue.contents(model)}
    facts = [files[name] for name in given.names if files[name].digest in row_of]
    rows = [row_of[x.digest] for x in facts if x.digest is not None]
    vectors = index.map_rows(folder, model, index.end_of(catalogue.blocks(model)))
    return vectors[rows], given.columns(facts)


def write_npz(path: Path, table: Mapping[str, np.ndarray]) -> None:
    """Write a table as NumPy's .npz: an array a name."""
    arrays: Any = dict(table)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def write_parquet(path: Path, table: Mapping[str, np.ndarray]) -> None:
    """Write a table as Parquet: a column a name, facts about all rows in the file's metadata."""
    arrow = require_pyarrow()
    embeds = np.ascontiguousarray(table["embeds"])
    flat = arrow.array(embeds.reshape(-1))
    columns = {"embedding": arrow.FixedSizeListArray.from_arrays(flat, embeds.shape[1])}
    notes = {}
    for name, array in table.items():
        if array.ndim == 0:
            notes[name] = str(array)
        elif name != "embeds":
            text = array.dtype.kind == "U"
            values = [parquet_text(x) for x in array.tolist()] if text else array
            columns[PARQUET[name]] = arrow.array(values)
    with replacing(path) as temporary:
        arrow.parquet.write_table(arrow.table(columns).replace_schema_metadata(notes), temporary)
