"""Retrieval and CelebA from the command line, on caption layouts written out here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import celeba_identity, retrieval
from jaxclip.data.captions import read_caption_file
from jaxclip.evaluation import results, retrieval_protocol
from tests.support import planted

# picture -> (its colour, its captions); the planted model finds a caption by its colour's word
PAIRS = {
    "1.png": ("red", ["a red", "the red one"]),
    "2.png": ("green", ["a green", "some blue"]),  # its second caption is found by 3.png
    "3.png": ("blue", ["a yellow"]),  # not found: yellow's picture is 4.png
    "4.png": ("yellow", ["my yellow", "a black"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("planted") / "model.safetensors")


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, (colour, _) in PAIRS.items():
        (folder / name).write_bytes(planted.png(colour))
    return folder


def write_layouts(root: Path) -> dict[str, list[str]]:
    """{kind: flags} of the same pairs in every layout that is known."""
    pictures = write_pictures(root / "val")
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(PAIRS)],
        "annotations": [
            {"image_id": i, "caption": caption}
            for i, (_, captions) in enumerate(PAIRS.values())
            for caption in captions
        ],
    }
    karpathy = {
        "images": [
            {
                "filename": name,
                "filepath": "val",
                "split": "test",
                "sentences": [{"raw": caption} for caption in captions],
            }
            for name, (_, captions) in PAIRS.items()
        ]
    }
    other = {"filename": "9.png", "filepath": "val", "split": "train", "sentences": [{"raw": "x"}]}
    karpathy["images"].append(other)
    token = [
        f"{name}#{k}\t{caption}"
        for name, (_, captions) in PAIRS.items()
        for k, caption in enumerate(captions)
    ]
    (root / "coco.json").write_text(json.dumps(coco))
    (root / "karpathy.json").write_text(json.dumps(karpathy))
    (root / "results.token").write_text("\n".join(token) + "\n")
    folder = write_pictures(root / "beside")
    for name, (_, captions) in PAIRS.items():
        (folder / name).with_suffix(".txt").write_text("\n".join(captions))
    lines = [
        json.dumps({"image": f"val/{name}", "caption": captions})
        for name, (_, captions) in PAIRS.items()
    ]
    (root / "t.jsonl").write_text("\n".join(lines))
    (root / "shards").mkdir()
    members = {}
    for name, (colour, captions) in PAIRS.items():
        members[name] = planted.png(colour)
        members[name.replace("png", "txt")] = "\n".join(captions).encode()
    planted.shard(root / "shards" / "0.tar", members)
    return {
        "coco": ["--data", str(pictures), "--captions", str(root / "coco.json")],
        "karpathy": ["--data", str(root), "--captions", f"{root}/karpathy.json", "--split", "test"],
        "flickr": ["--data", str(pictures), "--captions", str(root / "results.token")],
        "folder": ["--data", str(folder)],
        "table": ["--data", str(root / "t.jsonl")],
        "tar": ["--data", str(root / "shards")],
    }


@pytest.mark.parametrize("kind", ["coco", "karpathy", "flickr", "folder", "table", "tar"])
def test_every_layout_gives_the_planted_recall(model, tmp_path, kind):
    """To text: 1 and 2; 4 ties with a caption of 3. To picture: two red ones, green, yellow."""
    given = [*write_layouts(tmp_path)[kind], "--model", str(model), "--out", str(tmp_path / "out")]
    assert retrieval.main([*given, "--batch-size", "3"]) == 0
    result, predictions = results.load(tmp_path / "out")
    assert predictions is None and (result["n"], result["captions"]) == (4, 7)
    assert result["metrics"]["image_to_text_r1"] == 2 / 4
    assert result["metrics"]["text_to_image_r1"] == 4 / 7
    assert result["metrics"]["text_to_image_r5"] == result["metrics"]["image_to_text_r10"] == 1
    low, high = result["intervals"]["text_to_image_r1"]
    assert low < 4 / 7 < high


def test_pairs_that_cannot_be_used_are_counted_with_their_captions(model, tmp_path):
    flags = write_layouts(tmp_path)["folder"]
    (tmp_path / "beside" / "2.png").write_bytes(b"no picture")
    (tmp_path / "beside" / "3.txt").write_text(" \n\n")
    given = [*flags, "--model", str(model), "--out", str(tmp_path / "out")]
    assert retrieval.main(given) == 0
    result = results.load(tmp_path / "out")[0]
    assert result["skipped"] == {"broken picture": 1, "no caption": 1}
    assert (result["n"], result["captions"]) == (2, 4)


def test_a_run_that_was_interrupted_goes_on_to_the_same_result(model, tmp_path, monkeypatch):
    """Stopped after three blocks of one picture, the first of them broken; the fourth is asked."""
    flags = [*write_layouts(tmp_path)["folder"], "--model", str(model), "--batch-size", "1"]
    (tmp_path / "beside" / "1.png").write_bytes(b"no picture")
    assert retrieval.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    asked: list[int] = []
    honest = retrieval_protocol.describe_block

    def counting(block):
        asked.append(len(block.items))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return honest(block)

    monkeypatch.setattr(retrieval_protocol, "describe_block", counting)
    given = [*flags, "--out", str(tmp_path / "halves")]
    assert retrieval.main(given) == 1
    assert retrieval.main([*given, "--prompt", "a {}"]) == 1  # half a run of another question
    assert retrieval.main(given) == 0
    assert asked == [0, 1, 1, 1, 1]
    whole, again = (results.load(tmp_path / name)[0] for name in ("whole", "halves"))
    assert whole["skipped"] == again["skipped"] == {"broken picture": 1}
    assert whole["metrics"] == again["metrics"] and whole["checksums"] == again["checksums"]
    assert not (tmp_path / "halves" / "parts").exists()


def test_a_run_that_had_to_skip_too_much_goes_on_with_a_higher_limit(model, tmp_path):
    flags = [*write_layouts(tmp_path)["folder"], "--model", str(model), "--batch-size", "1"]
    (tmp_path / "beside" / "3.png").write_bytes(b"no picture")
    given = [*flags, "--out", str(tmp_path / "out")]
    assert retrieval.main([*given, "--skip-limit", "0"]) == 1
    assert len(list((tmp_path / "out" / "parts").glob("*.npz"))) == 2
    assert retrieval.main([*given, "--skip-limit", "1"]) == 0
    assert results.load(tmp_path / "out")[0]["skipped"] == {"broken picture": 1}


def test_the_wanted_pictures_alone(model, tmp_path):
    flags = write_layouts(tmp_path)["coco"]
    (tmp_path / "only.txt").write_text("1.png\n4.png\n")
    given = [*flags, "--model", str(model), "--out", str(tmp_path / "out")]
    assert retrieval.main([*given, "--only", str(tmp_path / "only.txt")]) == 0
    result = results.load(tmp_path / "out")[0]
    assert (result["n"], result["captions"]) == (2, 4)
    assert result["metrics"]["image_to_text_r1"] == 1


def test_the_prompt_stands_before_the_caption(model, tmp_path):
    """With a colour in the prompt every caption is mostly of that colour."""
    flags = write_layouts(tmp_path)["coco"]
    given = [*flags, "--model", str(model), "--out", str(tmp_path / "out")]
    assert retrieval.main([*given, "--prompt", "yellow yellow yellow yellow {}"]) == 0
    result = results.load(tmp_path / "out")[0]
    assert result["prompt"] == "yellow yellow yellow yellow {}"
    assert result["metrics"]["text_to_image_r1"] < 4 / 7


def test_mistakes_of_retrieval_take_one_line(model, tmp_path, capsys):
    layouts = write_layouts(tmp_path)
    given = [*layouts["coco"], "--model", str(model), "--out", str(tmp_path / "out")]

    def says(more: list[str]) -> str:
        assert retrieval.main(more) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("retrieval: ")
        return line

    assert "one slot" in says([*given, "--prompt", "a photo"])
    assert "it has no splits" in says([*given, "--split", "test"])
    assert "expected --captions beside --split" in says([*given[:2], *given[4:], "--split", "test"])
    assert "folder of the pictures" in says(["--data", "no", *given[2:]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").touch()
    assert "--force" in says(given)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "expected a caption file"),
        ("[]", "expected a caption file"),
        ("{", "expected a caption file"),
        ('{"images": [{"filename": 1}]}', r"none of its 1 records can be used; .*images\[0\]"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_caption_file_of_another_kind_is_refused(tmp_path, text, says):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_caption_file(tmp_path / "c.json", tmp_path)
    (tmp_path / "c.token").write_text("1.jpg a caption without a mark")
    with pytest.raises(ValueError, match="line 1: expected NAME#NUMBER"):
        read_caption_file(tmp_path / "c.token", tmp_path)


def test_a_bad_record_of_a_caption_file_costs_itself_only(tmp_path):
    coco = {
        "images": [{"id": 1, "file_name": "1.png"}, {"id": 2}, 5],
        "annotations": [
            {"image_id": 1, "caption": "one"},
            {"image_id": 1, "caption": 5},
            {"image_id": 9, "caption": "nine"},
            {"image_id": [1], "caption": "a list"},
            {"caption": "whose?"},
            None,
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    source = read_caption_file(tmp_path / "c.json", tmp_path)
    assert [texts for _, texts in source.entries] == [("one",)]
    assert [where.split(", ")[1] for where, _ in source.bad] == [
        "images[1]",
        "images[2]",
        *(f"annotations[{i}]" for i in range(1, 6)),
    ]
    karpathy = {"images": [{"filename": "1.png", "split": "test", "sentences": [{"raw": "one"}]}]}
    karpathy["images"] += [{"filename": 5, "split": "test", "sentences": []}, [], {"split": "test"}]
    (tmp_path / "k.JSON").write_text(json.dumps(karpathy))
    source = read_caption_file(tmp_path / "k.JSON", tmp_path, "test")
    assert (len(source.entries), len(source.bad)) == (1, 3)
    (tmp_path / "r.token").write_text("1.png#0\ta\u2028b\nno mark\n2.png#1\tc\n")
    source = read_caption_file(tmp_path / "r.token", tmp_path)
    assert [texts for _, texts in source.entries] == [("a\u2028b",), ("c",)]
    assert source.bad[0][0].endswith("line 2")


def test_a_split_that_is_not_there_leaves_nothing(tmp_path):
    write_layouts(tmp_path)
    with pytest.raises(ValueError, match="no pictures with captions"):
        read_caption_file(tmp_path / "karpathy.json", tmp_path, "restval")


# CelebA -------------------------------------------------------------------------------------------

PEOPLE = {"7": "Red", "12": "Green", "3": "Blue", "30": "Black"}  # 5 has no name
PICTURES = [("red", "7"), ("red", "7"), ("green", "7"), ("green", "12"), ("blue", "3")]
PICTURES += [("black", "30"), ("yellow", "30"), ("white", "5")]


def write_celeba(root: Path) -> list[str]:
    (root / "img").mkdir()
    lines, by_picture = [], []
    for i, (colour, who) in enumerate(PICTURES):
        (root / "img" / f"{i:06d}.png").write_bytes(planted.png(colour))
        lines.append(f"{i:06d}.png {who}")
        if who in PEOPLE:
            by_picture.append(f"{i:06d}.png {PEOPLE[who]}")
    (root / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")
    (root / "names.txt").write_text("".join(f"{i} {name}\n" for i, name in PEOPLE.items()))
    header = f"{len(by_picture)}\nimage_id identity_name\n"
    (root / "list.txt").write_text(header + "\n".join(by_picture) + "\n")
    return ["--data", str(root / "img"), "--identities", str(root / "identity_CelebA.txt")]


@pytest.mark.parametrize("names", ["names.txt", "list.txt"])
def test_identities_are_classes_by_name(model, tmp_path, names, capsys):
    """All four people: red 2 of 3, green 1 of 1, blue 1 of 1, black 1 of 2 (yellow is nobody)."""
    given = [*write_celeba(tmp_path), "--names", str(tmp_path / names), "--model", str(model)]
    given += ["--out", str(tmp_path / "out"), "--sizes", "2", "4"]
    assert celeba_identity.main(given) == 0
    result, predictions = results.load(tmp_path / "out" / "4")
    assert result["classes"] == ["Black", "Blue", "Green", "Red"]
    assert (result["n"], result["templates"]) == (7, ["a photo of {}."])
    confusion = predictions["confusion"]
    assert np.array_equal(confusion[1:], [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 2]])
    assert confusion[0].sum() == 2 and confusion[0, 0] >= 1
    two = results.load(tmp_path / "out" / "2")[0]
    assert set(two["classes"]) < set(result["classes"]) and len(two["classes"]) == 2
    assert "Table 1" in capsys.readouterr().out


def test_mistakes_of_celeba_take_one_line(model, tmp_path, capsys):
    given = [*write_celeba(tmp_path), "--names", str(tmp_path / "names.txt"), "--model", str(model)]
    given += ["--out", str(tmp_path / "out")]
    assert celeba_identity.main(given) == 1
    assert "expected 2 to 4 people with a name, got 100" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("99 Nobody\n")
    assert celeba_identity.main([*given, "--sizes", "2"]) == 1
    assert "names nobody" in capsys.readouterr().err


def test_lists_of_people_follow_the_rule_for_text(tmp_path):
    """A mark, and separators within a name: neither loses nor makes a line."""
    (tmp_path / "who.txt").write_bytes("0.png 7\r\n1.JPG 8\r\n2.tif 7\r\n".encode("utf-8-sig"))
    (tmp_path / "names.txt").write_bytes("7 A\u2028Red\n8 Green\x0cOne\n".encode("utf-16"))
    found = celeba_identity.find_people(tmp_path / "who.txt", tmp_path / "names.txt")
    assert found == {"A\u2028Red": ["0.png", "2.tif"], "Green\x0cOne": ["1.JPG"]}
    (tmp_path / "names.txt").write_bytes(b"7 K\xe4te\n")
    with pytest.raises(ValueError, match=r"names\.txt: expected UTF-8"):
        celeba_identity.find_people(tmp_path / "who.txt", tmp_path / "names.txt")
