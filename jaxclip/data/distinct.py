"""Batches that hold no pair twice, also after skips. Imports grain."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

Example = dict[str, Any]


class DistinctBatches(grain.IterDataset):
    """Batches of `rows` examples, without those whose pair is in the batch already.

    The order has no pair twice in a batch, but after a skip later positions move up, maybe across
    the end of an epoch. State is kept between batches only.

    Args:
      parent: the examples, each with its `index` (source, index in it).
      rows: examples of a batch.
      repeats: how often a pair of each source may be in a batch.
      patience: duplicates in a row after which there are too few usable examples.
      collate: examples to a batch.
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        rows: int,
        repeats: Sequence[int],
        patience: int,
        collate: Callable[[Sequence[Example]], Example],
    ) -> None:
        super().__init__(parent)
        self.examples, self.rows, self.repeats = parent, rows, repeats
        self.patience, self.collate = patience, collate

    def __iter__(self) -> grain.DatasetIterator:
        return _Iterator(self)


class _Iterator(grain.DatasetIterator):
    def __init__(self, batches: DistinctBatches) -> None:
        self.examples = iter(batches.examples)
        super().__init__(self.examples)
        self.batches = batches

    def __next__(self) -> Example:
        seen: collections.Counter[tuple[int, int]] = collections.Counter()
        found: list[Example] = []
        passed = 0
        while len(found) < self.batches.rows:
            example = next(self.examples)
            source, index = (int(i) for i in example["index"])
            if seen[source, index] < self.batches.repeats[source]:
                seen[source, index] += 1
                found.append(example)
                passed = 0
                continue
            passed += 1
            if passed > self.batches.patience:
                raise ValueError(
                    f"batch_size: expected at most {len(found)} rows a process, as many different "
                    f"pairs as can be read, got {self.batches.rows}; give a smaller --batch-size"
                )
        return self.batches.collate(found)

    def get_state(self) -> dict[str, Any]:
        return self.examples.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.examples.set_state(state)


def collate(examples: Sequence[Example]) -> Example:
    """Columns of rows: texts as a list, everything else as one array."""
    together = {name: [example[name] for example in examples] for name in examples[0]}
    return {
        name: values if name == "caption" else np.stack(values) for name, values in together.items()
    }
