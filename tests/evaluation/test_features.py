"""Features of a source, block by block: the same however it is cut, and nothing slips through."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxclip.data.stream import Skips, TooManySkipped
from jaxclip.evaluation.features import Block, encode_blocks
from tests.support.pictures import grey_png as png

BROKEN, UNWANTED = (3, 8), 5


@dataclasses.dataclass(frozen=True)
class Item:
    image: bytes
    where: str


class Source:
    """Eleven grey pictures; the fourth and the ninth are broken."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, i: int) -> Item:
        return Item(png(i)[:30] if i in BROKEN else png(i), f"row {i}")


def grey(image) -> np.ndarray:
    return np.full((2, 2, 3), image.getpixel((0, 0))[0] / 20, np.float32)


def blocks(block: int, limit: int = 3, encode=lambda x: x[:, 0, 0] + 1, **more) -> list[Block]:
    def usable(item: Item) -> str | None:
        return "unwanted" if item.where == f"row {UNWANTED}" else None

    return list(
        encode_blocks(
            Source(), grey, encode, skips=Skips(limit), usable=usable, block=block, **more
        )
    )


@pytest.mark.parametrize("block", [1, 2, 4, 11, 50])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_usable_row_comes_once_and_in_order(block, threads):
    found = blocks(block, threads=threads)
    rows = np.concatenate([x.rows for x in found])
    assert rows.tolist() == [0, 1, 2, 4, 6, 7, 9, 10]
    features = np.concatenate([x.features for x in found if x.items])
    assert np.array_equal(features[:, 0], rows + 1)
    assert [item.where for x in found for item in x.items] == [f"row {i}" for i in rows]
    assert len(found) == -(-11 // block)


def test_the_model_always_sees_blocks_of_one_size():
    sizes = []

    def encode(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return x[:, 0, 0] + 1

    blocks(4, encode=encode)
    assert sizes == [4, 4, 4]


def test_it_begins_where_it_is_told():
    whole, rest = blocks(4), blocks(4, start=8)
    assert np.array_equal(whole[2].features, rest[0].features) and len(rest) == 1
    assert blocks(4, start=12) == []


def test_what_is_left_out_is_counted_with_its_reason_up_to_a_limit():
    skips = Skips(3)
    list(encode_blocks(Source(), grey, lambda x: x[:, 0, 0] + 1, skips=skips, block=4))
    assert skips.counts == {"broken picture": 2}
    with pytest.raises(TooManySkipped, match="more than 2 pairs"):
        blocks(4, limit=2)


def test_what_is_read_again_counts_once():
    skips = Skips(2)
    for _ in range(3):
        list(encode_blocks(Source(), grey, lambda x: x[:, 0, 0] + 1, skips=skips, block=4))
    assert skips.counts == {"broken picture": 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_features_that_are_no_numbers_stop_it(bad):
    def encode(x: np.ndarray) -> np.ndarray:
        features = x[:, 0, 0] + 1
        features[features[:, 0] == 8] = bad
        return features

    with pytest.raises(ValueError, match="features of row 4 or after"):
        blocks(4, encode=encode)
