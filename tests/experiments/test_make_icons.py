"""The icons with captions: cleaned names, no near copies, nothing held out, the same bytes."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.recipes import artwork, icon_captions, icon_drawings, icon_file
from experiments.recipes.icon_captions import Icon, choose_icons, clean_caption, describe_names
from experiments.recipes.icon_drawings import BLACK, BLANK, COLOUR, SIZE, thin_out

ROOT = Path(__file__).parents[2]
SQUARE = '<path d="M2 2h20v20H2z"/>'
NAMES = {"red-apple": ("red apple", ["fruit"]), "cat-face": ("cat face", ["pet"])}


# Captions -----------------------------------------------------------------------------------------

LIKE_IT = ["heart", "heart-bold", "light", "light-filled", "traffic-light", "path", "arrow"]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("heart-bold", "heart"),  # the set has "heart" too
        ("traffic-light", "traffic light"),  # but no "traffic": a thing
        ("heart-outline", "heart"),
        ("heart-outline-24", "heart"),
        ("heart-16x16", "heart"),
        ("heart-20px", "heart"),
        ("Cloud_Rain", "cloud rain"),
        ("eraser2", "eraser"),
        ("co2", "co2"),  # two letters and a number are a name
        ("light", "light"),  # the only word stays, though it may be a style
        ("outline", "outline"),
        ("sun-two-tone", "sun"),
        ("video-one", "video one"),  # a style of icon-park alone
        ("24-7", ""),  # no word
        ("x", ""),
    ],
)
def test_a_caption_is_the_name_without_style_and_numbers(name: str, caption: str) -> None:
    known = describe_names({"prefix": "any"}, LIKE_IT)
    assert clean_caption(name, known) == caption


def test_what_a_set_adds_to_its_names_goes() -> None:
    data = {"prefix": "some", "prefixes": {"wi": "", "": ""}, "suffixes": {"24": "", "bold": ""}}
    names = ["wi-cat-24", "wi-cat-bold", "wi-dog-24", "wi-dog-bold", "wi-semi-bold"]
    known = describe_names(data, names)
    assert clean_caption("wi-cat-24", known) == "cat"
    assert clean_caption("wi-semi-bold", known) == "semi bold"  # no "semi" without the style
    park = describe_names({"prefix": "icon-park-solid"}, ["video-one", "cat"])
    assert clean_caption("video-one", park) == "video"


def test_a_first_word_that_most_names_share_names_the_set() -> None:
    names = ["cil-cat", "cil-dog", "cil-sun", "moon"]
    assert clean_caption("cil-cat", describe_names({"prefix": "cil"}, names)) == "cat"
    few = describe_names({"prefix": "cil"}, ["cil-cat", "dog", "sun"])
    assert clean_caption("cil-cat", few) == "cil cat"


def caption(prefix: str, name: str, category: str = "General") -> str:
    known = describe_names({"prefix": prefix}, [name, "another"])
    return icon_captions.caption_of(name, known, category, {"acme", "visa"}, NAMES)


def test_emoji_take_the_names_of_cldr_and_lose_skin_tones() -> None:
    assert caption("noto", "cat-face") == "cat face"
    assert caption("noto", "flag-for-flag-france") == "flag france"
    assert caption("noto", "waving-hand-medium-dark-skin-tone") == ""
    assert caption("mdi", "waving-hand-medium-dark-skin-tone") != ""  # a skin tone of emoji only


def test_logos_are_left_out() -> None:
    assert caption("mdi", "acme-square") == caption("mdi", "visa") == ""
    assert caption("mdi", "brand-cat") == caption("mdi", "cat-logo") == ""
    assert caption("mdi", "apple") == ""  # a company's, in a set for interfaces
    assert caption("mdi", "apple", "Emoji") == "apple"
    assert caption("mdi", "acme-hammer") == "acme hammer"


def test_a_caption_has_its_plainest_icon_and_one_in_another_style() -> None:
    names = ["heart-thin", "heart-filled", "heart-bold-line", "heart"]
    assert icon_captions.pick_variants(names, is_coloured=False) == ["heart", "heart-filled"]
    assert icon_captions.pick_variants(["heart-thin", "heart"], is_coloured=False) == ["heart"]
    assert len(icon_captions.pick_variants(names, is_coloured=True)) == 3


# Sets ---------------------------------------------------------------------------------------------


def iconify(folder: Path, **records: dict[str, Any]) -> Path:
    """An unpacked @iconify/json of sets with one icon "cat" and one hidden."""
    (folder / "json").mkdir()
    collections = {}
    for number, (key, record) in enumerate(records.items()):
        prefix = key.replace("_", "-")
        collections[prefix] = {"name": prefix, "license": {"spdx": "MIT"}, **record}
        icons = {"cat": {"body": SQUARE}, "old-dog": {"body": SQUARE, "hidden": True}}
        data = {"prefix": prefix, "icons": icons, "width": 24, "height": 24 + number}
        (folder / f"json/{prefix}.json").write_text(json.dumps(data))
    (folder / "collections.json").write_text(json.dumps(collections))
    return folder


def chosen(folder: Path) -> list[str]:
    icons, credits = choose_icons(folder, NAMES)
    assert {icon.set for icon in icons} == set(credits)
    return [f"{icon.set}:{icon.caption}" for icon in icons]


def test_test_sets_and_other_licences_are_never_drawn(tmp_path: Path) -> None:
    share_alike = {"license": {"spdx": "CC-BY-SA-4.0"}}
    never = ("openmoji", "emojione_v1", "fluent", "fluent_emoji_flat", "fluent_mdl2")
    folder = iconify(
        tmp_path,
        **{prefix: {} for prefix in never},
        good={"author": {"name": "A. Author", "url": "https://example.org"}},
        shared=share_alike,
        logos={"category": "Logos"},
        fa_brands={},
        no_licence={"license": {}},
    )
    assert chosen(folder) == ["good:cat"]
    _, credits = choose_icons(folder, NAMES)
    assert credits["good"]["author"] == "A. Author" and credits["good"]["licence"] == "MIT"


def test_the_same_sets_under_other_names_and_licences_are_drawn(tmp_path: Path) -> None:
    folder = iconify(tmp_path, my_openmoji={}, affluent={}, shared={"license": {"spdx": "ISC"}})
    assert chosen(folder) == ["affluent:cat", "my-openmoji:cat", "shared:cat"]


# Near copies --------------------------------------------------------------------------------------


def black(top: int, left: int, side: int = 24) -> np.ndarray:
    """A black square [h, w, 4]."""
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    picture[top : top + side, left : left + side, 3] = 255
    return picture


def coloured(colour: tuple[int, int, int], top: int = 8) -> np.ndarray:
    picture = black(top, 8)
    picture[..., :3] = np.where(picture[..., 3:] > 0, colour, 0)
    return picture


def thinned(drawings: list[tuple[str, str, np.ndarray, int]]) -> list[int]:
    icons = [Icon(prefix, "icon", caption, "") for prefix, caption, _, _ in drawings]
    kinds = np.array([kind for *_, kind in drawings], np.uint8)
    return thin_out(icons, [picture for _, _, picture, _ in drawings], kinds)


def test_near_copies_of_one_caption_go() -> None:
    cat, shifted, other = black(8, 8), black(8, 9, 23), black(30, 30)
    assert thinned([("a", "cat", cat, BLACK), ("b", "Cat", shifted, BLACK)]) == [0]
    assert thinned([("a", "cat", cat, BLACK), ("b", "cat", other, BLACK)]) == [0, 1]
    assert thinned([("a", "bin", cat, BLACK), ("b", "trash", cat, BLACK)]) == [0, 1]
    assert thinned([("a", "cat", cat, BLANK), ("b", "cat", cat, BLACK)]) == [1]


def test_coloured_drawings_differ_by_colour_too() -> None:
    red, pale, blue = (coloured(c) for c in ((220, 30, 30), (222, 32, 30), (30, 30, 220)))
    assert thinned([("a", "cat", red, COLOUR), ("b", "cat", pale, COLOUR)]) == [0]
    assert thinned([("a", "cat", red, COLOUR), ("b", "cat", blue, COLOUR)]) == [0, 1]


def test_a_family_of_sets_has_two_black_drawings_of_a_caption() -> None:
    places = [black(0, 0), black(0, 40), black(40, 0), black(40, 40)]
    sets = ["ic", "mdi", "mdi-light", "tabler"]
    rows = [(name, "cat", at, BLACK) for name, at in zip(sets, places, strict=True)]
    assert thinned(rows) == [0, 1, 3]
    assert thinned([("mdi2", *row[1:]) if row[0] == "mdi" else row for row in rows]) == [0, 1, 2, 3]


def test_black_is_one_dark_colour() -> None:
    assert icon_drawings.kind_of(coloured((40, 40, 40))) == BLACK
    assert icon_drawings.kind_of(coloured((40, 60, 40))) == COLOUR


# The file -----------------------------------------------------------------------------------------


def write(out: Path, drawings: list[tuple[str, str, np.ndarray, int]]) -> Path:
    icons = [Icon(prefix, caption, caption, "") for prefix, caption, _, _ in drawings]
    pictures, kinds = [row[2] for row in drawings], [row[3] for row in drawings]
    sets = {icon.set: {"prefix": icon.set, "name": icon.set, "author": None} for icon in icons}
    credits = icon_file.count_pictures(icons, sets)
    icon_file.write_icons(out, icons, pictures, kinds, [0] * len(icons), NAMES, credits)
    return out


def read(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Pictures [h, w, channels] and index of a zip of icons."""
    pictures = {}
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read("index.json"))
        assert json.loads(archive.read("credits.json")) == index["sets"]
        for name, (first, last) in index["sheets"].items():
            sheet = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            side, many = index["size"], index["per_side"]
            cut = sheet.reshape(many, side, many, side, -1).swapaxes(1, 2)
            cut = cut.reshape(many**2, side, side, -1)
            pictures |= dict(zip(range(first, last), cut, strict=False))
    return [pictures[i] for i in range(len(pictures))], index


