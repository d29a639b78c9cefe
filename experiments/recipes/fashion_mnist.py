"""Fashion-MNIST from its four files to what `--data` reads, without TensorFlow.

Question:  how does a machine with the files, from whatever mirror, get the data set as registered?
Command:   python -m experiments.fashion_mnist FOLDER --data-dir data       then
           --data tfds:fashion_mnist:test --data-dir data                   in every experiment
           python -m experiments.fashion_mnist FOLDER --classes data/fashion       then
           --data data/fashion/test
Result:    70,000 pictures in about half a minute; docs/supervised.md is measured on them.

FOLDER holds train-images-idx3-ubyte.gz and its three siblings (Xiao et al. 2017, arXiv 1708.07747;
MIT licence), in Debian the package dataset-fashion-mnist under /usr/share/datasets/fashion-mnist.
Each file has to have the SHA-256 that tensorflow-datasets registered for it. Debian packed the
files anew with other names and dates in the gzip header; the first header is put back for that.
"""

import dataclasses
import gzip
import hashlib
import io
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track
from tyro.conf import Positional

from experiments.lib import common
from jaxclip.cli.shared import print_line, stderr
from jaxclip.evaluation import prompts
from jaxclip.images.open import decode_image

SIDE = 28  # pixels
SPLITS = {"train": "train", "test": "t10k"}  # split -> how its two files begin
REGISTERED = {  # tensorflow-datasets 4.9.10, url_checksums/fashion_mnist.txt
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
PACKED = {"train": 1504176606, "t10k": 1504176627}  # seconds since 1970, in the first headers
VERSION = "3.0.1"  # of the registered builder, whose place in --data-dir is taken
NAME = "fashion_mnist"
CLASSES = prompts.load(NAME).classes
HEADER, NAMED = 10, 8  # bytes of a bare gzip header; the flag that a name follows it


def first_header(content: bytes, name: str) -> bytes:
    """A gzip file with the header that the authors' file has: date, no speed, Unix, the name."""
    start = HEADER
    if content[3] & NAMED:
        start = content.index(b"\0", HEADER) + 1
    date = PACKED[name.split("-")[0]].to_bytes(4, "little")
    return b"\x1f\x8b\x08\x08" + date + b"\x00\x03" + name.encode() + b"\0" + content[start:]


def verified(folder: Path, name: str, registered: Mapping[str, str] = REGISTERED) -> bytes:
    """What is packed in `name`.gz, once its checksum was found to be the registered one.

    ValueError when the file is not there, is damaged or is another one.
    """
    path = folder / f"{name}.gz"
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected {', '.join(f'{n}.gz' for n in REGISTERED)}"
        )
    content = path.read_bytes()
    try:
        unpacked = gzip.decompress(content)
        candidates = (content, first_header(content, name))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path}: no whole gzip file ({error}); get it again") from None
    sums = [hashlib.sha256(candidate).hexdigest() for candidate in candidates]
    if registered[name] not in sums:
        raise ValueError(
            f"{path}: expected the registered SHA-256 {registered[name]}, got {sums[0]}, and "
            f"{sums[1]} with the first header; get the file again"
        )
    return unpacked


