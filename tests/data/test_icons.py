"""Icons beside the emoji: who is trained on, what a batch holds, how drawings are painted."""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclip.data.emoji import paint
from jaxclip.data.emoji.batches import TEMPLATES, MixedBatches
from jaxclip.data.emoji.icons import (
    HELD_OUT,
    SIDED,
    as_rgba,
    caption_names,
    is_icons,
    load_held_out,
    load_icons,
)
from jaxclip.data.emoji.pictures import EmojiPictures
from jaxclip.training.input_pipeline import MixedDrawings
from tests.support import icons

SIZE = 16


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    return icons.write_icons(tmp_path / "icons.zip")


def named(count: int, first: int = 0, channels: int = 4) -> EmojiPictures:
    """Pictures "n0", "n1", ... whose pixels are their number."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    images = np.tile(numbers[:, None, None, None], (1, SIZE, SIZE, channels))
    names = tuple(f"n{i}" for i in numbers)
    return EmojiPictures(images, names, ((),) * count, names)


# The zip ------------------------------------------------------------------------------------------


def test_every_drawing_has_its_own_pixels_and_caption(zipped: Path) -> None:
    colour, common, rare = load_icons(zipped)
    assert colour.files == ("painter/red house", "painter/green tree")
    assert common.files == ("lines/castle", "lines/arrow left")
    assert rare.files == ("lines/split v", "dots/flaky")
    assert common.keywords == (("fort", "tower"), ())
    for pictures, numbers in ((colour, (0, 2)), (common, (4, 5)), (rare, (6, 8))):
        for image, number in zip(pictures.images, numbers, strict=True):
            drawn = icons.drawing(number, icons.ROWS[number][2])
            np.testing.assert_array_equal(image, drawn * (drawn[..., -1:] > 0))
    assert caption_names(zipped) == {
        *("red house", "green tree", "castle", "arrow left", "split v", "flaky")
    }


def test_artists_of_the_emoji_and_those_held_out_are_not_trained_on(zipped: Path) -> None:
    artists = {file.split("/")[0] for part in load_icons(zipped) for file in part.files}
    assert artists == {"painter", "lines", "dots"}
    assert {row[0] for row in icons.ROWS} - artists == {"twemoji", *HELD_OUT}


def test_an_artist_held_out_is_read_in_rgba(zipped: Path) -> None:
    found = load_held_out(zipped, "game-icons", {"castle"})
    np.testing.assert_array_equal(found.images[0, ..., 3:], icons.drawing(3, 1))
    assert found.names == ("castle",) and not found.images[..., :3].any()
    with pytest.raises(ValueError, match="expected icons of 'game-icons', got none"):
        load_held_out(zipped, "game-icons", {"tree"})


@pytest.mark.parametrize("fault", ["no zip", "no index", "no column", "no sheet", "wrong size"])
def test_another_file_takes_one_line(zipped: Path, tmp_path: Path, fault: str) -> None:
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(zipped) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "index.json":
                index = json.loads(content)
                if fault == "no column":
                    del index["caption"]
                if fault == "wrong size":
                    index["size"] = 7
                content = json.dumps(index).encode()
            if (name, fault) not in {("index.json", "no index"), ("black/0000.webp", "no sheet")}:
                new.writestr(name, content)
    if fault == "no zip":
        broken.write_bytes(b"no zip")
    assert is_icons(zipped) and is_icons(broken) == (fault not in ("no zip", "no index"))
    with pytest.raises(ValueError, match=r"expected a zip of icons, .* got something else \(") as e:
        load_icons(broken)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "sided"),
    [("arrow left", True), ("4k", True), ("letter q", True), ("b", True), ("cat", False)],
)
def test_letters_and_directions_are_not_mirrored(name: str, sided: bool) -> None:
    assert bool(SIDED.search(name)) == sided


# Batches ------------------------------------------------------------------------------------------


def test_no_name_is_in_a_batch_twice_and_every_set_has_its_share() -> None:
    parts = [named(30), named(40, 10), named(30, 20, 1)]  # most names are in all three
    mixed = MixedBatches(parts, [2, 1, 1], 24, seed=3)
    seen = set()
    for step in range(40):
        batches = mixed.at(step)
        assert [len(batch.indices) for batch in batches] == [12, 6, 6]
        names = [part.names[i] for part, b in zip(parts, batches, strict=True) for i in b.indices]
        assert len(set(names)) == 24
        seen |= set(names)
    assert seen == {f"n{i}" for i in range(50)}


def test_captions_are_those_of_their_pictures_some_in_a_template() -> None:
    parts, templates = [named(30), named(30, 20)], 0
    mixed = MixedBatches(parts, [1, 1], 20, seed=0)
    for step in range(50):
        for part, batch in zip(parts, mixed.at(step), strict=True):
            for i, caption in zip(batch.indices, batch.captions, strict=True):
                assert part.names[i] in caption.split()
                templates += caption != part.names[i]
                assert caption in {t.format(part.names[i]) for t in ("{}", *TEMPLATES)}
    assert 90 < templates < 210  # 15 % of 1,000


def test_a_mixed_batch_is_a_function_of_seed_and_step() -> None:
    parts = [named(30), named(30, 20)]
    first, again = (MixedBatches(parts, [1, 1], 20, seed=5) for _ in range(2))
    other = MixedBatches(parts, [1, 1], 20, seed=6)
    captions = [[b.captions for b in x.at(9)] for x in (first, again, other)]
    assert captions[0] == captions[1] != captions[2]


def test_a_batch_too_small_for_its_sets_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two pictures of each of 2 sets, got 8"):
        MixedBatches([named(30), named(30)], [9, 1], 8, seed=0)


def test_too_few_names_end_in_one_line_and_not_in_a_search_without_end() -> None:
    mixed = MixedBatches([named(12), named(8)], [1, 1], 16, seed=0)  # 12 names in all
    with pytest.raises(ValueError, match="more than a set of 8 names can give"):
        mixed.at(0)


def test_the_stream_marks_what_is_black() -> None:
    parts = [named(30), named(40, 10, 1)]
    stream = MixedDrawings(parts, [1, 1], size=SIZE, batch_size=20, seed=0, text_length=8)
    first = next(stream)
    batch = next(stream)
    assert batch["drawings"].shape == (20, SIZE, SIZE, 4) and batch["tokens"].shape == (20, 8)
    np.testing.assert_array_equal(batch["black"], [False] * 10 + [True] * 10)
    assert not batch["drawings"][10:, ..., :3].any() and batch["drawings"][10:, ..., 3].all()
    stream.seek([0])
    assert all((first[name] == x).all() for name, x in next(stream).items())
    pixels = stream.batch_to_pixels(batch, jax.random.key(0))
    assert pixels.shape == (20, SIZE, SIZE, 3) and np.isfinite(pixels).all()


# Paint --------------------------------------------------------------------------------------------


def disc() -> np.ndarray:
    """A disc in black, opacity in 0 or 255: uint8 [1, 32, 32, 1]."""
    y, x = np.mgrid[:32, :32] - 15.5
    return (255 * (y**2 + x**2 < 144)).astype(np.uint8)[None, ..., None]


def painted(count: int, black: bool, image: np.ndarray, seed: int = 0) -> np.ndarray:
    drawings = np.repeat(as_rgba(image), count, axis=0)
    flags = np.full(count, black), np.zeros(count, bool)
    key = jax.random.key(seed)
    return np.asarray(paint.paint_drawings(key, drawings, flags[0], 32, flags[1]))


def test_what_is_black_is_painted_so_that_it_stands_out() -> None:
    pictures = painted(200, True, disc())
    assert pictures.min() >= 0 and pictures.max() <= 1
    luma = pictures @ np.array(paint.LUMA)
    corners = luma[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1)
    difference = np.abs(luma[:, 16, 16] - corners)
    assert np.median(difference) > paint.CONTRAST and (difference > 0.1).mean() > 0.85
    assert pictures[:, 16, 16].std(axis=0).min() > 0.15  # of many colours


def test_what_is_in_colour_keeps_its_colour(monkeypatch) -> None:
    monkeypatch.setattr(paint, "INK", 0.0)
    red = np.concatenate([np.full((1, 32, 32, 1), 255), np.zeros((1, 32, 32, 2)), disc()], axis=-1)
    centre = painted(100, False, red.astype(np.uint8))[:, 16, 16]
    seen = centre[centre.std(axis=1) > 0.05]  # some are made grey
    assert len(seen) > 80 and (seen.argmax(axis=1) == 0).mean() > 0.9


def test_ink_is_the_darker_part_the_brighter_part_or_the_outline() -> None:
    opacity = (disc()[0] / 255).astype(np.float32)
    colours = np.zeros((32, 32, 3), np.float32) + 0.2 * opacity
    colours[:, 16:] += 0.6 * opacity[:, 16:]  # a disc, dark on the left and bright on the right
    keys = jax.random.split(jax.random.key(0), 300)
    inked = jax.vmap(paint.ink, in_axes=(0, None, None))(keys, colours, opacity)
    left, right, edge = (np.asarray(inked)[:, 16, x, 0] for x in (10, 21, 15))
    darker, brighter = (left > 0.9) & (right < 0.6), (right > 0.9) & (left < 0.6)
    outlined = (left < 0.01) & (right < 0.01) & (edge == 1)
    assert (darker | brighter | outlined).all()
    assert min(darker.mean(), brighter.mean(), outlined.mean()) > 0.25
    assert np.asarray(inked)[:, 0, 0].max() == 0  # no ink outside of the drawing


def test_a_share_of_what_is_in_colour_is_inked_and_painted() -> None:
    red = np.concatenate([np.full((1, 32, 32, 1), 255), np.zeros((1, 32, 32, 2)), disc()], axis=-1)
    centre = painted(400, False, red.astype(np.uint8))[:, 16, 16]
    other = (centre.argmax(axis=1) != 0) & (centre.std(axis=1) > 0.05)  # outlines show the ground
    assert paint.INK / 4 < other.mean() < paint.INK


def test_grounds_are_white_plain_or_uneven() -> None:
    keys = jax.random.split(jax.random.key(1), 400)
    grounds, base = jax.vmap(paint.ground, in_axes=(0, None, None))(keys, 16, 0.45)
    spread = np.asarray(grounds).std(axis=(1, 2)).max(axis=1)
    white = np.asarray(base).min(axis=1) == 1
    assert 0.35 < white.mean() < 0.55 and spread[white].max() < 1e-4
    assert 0.35 < (spread[~white] < 1e-4).mean() < 0.65


def test_without_perspective_turn_and_stretch_the_drawing_is_only_scaled(monkeypatch) -> None:
    for name in ("STRETCH", "TURN", "PERSPECTIVE"):
        monkeypatch.setattr(paint, name, 0.0)
    monkeypatch.setattr(paint, "SCALE", (1.0, 1.0))
    image = np.random.default_rng(0).random((16, 16, 4)).astype(np.float32)
    key = jax.random.key(0)
    shift = np.asarray(paint.place(key, image, 16, np.array(False)))
    mirrored = np.asarray(paint.place(key, image[:, ::-1], 16, np.array(True)))
    np.testing.assert_allclose(shift[4:12, 4:12], mirrored[4:12, 4:12], atol=1e-5)
    assert np.abs(shift - image).max() > 0.01  # it has moved
