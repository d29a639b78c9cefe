"""index, search and similar at the command line, with the embedded model."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxclip import cli
from jaxclip.cli import search_folder
from jaxclip.data.folders import INDEX
from jaxclip.search import index
from tests.support.command import EXAMPLES, fails


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in EXAMPLES:
        shutil.copy(path, folder)
    return folder


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    assert cli.main([str(x) for x in arguments]) == 0
    return tuple(capsys.readouterr())


def records(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    return [json.loads(line) for line in output(capsys, *arguments, "--json")[0].splitlines()]


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_search_finds_the_picture_that_the_words_name(
    photos: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    found = records(capsys, "search", photos, name.replace("-", " "), "--top", 2)
    assert found[0]["picture"] == str(photos / f"{name}.png") and len(found) == 2
    assert found[0]["score"] > found[1]["score"]


def test_search_agrees_with_classify(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The logit of a label is its cosine, scaled."""
    found = records(capsys, "search", photos, "rocket")
    classified = records(capsys, "classify", photos, "--labels", "rocket", "cat")
    logits = {
        x["picture"]: next(y["logit"] for y in x["labels"] if y["label"] == "rocket")
        for x in classified
    }
    scale = logits[found[0]["picture"]] / found[0]["score"]
    for record in found:
        assert logits[record["picture"]] == pytest.approx(scale * record["score"], abs=0.1)


def test_like_and_minus_turn_the_query(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    like = records(capsys, "search", photos, "--like", photos / "bicycle.png")
    assert like[0]["picture"].endswith("bicycle.png")
    assert like[0]["score"] == pytest.approx(1, abs=1e-3)
    outside = shutil.copy(photos / "rocket.png", photos.parent / "outside.png")
    (photos / "rocket.png").unlink()
    records(capsys, "search", photos, "--like", outside)
    last = records(capsys, "search", photos, "bicycle", "--minus", "cat face")[-1]
    assert last["picture"].endswith("cat-face.png")


def test_an_unchanged_folder_loads_no_model(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "4 pictures, 4 new" in output(capsys, "index", photos)[0]
    monkeypatch.setattr(search_folder, "load_model", None)
    assert output(capsys, "index", photos)[0] == f"{photos / INDEX}: 4 pictures\n"


def test_the_page_is_self_contained_and_every_text_is_escaped(
    photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (photos / "rocket.png").rename(photos / "<script>alert(1)<\n'&\".png")
    page = tmp_path / "page.html"
    output(capsys, "search", photos, "<b>rocket</b>", "--html", page)
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 4
    assert "<script" not in text and "<b>" not in text and "&lt;b&gt;rocket" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "is there already" in fails(capsys, 2, "search", str(photos), "a", "--html", str(page))


def test_names_cannot_steer_the_terminal(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "rocket.png").rename(photos / "a\x1b[31m\nb.png")
    (photos / os.fsdecode(b"broken\xff.png")).write_bytes(b"x")
    out, err = output(capsys, "similar", photos, "--threshold", "-1")
    assert "\x1b[31m" not in out + err and "a\\x1b[31m\\nb.png" in out
    assert "left out" in err and "broken\\xff.png" in err.replace("\\udcff", "\\xff")


def test_broken_files_are_counted_and_do_not_fail(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"text")
    out, err = output(capsys, "index", photos)
    assert "4 pictures, 4 new, 1 left out" in out and "left out: " in err and "broken.png" in err
    (found,) = records(capsys, "index", photos)
    assert found["left_out"] == 1 and str(photos / "broken.png") in found["broken"]


def test_a_folder_of_broken_files_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(AssertionError):  # it names the file on a line of its own, too
        fails(capsys, 1, "index", str(tmp_path))
    assert cli.main(["index", str(tmp_path)]) == 1
    assert "none of the 1 pictures could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "{}"], "words or --like PICTURE, got neither"),
        (["search", "{}", " "], "got an empty text"),
        (["search", "{}/none", "a"], "expected a folder of pictures"),
        (["search", "{}", "a", "--top", "0"], "--top: expected a whole number"),
        (["search", "{}", "a"], "holds no picture"),
        (["similar", "{}", "--threshold", "2"], "--threshold: expected a cosine"),
    ],
)
def test_usage_errors_take_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert says in fails(capsys, 2, *(x.format(tmp_path) for x in arguments))


def test_a_read_only_folder_says_to_give_an_index(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        if self == photos / INDEX:
            raise OSError(errno.EROFS, "Read-only file system")
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = fails(capsys, 1, "search", str(photos), "rocket")
    assert "Read-only file system" in said and "--index FOLDER" in said
    elsewhere = photos.parent / "elsewhere"
    assert records(capsys, "search", photos, "rocket", "--index", elsewhere)
    shutil.copytree(elsewhere, photos / INDEX)  # made where it could be written
    out, err = output(capsys, "search", photos, "rocket", "--json")
    assert out and "searching what is indexed already" in err


def test_a_search_beside_a_writer_reads_what_is_done(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output(capsys, "index", photos)
    with index.writing(photos / INDEX):
        out, err = output(capsys, "search", photos, "rocket", "--json")
    assert len(out.splitlines()) == 4 and "another process writes this index" in err


def test_a_damaged_block_is_never_searched(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output(capsys, "index", photos)
    (store,) = (photos / INDEX).glob("*.f16")
    right = store.read_bytes()
    store.write_bytes(bytes([right[0] ^ 1]) + right[1:])
    said = fails(capsys, 1, "search", str(photos), "rocket", "--no-update")
    assert "1 damaged blocks of 1; run jaxclip index" in said
    output(capsys, "search", photos, "rocket")
    output(capsys, "search", photos, "rocket", "--no-update")


def test_export_is_what_clip_retrieval_reads(
    photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    output(capsys, "index", photos, "--export", tmp_path / "out")
    vectors = np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy")
    table = parquet.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").to_pydict()
    assert vectors.dtype == np.float16 and len(vectors) == 4
    assert table["image_path"] == sorted(str(photos / path.name) for path in EXAMPLES)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-3)


def test_export_without_pyarrow_names_the_extra(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["index", str(photos), "--export", str(photos.parent / "out")]) == 1
    assert "expected the package pyarrow, got none; pip install" in capsys.readouterr().err


def test_the_index_equals_embed(
    photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output(capsys, "embed", photos, "--out", tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as kept:
        embeds = dict(zip(kept["files"].tolist(), kept["embeds"], strict=True))
    found = records(capsys, "search", photos, "--like", photos / "rocket.png")
    for record in found:
        cosine = embeds[record["picture"]] @ embeds[str(photos / "rocket.png")]
        assert record["score"] == pytest.approx(float(cosine), abs=2e-3)


@pytest.mark.parametrize("command", ["index", "search", "similar"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.count(f"  jaxclip {command} PHOTOS") >= 2