def many_drawings() -> list[tuple[str, str, np.ndarray, int]]:
    """Coloured drawings, then more black ones than fit a sheet."""
    rows = [("b", "cat face", coloured((220, 30, 30), top), COLOUR) for top in (0, 8)]
    return rows + [("a", f"cat {i}", black(i % 40, i // 40), BLACK) for i in range(258)]


def test_the_zip_holds_every_drawing_with_its_caption(tmp_path: Path) -> None:
    drawings = many_drawings()
    pictures, index = read(write(tmp_path / "icons.zip", drawings))
    assert list(index["sheets"]) == ["colour/0000.webp", "black/0000.webp", "black/0001.webp"]
    assert len(pictures) == len(drawings)
    for i, (prefix, caption, picture, kind) in enumerate(drawings):
        assert index["sets"][index["set"][i]]["prefix"] == prefix
        assert index["captions"][index["caption"][i]] == caption
        assert index["kind"][i] == (0 if kind == COLOUR else 1)
        seen = picture[..., 3:] if kind == BLACK else picture
        np.testing.assert_allclose(pictures[i][..., : seen.shape[2]], seen, atol=2)
    assert not np.array_equal(pictures[2], pictures[3])
    assert index["keywords"] == {"cat face": ["pet"]}
    assert [found["pictures"] for found in index["sets"]] == [258, 2]


def test_the_same_drawings_give_the_same_bytes(tmp_path: Path) -> None:
    drawings = many_drawings()
    first = write(tmp_path / "a.zip", drawings).read_bytes()
    assert write(tmp_path / "b.zip", drawings).read_bytes() == first
    other = [*drawings[:-1], ("a", "cat 257", black(0, 0, 30), BLACK)]
    assert write(tmp_path / "c.zip", other).read_bytes() != first


def test_a_zip_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    out = write(tmp_path / "icons.zip", many_drawings()[:3])
    before = out.read_bytes()
    monkeypatch.setattr(icon_file, "sheet", lambda tiles: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(out, many_drawings())
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_usefulness_counts_common_words_and_sets() -> None:
    captions = [("a", "Fruit"), ("a", "red face"), ("a", "zorb"), ("b", "zorb"), ("b", "blik")]
    icons = [Icon(prefix, "icon", caption, "") for prefix, caption in captions]
    ranks = icon_file.usefulness(range(5), icons, NAMES)
    assert list(ranks.values()) == [0, 1, 2, 2, 3]


def test_the_page_of_credits_names_author_address_and_licence() -> None:
    known = {"name": "Set", "author": "A", "url": "https://a.org", "licence": "MIT"}
    found = [known | {"licence_url": None, "pictures": 1200}]
    row = "| [Set](https://a.org) | A | MIT | 1,200 |"
    assert icon_file.credits_page(found).splitlines()[-1] == row


# Drawing ------------------------------------------------------------------------------------------


def test_drawings_that_are_there_are_not_drawn_again(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs the extra `recipes`")
    svg = artwork.square_svg({"width": 24, "height": 24}, {"body": SQUARE})
    icons = [
        Icon("a", "cat", "cat", svg),
        Icon("a", "none", "none", "<svg"),
        Icon("b", "", "", svg),
    ]
    pictures, kinds = icon_drawings.draw_icons(icons, 1, tmp_path)
    assert kinds.tolist() == [BLACK, BLANK, BLACK]
    assert pictures[0][32, 32].tolist() == [0, 0, 0, 255] and not pictures[0][0, 0].any()
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    icon_drawings.draw_icons(icons, 1, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times
    icon_drawings.draw_icons([*icons[:2], Icon("b", "", "", svg + " ")], 1, tmp_path)
    assert len(set(tmp_path.iterdir()) - set(times)) == 2  # b, drawn again


def test_a_missing_npm_and_a_failing_one_take_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(artwork.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"^expected npm on the PATH, got none; install Node.js$"):
        artwork.fetch("@some/package", "1.0.0", tmp_path)
    monkeypatch.setattr(artwork.shutil, "which", lambda name: "/bin/npm")
    failed = subprocess.CompletedProcess([], 1, "", "npm error 404 Not Found\nmore\n")
    monkeypatch.setattr(artwork.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"npm pack @some/package@1.0.0 failed: npm error 404"):
        artwork.fetch("@some/package", "1.0.0", tmp_path)
    assert list(tmp_path.iterdir()) == []


# Credits ------------------------------------------------------------------------------------------


def test_notice_counts_the_credits_that_it_names() -> None:
    page = (ROOT / "licenses" / "icon-credits.md").read_text(encoding="utf-8")
    notice = " ".join(
        (ROOT / "NOTICE").read_text(encoding="utf-8").partition("12. Icons")[2].split()
    )
    sets, drawings = Counter(), Counter()
    for row in page.splitlines()[6:]:
        name, author, licence, count = row.strip("| ").split(" | ")
        spdx = licence.strip("[").partition("]")[0]
        assert name and author != "None" and spdx in icon_captions.LICENCES
        sets[spdx] += 1
        drawings[spdx] += int(count.replace(",", ""))
    assert sum(sets.values()) == 172 and sum(drawings.values()) == 131_066
    for spdx, count in sets.items():
        told = spdx.replace("CC-BY-", "CC BY ")
        assert f"{told} {count} and {drawings[spdx]:,}" in notice, spdx
