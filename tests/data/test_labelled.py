"""Labelled pictures: the same from every place, and no label that quietly means another class."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.classes import align_labels
from jaxclip.data.emoji.pictures import load_unseen_artist
from jaxclip.data.labelled import Example, LabelledFiles, open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.evaluation import prompts
from tests.support.pictures import grey_png as png
from tests.support.planted import shard

NAMES = ("dog", "owl", "tabby_cat")
LABELS = [2, 0, 1, 2, 2, 0]


def write_places(root: Path) -> dict[str, str]:
    """{kind: what --data says} of the same six pictures, kept in different ways."""
    for name in NAMES:
        (root / "folder" / name).mkdir(parents=True)
    members: dict[str, dict[str, bytes]] = {"cls": {}, "json": {}, "txt": {}, "named": {}}
    lines, records = ["image,label"], []
    for i, label in enumerate(LABELS):
        name = NAMES[label]
        path = f"folder/{name}/{i}.png"
        (root / path).write_bytes(png(i))
        lines.append(f"{path},{name}")
        records.append(json.dumps({"image": path, "label": label}))
        for kind in members:
            members[kind][f"{i}.png"] = png(i)
        members["cls"][f"{i}.cls"] = str(label).encode()
        members["named"][f"{i}.cls"] = name.encode()
        members["json"][f"{i}.json"] = json.dumps({"label": name, "caption": "a b"}).encode()
        members["txt"][f"{i}.txt"] = name.encode() + b"\n"
    (root / "names.csv").write_text("\n".join(lines) + "\n")
    (root / "numbers.jsonl").write_text("\n".join(records) + "\n")
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    said = {"folder": f"{root}/folder", "names": f"{root}/names.csv"}
    said["numbers"] = f"{root}/numbers.jsonl"
    for kind, content in members.items():
        (root / kind).mkdir()
        if kind == "cls":  # in two shards, with the names one folder up
            for part in range(2):
                half = {n: c for n, c in content.items() if int(n[0]) // 3 == part}
                shard(root / kind / f"{part}.tar", half)
            said[kind] = f"{root}/{kind}/*.tar"
        else:
            said[kind] = str(shard(root / kind / "0.tar", content))
    return said


KINDS = ("folder", "names", "numbers", "cls", "json", "txt", "named")


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_gives_the_same_pictures_with_the_same_classes(tmp_path, kind):
    source = open_labelled(parse_spec(write_places(tmp_path)[kind]))
    assert source.names == NAMES and len(source) == 6
    examples = [source[i] for i in range(6)]
    assert {(e.image, e.label) for e in examples} == {(png(i), LABELS[i]) for i in range(6)}
    assert len({e.where for e in examples}) == 6


BUILDER = """
import io
import numpy as np
import tensorflow_datasets as tfds
from tests.data.test_labelled import LABELS, NAMES, png

class Six(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)),
                    "number": tfds.features.Scalar(dtype=np.int32),
                    "label": tfds.features.ClassLabel(names=list(NAMES))}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))
    def _split_generators(self, manager):
        return {"test": self._generate_examples()}
    def _generate_examples(self):
        for i, label in enumerate(LABELS):
            yield i, {"image": io.BytesIO(png(i)), "number": i, "label": label}
"""
READER = """
import sys
from pathlib import Path
from jaxclip.data.classes import align_labels
from jaxclip.data.labelled import open_labelled
from jaxclip.data.spec import parse_spec
from made import Six
from tests.data.test_labelled import NAMES, write_places

folder = Path(sys.argv[1])
Six(data_dir=folder, file_format="array_record").download_and_prepare()
found = open_labelled(parse_spec("tfds:six:test"), folder)
assert found.names == NAMES and "row 0" in found[0].where, found[0].where
seen = {(e.image, e.label) for e in (found[i] for i in range(len(found)))}
other = align_labels(found, ["owl", "Tabby cat", "DOG"])
to = {0: 2, 1: 0, 2: 1}
assert all(other[i].label == to[found[i].label] for i in range(6))
for kind, said in write_places(folder / "places").items():
    source = open_labelled(parse_spec(said))
    assert {(e.image, e.label) for e in (source[i] for i in range(6))} == seen, kind
for text, label, says in (("tfds:six:train", "label", "train"),
                          ("tfds:sixty:test", "label", "sixty"),
                          ("tfds:six:test", "number", "expected a class label"),
                          ("tfds:six:test", "breed", "features 'image', 'breed'")):
    try:
        open_labelled(parse_spec(text), folder, label=label)
    except ValueError as error:
        assert says in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError(text)
assert "tensorflow" not in sys.modules
print("same")
"""


def test_a_tfds_name_gives_the_same_as_a_folder_a_table_and_tar_shards(tmp_path):
    """In a process of its own, which shows at its end that TensorFlow was not imported."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "__init__.py").write_text(BUILDER)  # tfds wants a folder of its own
    (tmp_path / "reader.py").write_text(READER)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-W", "ignore", str(tmp_path / "reader.py"), str(tmp_path)]
    environment = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "same"


