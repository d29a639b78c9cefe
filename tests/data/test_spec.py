"""Dataset specs: the text of a `--data` flag, and the kind of data it stands for."""

import pytest

from jaxclip.data.spec import DataSpec, parse_spec


@pytest.mark.parametrize(
    ("text", "name", "split"),
    [
        ("tfds:oxford_iiit_pet:test", "oxford_iiit_pet", "test"),
        ("tfds:coco_captions/2014:val", "coco_captions/2014", "val"),
        ("tfds:mnist:3.0.1:test[:100]", "mnist:3.0.1", "test[:100]"),
    ],
)
def test_a_registered_name_and_its_split(text, name, split):
    assert parse_spec(text) == DataSpec("tfds", name=name, split=split)


def test_the_kind_of_a_path_is_detected(tmp_path):
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "captions" / "deep").mkdir(parents=True)
    (tmp_path / "captions" / "deep" / "a.txt").write_text("a cat")
    (tmp_path / "shards").mkdir()
    shards = [tmp_path / "shards" / f"{i}.tar" for i in range(2)]
    for file in (*shards, tmp_path / "pairs.csv"):
        file.touch()
    for name in ("classes", "captions"):
        assert parse_spec(str(tmp_path / name)) == DataSpec(name, (tmp_path / name,))
    assert parse_spec(str(tmp_path / "pairs.csv")) == DataSpec("table", (tmp_path / "pairs.csv",))
    assert parse_spec(str(tmp_path / "shards")) == DataSpec("tar", tuple(shards))
    assert parse_spec(str(tmp_path / "shards" / "*.tar")) == DataSpec("tar", tuple(shards))
    assert parse_spec(str(shards[1])) == DataSpec("tar", (shards[1],))
    # a prefix wins over what is detected
    assert parse_spec(f"captions:{tmp_path / 'classes'}").kind == "captions"
    assert parse_spec(f"tar:{tmp_path / 'shards'}").paths == tuple(shards)


@pytest.mark.parametrize(
    "text",
    ["tfds:mnist", "tfds::test", "nowhere", "nowhere.csv", "x/*.tar", "classes:no", "table:no.csv"],
)
def test_what_is_not_there_is_refused_with_what_was_expected(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"expected.*got"):
        parse_spec(text)
