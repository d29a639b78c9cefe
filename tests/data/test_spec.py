"""What a `--data` flag may say, and what it is then taken for."""

import pytest

from jaxclip.data.spec import Place, place


@pytest.mark.parametrize(
    ("text", "name", "split"),
    [
        ("tfds:oxford_iiit_pet:test", "oxford_iiit_pet", "test"),
        ("tfds:coco_captions/2014:val", "coco_captions/2014", "val"),
        ("tfds:mnist:3.0.1:test[:100]", "mnist:3.0.1", "test[:100]"),
    ],
)
def test_a_registered_name_and_its_split(text, name, split):
    assert place(text) == Place("tfds", name=name, split=split)


def test_a_path_is_looked_at(tmp_path):
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "captions" / "deep").mkdir(parents=True)
    (tmp_path / "captions" / "deep" / "a.txt").write_text("a cat")
    (tmp_path / "shards").mkdir()
    shards = [tmp_path / "shards" / f"{i}.tar" for i in range(2)]
    for file in (*shards, tmp_path / "pairs.csv"):
        file.touch()
    for name in ("classes", "captions"):
        assert place(str(tmp_path / name)) == Place(name, (tmp_path / name,))
    assert place(str(tmp_path / "pairs.csv")) == Place("table", (tmp_path / "pairs.csv",))
    assert place(str(tmp_path / "shards")) == Place("tar", tuple(shards))
    assert place(str(tmp_path / "shards" / "*.tar")) == Place("tar", tuple(shards))
    assert place(str(shards[1])) == Place("tar", (shards[1],))
    # and what is said in front counts more than what is seen
    assert place(f"captions:{tmp_path / 'classes'}").kind == "captions"
    assert place(f"tar:{tmp_path / 'shards'}").paths == tuple(shards)


@pytest.mark.parametrize(
    "text",
    ["tfds:mnist", "tfds::test", "nowhere", "nowhere.csv", "x/*.tar", "classes:no", "table:no.csv"],
)
def test_what_is_not_there_is_refused_with_what_was_expected(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"came.*expected"):
        place(text)
