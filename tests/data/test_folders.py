"""Which files a folder means: one rule for train, evaluate, classify and embed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from jaxclip import cli
from jaxclip.data import pairs
from jaxclip.data.folders import find_pictures
from jaxclip.data.labelled import open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.images.open import SUFFIXES
from tests.support.pictures import png


def write(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content or png())
    return path


def names(found: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


def test_pictures_are_found_by_their_endings_in_any_case(tmp_path):
    for ending in SUFFIXES:
        write(tmp_path / f"lower{ending}")
        write(tmp_path / f"upper{ending.upper()}")
    assert len(find_pictures(tmp_path).pictures) == 2 * len(SUFFIXES)
    assert {".avif", ".jp2", ".ppm", ".ico", ".tif", ".heic"} <= set(SUFFIXES)


def test_what_is_no_picture_is_counted_by_its_ending_in_one_line(tmp_path, caplog):
    for name in ("a.png", "b.xyz", "c.XYZ", "none", "dir/d.png"):
        write(tmp_path / name)
    found = find_pictures(tmp_path)
    found.log_left_out()
    assert names(found.pictures, tmp_path) == ["a.png", "dir/d.png"]
    (line,) = caplog.messages
    assert line.endswith("left out 3 files that are no pictures: .xyz 2, no ending 1")


def test_hidden_names_are_left_out_and_never_a_class(tmp_path, caplog):
    for name in ("cat/1.png", "cat/._1.png", ".ipynb_checkpoints/2.png", "__MACOSX/cat/._1.png"):
        write(tmp_path / name)
    write(tmp_path / "cat/.ipynb_checkpoints/1-checkpoint.png")
    write(tmp_path / "cat/Thumbs.db", "thumbs")
    assert parse_spec(str(tmp_path)).kind == "classes"
    source = open_labelled(parse_spec(str(tmp_path)))
    assert source.names == ("cat",) and len(source) == 1
    assert len(pairs.caption_class_folders(tmp_path)) == 1
    assert ".db 1; also hidden 4" in caplog.messages[0]


def test_links_to_files_and_folders_count_in_every_command(tmp_path):
    """One picture of its own, six behind links: 7 everywhere (train had 1, embed 1)."""
    for i in range(5):
        write(tmp_path / "elsewhere" / f"{i}.png")
    write(tmp_path / "root/cat/0.png")
    (tmp_path / "root/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/cat/link.png").symlink_to(tmp_path / "elsewhere/0.png")
    root = tmp_path / "root"
    assert len(find_pictures(root).pictures) == len(pairs.caption_class_folders(root)) == 7
    source = open_labelled(parse_spec(str(root)))
    assert [source[i].label for i in range(7)] == [0, 0, 1, 1, 1, 1, 1]
    assert source.names == ("cat", "dog")


def test_links_in_a_circle_end_and_no_folder_counts_twice(tmp_path, caplog):
    for name in ("cat/1.png", "dog/2.png"):
        write(tmp_path / name)
    (tmp_path / "cat/back").symlink_to(tmp_path)
    (tmp_path / "cat/other").symlink_to(tmp_path / "dog")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "around.png").symlink_to(tmp_path / "around.png")
    source = open_labelled(parse_spec(str(tmp_path)))
    assert source.names == ("cat", "dog")
    assert [Path(source[i].where).name for i in range(2)] == ["1.png", "2.png"]
    assert (
        "link to a folder that counts already 3" in caplog.text and "broken link 1" in caplog.text
    )


def test_many_links_between_folders_take_bounded_time(tmp_path):
    for i in range(12):
        write(tmp_path / str(i) / "a.png")
        for j in range(12):
            (tmp_path / str(i) / f"to{j}").symlink_to(tmp_path / str(j))
    assert len(find_pictures(tmp_path).pictures) == 12


def test_a_named_pipe_among_pictures_is_counted_and_never_waited_for(tmp_path, caplog):
    write(tmp_path / "a.png")
    write(tmp_path / "a.txt", "a cat")
    write(tmp_path / "b.png")
    for name in ("p.png", "b.txt"):
        os.mkfifo(tmp_path / name)
    source = pairs.read_caption_folder(tmp_path)
    assert len(source) == 1 and source[0].captions == ("a cat",)
    assert "named pipe 2" in caplog.text
    assert "1 of 2 pictures have no caption file beside them" in caplog.text


def test_a_pipe_a_device_and_a_folder_are_refused_as_a_table_or_shard(tmp_path):
    for name in ("t.csv", "s.tar"):
        os.mkfifo(tmp_path / name)
        for text in (str(tmp_path / name), f"table:{tmp_path / name}", f"tar:{tmp_path / name}"):
            with pytest.raises(ValueError, match="got a named pipe"):
                parse_spec(text)
    (tmp_path / "d.tar").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="got a device"):
        parse_spec(str(tmp_path / "d.tar"))
    (tmp_path / "f.csv").mkdir()
    with pytest.raises(ValueError, match="got a directory"):
        pairs.read_caption_table(tmp_path / "f.csv")
    with pytest.raises(ValueError, match="got a named pipe"):
        pairs.TarShards([tmp_path / "s.tar"])


def test_a_picture_that_is_a_pipe_or_a_folder_is_a_broken_one(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    (tmp_path / "t.csv").write_text("image,caption\np.png,a pipe\n.,a folder\n/dev/zero,a device\n")
    source = pairs.read_caption_table(tmp_path / "t.csv")
    details = [source[i].fault.detail for i in range(3)]
    assert all(source[i].fault.kind == "broken picture" for i in range(3))
    assert [detail.split("got ")[1] for detail in details] == [
        "a named pipe",
        "a directory",
        "a device",
    ]


def test_captions_pair_by_name_whatever_the_case_of_the_endings(tmp_path):
    for name in ("A.JPG", "a.b.jpg", "c.png", "d.jpg", "d.png"):
        write(tmp_path / name)
    for name in ("A.TXT", "a.b.txt", "c.txt", "d.txt"):
        write(tmp_path / name, name)
    write(tmp_path / "c.TXT", "the other one")
    assert parse_spec(str(tmp_path)).kind == "captions"
    source = pairs.read_caption_folder(tmp_path)
    found = {Path(source[i].where).name: source[i].captions for i in range(len(source))}
    assert found == {
        "A.JPG": ("A.TXT",),
        "a.b.jpg": ("a.b.txt",),
        "c.png": ("c.txt",),
        "d.jpg": ("d.txt",),
        "d.png": ("d.txt",),
    }


@pytest.mark.parametrize("root", [".", "./in/..", "in/../"])
def test_a_folder_is_the_same_by_any_name(tmp_path, monkeypatch, root):
    write(tmp_path / "in/a.jpg")
    write(tmp_path / "in/a.txt", "a cat")
    monkeypatch.chdir(tmp_path)
    assert parse_spec(root).kind == "captions" and pairs.read_caption_folder(Path(root))[
        0
    ].captions == ("a cat",)
    assert open_labelled(parse_spec(f"classes:{root}")).names == ("in",)


@pytest.mark.parametrize("name", ["LICENSE.txt", "README.txt", "cat/notes.txt"])
def test_a_text_beside_class_folders_makes_no_captions_of_them(tmp_path, name, caplog):
    for picture in ("cat/1.png", "dog/2.png"):
        write(tmp_path / picture)
    write(tmp_path / name, "words")
    assert parse_spec(str(tmp_path)).kind == "classes"
    assert len(pairs.caption_class_folders(tmp_path)) == 2
    assert "left out 1 file that is no picture: .txt 1" in caplog.text


def test_pictures_beside_class_folders_are_counted(tmp_path, caplog):
    for name in ("cat/1.png", "stray.png", "stray2.png"):
        write(tmp_path / name)
    assert len(open_labelled(parse_spec(str(tmp_path)))) == 1
    assert "pictures beside the class folders 2" in caplog.text


def test_endings_of_tables_and_shards_count_in_any_case(tmp_path):
    write(tmp_path / "T.CSV", "image,caption\n1.png,one\n")
    assert parse_spec(str(tmp_path / "T.CSV")).kind == "table"
    write(tmp_path / "S/0.TAR", bytes(1024))
    write(tmp_path / "S/._0.tar", b"hidden")
    assert parse_spec(str(tmp_path / "S")).paths == (tmp_path / "S/0.TAR",)
    assert parse_spec(str(tmp_path / "S/0.TAR")).kind == "tar"


def test_pictures_without_captions_are_told_at_once(tmp_path, caplog):
    for i in range(25):
        write(tmp_path / f"{i}.png")
    message = "25 of 25 pictures have no caption file beside them: expected x.txt beside x.jpg"
    with pytest.raises(ValueError, match=message):
        pairs.read_caption_folder(tmp_path)
    write(tmp_path / "7.txt", "seven")
    assert len(pairs.read_caption_folder(tmp_path)) == 1
    assert "24 of 25 pictures have no caption file" in caplog.text


def test_embed_and_classify_walk_as_train_does(tmp_path, capsys):
    for name in ("a.PNG", "in/b.png", "none", "x.xyz", ".ipynb_checkpoints/a.png"):
        write(tmp_path / "pictures" / name)
    write(tmp_path / "linked/c.png")
    (tmp_path / "pictures/link").symlink_to(tmp_path / "linked")
    told = "left out 2 files that are no pictures: no ending 1, .xyz 1; also hidden 1"
    out = tmp_path / "e.npz"
    assert cli.main(["embed", str(tmp_path / "pictures"), "--out", str(out)]) == 0
    err = capsys.readouterr().err
    assert err.count("left out") == 1 and "no ending 1" in err and "hidden 1" in err
    with np.load(out) as arrays:
        files = [Path(name).name for name in arrays["files"]]
    assert files == ["a.PNG", "b.png", "c.png"]
    command = ["classify", str(tmp_path / "pictures"), "--labels", "cat", "dog", "--json"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    found = [json.loads(line)["picture"] for line in captured.out.splitlines()]
    assert [Path(name).name for name in found] == files
    assert sorted(told.split(": ")[1].split("; ")[0].split(", ")) == [".xyz 1", "no ending 1"]
    assert "2 files that are no pictures" in captured.err
    write(tmp_path / "bare/none")
    assert cli.main(["classify", str(tmp_path / "bare"), "--labels", "cat", "dog"]) == 2
    assert "holds no picture" in capsys.readouterr().err


def test_names_that_are_no_text_do_no_harm(tmp_path, caplog):
    root = os.fsencode(tmp_path)
    for name in (b"\xff.png", b"a.\xff\xfe", b"b.\x1b[31m"):
        with open(os.path.join(root, name), "wb") as file:
            file.write(png())
    found = find_pictures(tmp_path)
    found.log_left_out()
    assert len(found.pictures) == 1
    assert "\x1b" not in caplog.text and caplog.text.isascii()


def test_no_tree_of_files_and_links_ends_in_anything_but_an_answer(tmp_path):
    rng = random.Random(0)
    parts = ["a", "b", ".h", "x.png", "y.txt", "z.tar", "__MACOSX", "é", "CLASS"]
    for case in range(30):
        root = tmp_path / str(case)
        root.mkdir()
        made = [root]
        for _ in range(rng.randrange(25)):
            path = rng.choice(made) / rng.choice(parts)
            if path.exists() or path.is_symlink() or not path.parent.is_dir():
                continue
            way = rng.randrange(4)
            if way == 0:
                path.mkdir()
            elif way == 1:
                path.symlink_to(rng.choice(made))
            elif way == 2:
                os.mkfifo(path)
            else:
                path.write_bytes(rng.randbytes(20))
            made.append(path)
        for read in (
            lambda p: pairs.open_pairs(parse_spec(p)),
            lambda p: open_labelled(parse_spec(p)),
        ):
            try:
                source = read(str(root))
                assert all(source[i] for i in range(len(source)))
            except ValueError as error:
                assert "\n" not in str(error)


def test_pictures_beside_empty_folders_only_have_no_captions(tmp_path):
    for name in ("1.png", "2.png"):
        write(tmp_path / name, png(1))
    (tmp_path / "thumbs").mkdir()
    with pytest.raises(ValueError, match="2 of 2 pictures have no caption file beside them"):
        pairs.open_pairs(parse_spec(str(tmp_path)))
