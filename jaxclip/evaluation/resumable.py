"""Half a run on disk, one file a block, so that an interrupted run resumes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.checkpoint import replacing
from jaxclip.data.stream import Skips
from jaxclip.evaluation.features import (
    Block,
    Encode,
    Items,
    Progress,
    ToPixels,
    encode_blocks,
    no_progress,
)
from jaxclip.evaluation.keys import Key, differences

Arrays = dict[str, np.ndarray]


class KeptBlocks:
    """The finished blocks of one pass over a source.

    Args:
      folder: for these blocks only; it is removed when the run is done.
      key: of the run (`keys`); half a run of another key is an error, unless `force`.
      skips: gets the counts of what the finished blocks have skipped.
      force: start over, whatever the folder holds.

    Raises:
      ValueError: the folder holds half a run of another key, or one that skipped too much.
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
        skipped = skips.counts.total()
        if skipped > skips.limit:
            raise ValueError(
                f"{folder.parent} holds half a run that left out {skipped} pictures, more than "
                f"--skip-limit {skips.limit}; allow more of them"
            )

    def _saved_key(self) -> Any:
        """The key of the finished blocks; None if it cannot be read."""
        try:
            return json.loads((self.folder / "key").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def fill(
        self,
        source: Items,
        to_pixels: ToPixels,
        encode: Encode,
        describe: Callable[[Block], Arrays],
        *,
        usable: Callable[[Any], str | None],
        block: int,
        what: str,
        progress: Progress = no_progress,
    ) -> None:
        """Encode the missing blocks, as `encode_blocks`, and write `describe` of each."""
        blocks = encode_blocks(
            source,
            to_pixels,
            encode,
            skips=self.skips,
            usable=usable,
            block=block,
            start=len(self.paths) * block,
        )
        total = -(-len(source) // block) - len(self.paths)
        for encoded in progress(blocks, what, total):
            path = self.folder / f"{len(self.paths):08d}.npz"
            skipped = np.array(json.dumps(self.skips.counts))  # by all blocks up to this one
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, skipped=skipped, **describe(encoded))
            self.paths.append(path)

    def join(self, *names: str) -> Arrays:
        """These arrays over all blocks that have rows; empty ones where there are none."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for path in self.paths:
            with np.load(path, allow_pickle=False) as arrays:
                for name in names:
                    if len(arrays[name]):
                        columns[name].append(arrays[name])
        return {
            name: np.concatenate(column) if column else np.zeros(0)
            for name, column in columns.items()
        }

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
