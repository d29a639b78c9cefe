"""What a long run has so far, a file a block, so that one that was interrupted can go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from experiments.lib.keys import Key, differences
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import stderr
from jaxclip.data.stream import Skips
from jaxclip.evaluation.features import Block, Encode, Items, ToPixels, streamed

Arrays = dict[str, np.ndarray]


class Parts:
    """The blocks of one reading of a source.

    Args:
      folder: theirs alone; it goes when the run is done.
      key: names the question (`keys`); half a run of another one is an error, unless `force`.
      skips: gets the counts of what the blocks that are there have left out.

    Raises:
      ValueError: half a run of another question is there, or one that left out too much.
    """

    def __init__(self, folder: Path, key: Key, skips: Skips, force: bool = False) -> None:
        self.folder, self.skips = folder, skips
        if force:
            self.remove()
        self.paths = sorted(folder.glob("*.npz"))
        if self.paths and (other := differences(self._saved_key(), key)):
            raise ValueError(
                f"{folder.parent} holds half a run of another kind, which differs in {other}; add "
                "--force"
            )
        with replacing(folder / "key") as temporary:
            temporary.write_text(json.dumps(key))
        for path in self.paths[-1:]:
            with np.load(path, allow_pickle=False) as arrays:
                skips.counts.update(json.loads(str(arrays["skipped"])))
        left_out = skips.counts.total()
        if left_out > skips.limit:
            raise ValueError(
                f"{folder.parent} holds half a run that left out {left_out} pictures, more than "
                f"--skip-limit {skips.limit}; allow more of them"
            )

    def _saved_key(self) -> Any:
        """The key of the blocks that are there; None if that cannot be read."""
        try:
            return json.loads((self.folder / "key").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def fill(
        self,
        source: Items,
        to_pixels: ToPixels,
        encode: Encode,
        part: Callable[[Block], Arrays],
        *,
        usable: Callable[[Any], str | None],
        block: int,
        what: str,
    ) -> None:
        """Read the blocks that are missing, as `features.streamed`, and keep `part` of each."""
        blocks = streamed(
            source,
            to_pixels,
            encode,
            skips=self.skips,
            usable=usable,
            block=block,
            start=len(self.paths) * block,
        )
        total = -(-len(source) // block) - len(self.paths)
        for found in track(blocks, what, total=total, console=stderr):
            path = self.folder / f"{len(self.paths):08d}.npz"
            skipped = np.array(json.dumps(self.skips.counts))  # by all blocks up to this one
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, skipped=skipped, **part(found))
            self.paths.append(path)

    def joined(self, *names: str) -> list[np.ndarray]:
        """These arrays over all blocks that have rows; of none, empty ones."""
        columns: list[list[np.ndarray]] = [[] for _ in names]
        for path in self.paths:
            with np.load(path, allow_pickle=False) as arrays:
                for column, name in zip(columns, names, strict=True):
                    column.append(arrays[name])
        filled = [[x for x in column if len(x)] for column in columns]
        return [np.concatenate(column) if column else np.zeros(0) for column in filled]

    def remove(self) -> None:
        """Nothing is left of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
