"""Fashion-MNIST from its four files: checked, prepared, and the same wherever it is read from."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from experiments.recipes import fashion_mnist
from jaxclip.data.classes import align_labels
from jaxclip.data.labelled import open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.images.open import decode_image
from tests.support import idx


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fashion_mnist, "REGISTERED", idx.write(tmp_path / "files"))
    return tmp_path / "files"


def read(folder: Path, split: str = "train"):
    return fashion_mnist.read(folder, split, fashion_mnist.REGISTERED)


def test_the_files_are_read_as_they_were_packed(folder):
    for split, (start, count) in zip(("train", "test"), idx.COUNTS.items(), strict=True):
        images, labels = read(folder, split)
        expected = idx.pictures(count, list(idx.COUNTS).index(start))
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])


def test_the_first_header_is_put_back_whatever_stands_there(folder):
    name = "t10k-labels-idx1-ubyte"
    path = folder / f"{name}.gz"
    once = fashion_mnist.first_header(path.read_bytes(), name)
    assert gzip.decompress(once) == gzip.decompress(path.read_bytes())
    assert fashion_mnist.first_header(once, name) == once  # with a name, as the authors have it
    path.write_bytes(once)
    assert len(read(folder, "test")[1]) == 30


def test_another_file_is_refused(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    images, _ = idx.pictures(60, 5)
    path.write_bytes(gzip.compress(idx.packed(images)))
    with pytest.raises(ValueError, match=r"train-images.*registered SHA-256"):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"no gzip at all, but long enough"])
def test_a_damaged_file_is_refused(folder, content):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-labels.*no whole gzip file"):
        read(folder)


def test_a_file_cut_short_is_refused(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole gzip file"):
        read(folder)


def test_a_missing_file_is_told(folder):
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"t10k-images.*no such file"):
        read(folder, "test")


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (idx.packed(np.zeros((3, 28, 27), np.uint8)), (28, 28)),  # another size
        (idx.packed(np.zeros((3, 28, 28), np.uint8))[:-1], (28, 28)),  # a byte short
        (idx.packed(np.zeros(3, np.uint8)), (28, 28)),  # labels for pictures
        (b"\0\0\x0d\x01\0\0\0\x03\0\0\0", ()),  # floats
        (b"\0\0", ()),
    ],
)
def test_what_is_no_such_idx_file_is_refused(content, shape):
    with pytest.raises(ValueError, match="thing: "):
        fashion_mnist.unpacked_idx(content, shape, "thing")


def test_a_label_that_is_no_class_is_refused(tmp_path):
    labels = idx.pictures(60, 0)[1].copy()
    labels[7] = 10
    registered = idx.write(tmp_path, labels=labels)
    with pytest.raises(ValueError, match="label 10 at row 7"):
        fashion_mnist.read(tmp_path, "train", registered)


def test_labels_that_are_too_few_are_refused(tmp_path):
    registered = idx.write(tmp_path, labels=idx.pictures(60, 0)[1][:-1])
    with pytest.raises(ValueError, match="a label for each of 60 pictures, got 59"):
        fashion_mnist.read(tmp_path, "train", registered)


def everything(source) -> dict[bytes, int]:
    """{pixels: label} of a source."""
    examples = [source[i] for i in range(len(source))]
    return {decode_image(x.image).convert("L").tobytes(): x.label for x in examples}


def test_tfds_and_class_folders_hold_the_same_pictures(folder, tmp_path):
    splits = {name: read(folder, name) for name in fashion_mnist.SPLITS}
    fashion_mnist.prepare_tfds(splits, tmp_path / "tfds")
    for name, split in splits.items():
        below = fashion_mnist.prepare_classes(split, tmp_path / "classes" / name)
        expected = {x.tobytes(): int(y) for x, y in zip(*split, strict=True)}
        found = open_labelled(parse_spec(f"tfds:fashion_mnist:{name}"), tmp_path / "tfds")
        assert everything(align_labels(found, fashion_mnist.CLASSES)) == expected
        readable = [name.replace("/", "-") for name in fashion_mnist.CLASSES]
        folders = align_labels(open_labelled(parse_spec(str(below))), readable)
        assert everything(folders) == expected
    fashion_mnist.prepare_tfds(splits, tmp_path / "tfds")  # stays
    pictures, labels = splits["test"]
    with pytest.raises(ValueError, match="these test pictures"):
        fashion_mnist.prepare_tfds(
            splits | {"test": (pictures, np.roll(labels, 1))}, tmp_path / "tfds"
        )


def test_a_class_folder_appears_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    made = fashion_mnist.png
    calls = iter(range(20))

    def failing(picture):
        if next(calls) == 15:
            raise OSError("no space left")
        return made(picture)

    monkeypatch.setattr(fashion_mnist, "png", failing)
    with pytest.raises(OSError, match="no space"):
        fashion_mnist.prepare_classes(read(folder), tmp_path / "out" / "train")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(fashion_mnist, "png", made)
    whole = fashion_mnist.prepare_classes(read(folder), tmp_path / "out" / "train")
    assert len(list(whole.rglob("*.png"))) == 60


def test_a_class_folder_of_other_pictures_is_refused(folder, tmp_path):
    """Another label, another picture, one too few, one too many; its own stays as it is."""
    pictures, labels = read(folder)
    made = fashion_mnist.prepare_classes((pictures, labels), tmp_path / "train")
    files = sorted(made.rglob("*.png"))
    before = files[0].stat().st_mtime_ns
    assert fashion_mnist.prepare_classes((pictures, labels), tmp_path / "train") == made
    assert files[0].stat().st_mtime_ns == before
    for other in ((pictures, np.roll(labels, 1)), (255 - pictures, labels)):
        with pytest.raises(ValueError, match="differs"):
            fashion_mnist.prepare_classes(other, tmp_path / "train")
    for change in (lambda: (made / "Bag" / "x.png").touch(), files[3].unlink):
        change()
        with pytest.raises(ValueError, match="differs"):
            fashion_mnist.prepare_classes((pictures, labels), tmp_path / "train")


def test_the_command_says_one_line_and_fails(tmp_path, capsys):
    assert fashion_mnist.main([str(tmp_path)]) == 1
    told = capsys.readouterr().err.strip()
    assert "no such file" in told and "\n" not in told
    with pytest.raises(SystemExit) as stopped:
        fashion_mnist.main([])
    assert stopped.value.code == 2


def test_the_command_prepares_class_folders(folder, tmp_path, capsys, monkeypatch):
    registered = fashion_mnist.REGISTERED
    read_with = fashion_mnist.read
    monkeypatch.setattr(fashion_mnist, "read", lambda a, b: read_with(a, b, registered))
    assert fashion_mnist.main([str(folder), "--classes", str(tmp_path / "out")]) == 0
    assert "train: 60 pictures" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "test").rglob("*.png"))) == 30