def test_an_empty_folder_is_a_class_and_a_picture_that_is_gone_has_no_bytes(tmp_path):
    for name in ("a", "b", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "1.png").write_bytes(png(1))
    source = open_labelled(parse_spec(f"classes:{tmp_path}"))
    assert source.names == ("a", "b") and source[0].label == 1
    (tmp_path / "b" / "1.png").unlink()
    assert source[0].image == b""


def test_members_without_a_class_have_no_label(tmp_path):
    path = shard(tmp_path / "0.tar", {"1.png": png(1), "2.png": png(2), "2.cls": b"owl"})
    source = open_labelled(parse_spec(str(path)))
    assert source.names == ("owl",) and [source[0].label, source[1].label] == [-1, 0]


def test_names_that_the_list_beside_does_not_have_get_no_label(tmp_path):
    said = write_places(tmp_path)
    (tmp_path / "classnames.txt").write_text("dog\nowl\n")
    source = open_labelled(parse_spec(said["names"]))
    assert source.names == ("dog", "owl")
    assert Counter(source[i].label for i in range(6)) == {-1: 3, 0: 2, 1: 1}


def test_pictures_without_classes_are_refused(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    with pytest.raises(ValueError, match="pictures without classes"):
        open_labelled(parse_spec(str(tmp_path)))
    (tmp_path / "t.csv").write_text("image,caption\n1.png,one\n")
    with pytest.raises(ValueError, match="line 1: expected the fields 'image', 'label'"):
        open_labelled(parse_spec(str(tmp_path / "t.csv")))
    (tmp_path / "t.csv").write_text("image,label\n")
    with pytest.raises(ValueError, match="no pictures"):
        open_labelled(parse_spec(str(tmp_path / "t.csv")))


def test_the_embedded_pictures_are_a_source_too():
    pictures = load_unseen_artist()
    source = open_labelled(parse_spec("emoji:test"))
    assert len(source) == len(pictures.names) == 1556
    example = source[7]
    assert source.names[example.label] == pictures.names[7]
    with Image.open(io.BytesIO(example.image)) as picture:
        assert np.array_equal(np.asarray(picture), pictures.images[7])


# Into a list of classes ---------------------------------------------------------------------------


def source(*names: str, labels: tuple[int, ...] = (0, 1, 2)) -> LabelledFiles:
    return LabelledFiles([(Path("x.png"), label) for label in labels], names)


def places(found) -> list[int]:
    return [found[i].label for i in range(len(found))]


def test_names_are_found_whatever_their_case_and_their_dashes():
    names = ("dog", "T-shirt/top", "tabby cat", "owl")
    found = align_labels(source("Tabby_Cat", "dog", "T-shirt-top"), [*names])
    assert places(found) == [2, 0, 1] and found.names == names


def test_imagenet_folders_map_to_the_released_order():
    known = prompts.load("imagenet")
    found = align_labels(
        source("n01440764", "n15075141", "n02123045"), known.classes, known.folders
    )
    assert [found.names[i] for i in places(found)] == ["tench", "toilet paper", "tabby cat"]
    assert places(found) == [0, 999, 281]


def test_numbered_folders_are_numbers_and_not_sorted_texts():
    """ImageNet-V2: sorted as texts, folder 10 comes before folder 2."""
    names = tuple(sorted(map(str, range(1000))))
    known = prompts.load("imagenetv2")
    found = align_labels(source(*names, labels=tuple(range(1000))), known.classes, known.folders)
    assert places(found) == [int(name) for name in names] and places(found)[1:3] == [1, 10]


def test_bare_numbers_are_places_in_the_list_and_others_no_label():
    found = align_labels(source(labels=(2, 0, 5, -1, 3)), ["a", "b", "c"])
    assert places(found) == [2, 0, -1, -1, -1]
    with pytest.raises(ValueError, match="nothing names them"):
        align_labels(source())


def test_without_a_list_the_classes_are_the_sources_own():
    found = align_labels(source("tabby_cat", "dog", "owl"))
    assert found.names == ("tabby cat", "dog", "owl") and places(found) == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "classes", "says"),
    [
        (("a", "b", "x"), ["a", "b", "c"], "got 'x': 1 of the data's 3 classes"),
        (("0", "1", "3"), ["a", "b", "c"], "'0', '1', '3'"),
        (("missile", "b", "c"), ["missile", "b", "c", "missile"], "a name twice"),
        (("n01440764", "dog", "1"), ["dog", "tench", "owl"], "2 of the data's 3"),
    ],
)
def test_a_class_list_that_does_not_match_is_refused(names, classes, says):
    with pytest.raises(ValueError, match=says):
        align_labels(source(*names), classes)


def test_an_example_is_what_the_source_said_but_for_its_label():
    found = align_labels(source("b", "a", "c"), ["a", "b", "c"])
    assert found[0] == Example(b"", 1, "x.png")


@pytest.mark.parametrize("other", ["Red", "RED", "red_", "red "])
def test_two_classes_of_one_text_are_refused(tmp_path: Path, other: str) -> None:
    for name in ("red", other, "blue"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=f"'red' and '{other}'|'{other}' and 'red'"):
        align_labels(open_labelled(parse_spec(str(tmp_path))))
