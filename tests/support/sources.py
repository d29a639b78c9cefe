"""Sources of pairs for tests."""

from jaxclip.data.pairs import Pair
from tests.support.pictures import png


class Memory:
    """A source in memory; what is wrong with some of its pairs is given by index."""

    def __init__(self, count: int, wrong: dict[int, Pair] | None = None) -> None:
        self.count, self.wrong = count, wrong or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Pair:
        return self.wrong.get(i) or Pair(png(i), (f"caption {i}",), f"memory {i}")
