"""An index as the files that clip-retrieval and vector databases read.

    img_emb/img_emb_0.npy          float16 [n, d], of unit length
    metadata/metadata_0.parquet    n rows: image_path, and digest, size, modified

Layout: clip_retrieval/clip_inference/writer.py: OutputSink.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import replacing
from jaxclip.search.query import Snapshot, full_path
from jaxclip.terminal import printable


def require_pyarrow() -> Any:
    """The package pyarrow; ValueError that names the extra where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            "Parquet: expected the package pyarrow, got none; pip install 'jaxclip[parquet]'"
        ) from None
    return pyarrow


def export(snapshot: Snapshot, root: Path, out: Path) -> int:
    """Write one row a picture, in the order of paths, into the folder `out`; the number of rows.

    Raises:
      ValueError: pyarrow is missing, or `out` cannot be written to.
    """
    arrow = require_pyarrow()
    model, catalogue = snapshot.model, snapshot.catalogue
    contents = catalogue.contents(model)
    row_of = {digest: row for row, digest in contents}
    files = [x for _, x in sorted(catalogue.files().items()) if x.digest in row_of]
    rows = [row_of[x.digest] for x in files if x.digest is not None]
    microseconds = arrow.timestamp("us", tz="UTC")
    table = arrow.table(
        {
            "image_path": [parquet_text(full_path(root, x.path)) for x in files],
            "digest": [x.digest.hex() for x in files if x.digest is not None],
            "size": [x.size for x in files],
            "modified": arrow.array([x.modified // 1000 for x in files], microseconds),
        }
    ).replace_schema_metadata({"model": model.name, "key": model.key})
    with replacing(out / "img_emb" / "img_emb_0.npy") as path, open(path, "wb") as file:
        np.save(file, snapshot.vectors[rows])
    with replacing(out / "metadata" / "metadata_0.parquet") as path:
        arrow.parquet.write_table(table, path)
    return len(files)


def parquet_text(path: str) -> str:
    """A path as Parquet can hold it: one that is not UTF-8 as it is printed."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return printable(path)
    return path
