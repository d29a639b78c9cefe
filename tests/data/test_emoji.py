"""Which pictures and captions a step sees, and that the test pictures are seen by none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from jaxclip.data.emoji.batches import KEYWORD_SHARE, MOST_KEYWORDS, SIDED, EmojiBatches
from jaxclip.data.emoji.pictures import EmojiPictures, load_emoji

TEST_ARTIST = "fluent-emoji-flat/"
SIZES = {"train": 5881, "validation": 406, "test": 1586}


def toy(names: str = "aabbbcdefgghij") -> EmojiPictures:
    """Pictures named by one letter each, some sharing a name; keywords tell them apart."""
    n = len(names)
    return EmojiPictures(
        images=np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1),
        names=tuple(names),
        keywords=tuple((f"x{i}", f"y{i}") if i % 3 else () for i in range(n)),
        files=tuple(f"artist/{i}.png" for i in range(n)),
    )


def same(a, b) -> bool:
    return (
        (a.indices == b.indices).all()
        and (a.mirrorable == b.mirrorable).all()
        and a.captions == b.captions
    )


# Batches ------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step():
    batches, again, other = (EmojiBatches(toy(), 4, seed) for seed in (0, 0, 1))
    late = again.at(7)  # not after steps 0 to 6: nothing is remembered
    assert same(batches.at(7), late) and same(batches.at(7), again.at(7))
    assert not same(batches.at(7), other.at(7))


def test_every_step_has_a_batch_of_its_own():
    batches = EmojiBatches(toy(), 5, seed=0)
    seen = {(tuple(b.indices), tuple(b.captions)) for b in map(batches.at, range(40))}
    assert len(seen) == 40


@pytest.mark.parametrize("size", [2, 3, 4, 10])
def test_no_batch_holds_a_name_twice(size):
    pictures = toy()
    batches = EmojiBatches(pictures, size, seed=1)
    for step in range(30):
        names = [pictures.names[i] for i in batches.at(step).indices]
        assert len(set(names)) == len(names) == size


@pytest.mark.parametrize("size", [2, 3, 4, 5, 10])
def test_an_epoch_shows_every_name_once_up_to_the_remainder(size):
    """Ten names: with 3 and 4 a batch, one or two are left out, others in the next epoch."""
    pictures = toy()
    batches = EmojiBatches(pictures, size, seed=2)
    steps = 10 // size
    left_out = set()
    for epoch in range(40):
        shown = [
            pictures.names[i]
            for step in range(epoch * steps, (epoch + 1) * steps)
            for i in batches.at(step).indices
        ]
        assert len(set(shown)) == len(shown) == steps * size
        left_out |= set(pictures.names) - set(shown)
    assert len(left_out) == (0 if 10 % size == 0 else 10)  # not always the same ones


def test_pictures_of_one_name_take_turns():
    pictures = toy()
    batches = EmojiBatches(pictures, 10, seed=0)
    assert {int(i) for step in range(60) for i in batches.at(step).indices} == set(range(14))


def test_captions_are_the_name_and_sometimes_keywords_of_the_picture_behind_it():
    pictures = toy()
    batches = EmojiBatches(pictures, 10, seed=0)
    longer = []
    for step in range(60):
        batch = batches.at(step)
        for i, caption in zip(batch.indices, batch.captions, strict=True):
            name, *words = caption.split()
            assert name == pictures.names[i]
            assert set(words) <= set(pictures.keywords[i]) and len(set(words)) == len(words)
            assert len(words) <= MOST_KEYWORDS
            longer.append(bool(words))
    worded = np.mean([bool(pictures.keywords[i]) for i in range(14)])
    assert np.mean(longer) == pytest.approx(KEYWORD_SHARE * worded, rel=0.5)


@pytest.mark.parametrize("size", [11, 14, 1000, 1, 0, -1])
def test_a_batch_that_names_cannot_fill_is_refused(size):
    with pytest.raises(ValueError, match=rf"batch_size: expected 2 to 10, .*got {size}"):
        EmojiBatches(toy(), size, seed=0)


@pytest.mark.parametrize(
    ("name", "sided"),
    [
        ("left arrow", True),
        ("three o\u2019clock", True),
        ("flag: Chile", True),
        ("keycap: 3", True),
        ("cat face", False),
        ("copyright", False),
        ("flagship", False),
    ],
)
def test_what_has_a_side_is_not_mirrored(name, sided):
    assert bool(SIDED.search(name)) == sided
    pictures = EmojiPictures(
        np.zeros((2, 1, 1, 4), np.uint8), (name, "b"), ((), ()), ("a/1", "a/2")
    )
    batch = EmojiBatches(pictures, 2, seed=0).at(0)
    assert dict(zip(batch.indices.tolist(), batch.mirrorable.tolist(), strict=True)) == {
        0: not sided,
        1: True,
    }


# The embedded pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("split", SIZES)
def test_the_embedded_pictures_are_all_there(split):
    pictures = load_emoji(split)
    n = SIZES[split]
    assert pictures.images.shape == (n, 64, 64, 4) and pictures.images.dtype == np.uint8
    assert len(pictures.names) == len(pictures.keywords) == len(pictures.files) == n
    assert len(set(pictures.files)) == n and all(pictures.names)
    transparent = pictures.images[..., 3] == 0
    assert (pictures.images[transparent] == 0).all()
    assert (pictures.images[..., 3].max(axis=(1, 2)) > 0).all()  # none is empty


def test_one_artist_is_seen_in_the_test_only():
    assert all(file.startswith(TEST_ARTIST) for file in load_emoji("test").files)
    for split in ("train", "validation"):
        assert not any(file.startswith(TEST_ARTIST) for file in load_emoji(split).files)


def test_no_test_picture_is_in_another_split():
    bytes_of = {
        split: {hashlib.sha256(image.tobytes()).digest() for image in load_emoji(split).images}
        for split in SIZES
    }
    assert not bytes_of["test"] & (bytes_of["train"] | bytes_of["validation"])
    # Artists draw some things alike, and one redrew little from edition to edition: the same
    # letter, the same family under another name. They make validation too easy by this much.
    assert len(bytes_of["train"] & bytes_of["validation"]) <= 13


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="expected train, validation or test, got 'dev'"):
        load_emoji("dev")


def test_selecting_keeps_columns_together():
    chosen = toy().select(np.array([5, 0, 5]))
    assert chosen.images.ravel().tolist() == [5, 0, 5]
    assert chosen.names == ("c", "a", "c") and chosen.files[1] == "artist/0.png"
    assert chosen.keywords == (("x5", "y5"), (), ("x5", "y5"))