def unpacked_idx(content: bytes, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The bytes of an idx file as uint8 [n, *shape]; ValueError when its header says otherwise.

    Big-endian: two zeros, 8 for uint8, the number of axes, then the length of each axis in 4 bytes.
    """
    axes = 1 + len(shape)
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(
            f"{what}: no idx file of bytes with {axes} axes; it begins {content[:4].hex()}"
        )
    sizes = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if sizes[1:] != shape or len(content) - start != np.prod(sizes, dtype=np.int64):
        raise ValueError(
            f"{what}: expected sizes (n, {shape}) and as many bytes, got {sizes} and "
            f"{len(content) - start} bytes"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def read(
    folder: Path, split: str, registered: Mapping[str, str] = REGISTERED
) -> tuple[np.ndarray, np.ndarray]:
    """(pictures uint8 [n, 28, 28], labels int64 [n] in 0..9) of "train" or "test".

    ValueError when a file is missing, damaged or not the registered one, or a label is no class.
    """
    start = SPLITS[split]
    images, labels = f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"
    pictures = unpacked_idx(verified(folder, images, registered), (SIDE, SIDE), images)
    classes = unpacked_idx(verified(folder, labels, registered), (), labels).astype(np.int64)
    if len(pictures) != len(classes):
        raise ValueError(
            f"{folder}: expected a label for each of {len(pictures)} pictures, got {len(classes)}"
        )
    if classes.size and classes.max() >= len(CLASSES):
        row = int(classes.argmax())
        raise ValueError(
            f"{labels}: label {classes[row]} at row {row}; 0..{len(CLASSES) - 1} expected"
        )
    return pictures, classes


def png(picture: np.ndarray) -> bytes:
    """uint8 [h, w] -> a PNG file of one grey channel."""
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "PNG")
    return packed.getvalue()


Split = tuple[np.ndarray, np.ndarray]


def prepare_tfds(splits: Mapping[str, Split], data_dir: Path) -> Path:
    """Write the data set as array_record files where tfds.builder("fashion_mnist") finds them.

    tensorflow-datasets writes beside and renames at the end. A data set with these very pictures
    stays; ValueError where it holds others. Returns the folder.
    """
    import tensorflow_datasets as tfds

    class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Zalando's article images, as the registered builder has them."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(SIDE, SIDE, 1)),
                "label": tfds.features.ClassLabel(names=list(CLASSES)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                description="Fashion-MNIST (arXiv 1708.07747), prepared without TensorFlow.",
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {name: self._generate_examples(*split) for name, split in splits.items()}

        def _generate_examples(self, pictures: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
            for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
                # PNG bytes, not an array: only those are taken without TensorFlow
                yield i, {"image": io.BytesIO(png(picture)), "label": int(label)}

    builder = FashionMnist(data_dir=data_dir, file_format="array_record")
    there = Path(builder.data_path).exists()
    builder.download_and_prepare()
    for name, split in splits.items() if there else ():
        rows = builder.as_data_source(split=name)
        found = Counter((row["image"].tobytes(), int(row["label"])) for row in rows)
        if found != Counter(zip((x.tobytes() for x in split[0]), map(int, split[1]), strict=True)):
            raise ValueError(
                f"{builder.data_path}: expected no data set or one with these {name} pictures, got "
                "another; delete it or name another --data-dir"
            )
    return Path(builder.data_path)


def folder_name(class_name: str) -> str:
    """A class's name as that of a folder."""
    return class_name.replace("/", "-").replace(" ", "_")


def class_files(labels: np.ndarray) -> list[str]:
    """The file of each picture below the folder of a split."""
    return [f"{folder_name(CLASSES[y])}/{row:05d}.png" for row, y in enumerate(labels)]


def check_classes(split: Split, folder: Path) -> None:
    """ValueError unless a folder holds what `prepare_classes` would write there."""
    expected = dict(zip(class_files(split[1]), split[0], strict=True))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    other = next(iter(sorted(found ^ expected.keys())), None)
    if other is None:
        other = next((x for x in expected if not _is_picture(folder / x, expected[x])), None)
    if other is not None:
        raise ValueError(
            f"{folder}: expected no folder or one with the pictures of these files, got another "
            f"({other} differs); delete it or name another --classes"
        )


def _is_picture(path: Path, picture: np.ndarray) -> bool:
    try:
        return np.array_equal(np.asarray(decode_image(path.read_bytes())), picture)
    except ValueError:
        return False


def prepare_classes(split: Split, folder: Path) -> Path:
    """Write one split as class folders: `Ankle_boot/00017.png`, numbered as in the idx file.

    Under another name until it is whole. A folder with these very pictures stays; ValueError where
    it holds anything else.
    """
    if folder.exists():
        check_classes(split, folder)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name in CLASSES:
            (temporary / folder_name(name)).mkdir()
        for row, file in enumerate(class_files(split[1])):
            (temporary / file).write_bytes(png(split[0][row]))
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclasses.dataclass(frozen=True)
class Flags:
    folder: Positional[Path]
    """where the four .gz files are"""
    data_dir: Path | None = None
    """prepare for tfds:fashion_mnist:SPLIT there"""
    classes: Path | None = None
    """write class folders there: train and test"""


def work(flags: Flags) -> None:
    """Check the files, write what was asked for."""
    splits = {name: read(flags.folder, name) for name in SPLITS}
    for name, (pictures, _) in splits.items():
        print(f"{name}: {len(pictures)} pictures, checksums as registered")
    if flags.data_dir:
        print_line(f"wrote {prepare_tfds(splits, flags.data_dir)}")
    if flags.classes:
        for name, split in track(splits.items(), "class folders", console=stderr):
            print_line(f"wrote {prepare_classes(split, flags.classes / name)}")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return common.run_experiment(work, Flags, given, "fashion_mnist", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
