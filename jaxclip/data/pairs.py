"""Sources of pictures with captions: tables, folders, tar shards, tensorflow-datasets, memory.

A source is a sequence: `len(source)`, `source[i] -> Pair`, from any thread. It reads names and
captions when it is created and a picture's bytes on access; nothing is decoded here.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from jaxclip.data.emoji.pictures import EmojiPictures, load_emoji, load_unseen_artist
from jaxclip.data.folders import find_pictures
from jaxclip.data.records import (
    MOST_TEXT_BYTES,
    Fault,
    parse_captions,
    parse_path,
    read_picture,
)
from jaxclip.data.shards import Members, Read, Shards, picture_of
from jaxclip.data.spec import DataSpec
from jaxclip.data.tables import table_rows
from jaxclip.files import decode_text, parse_json, read_text, split_lines

logger = logging.getLogger(__name__)
TEMPLATE = "a photo of a {}."  # for class names (section 3.1.4)
BAD_CAPTION, BAD_ROW = "bad caption", "bad row"  # kinds of faults


@dataclasses.dataclass(frozen=True)
class Pair:
    """An encoded picture, all its captions, and where it was read from, for messages.

    fault: why it cannot be used, whatever its picture holds; None if it can be.
    """

    image: bytes
    captions: tuple[str, ...]
    where: str
    fault: Fault | None = dataclasses.field(default=None, compare=False)


class Source(Protocol):
    """A sequence of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Pair: ...


class ListedSource(Source, Protocol):
    """A source that can be compared with one that was there before."""

    def listing(self) -> Iterator[str]:
        """What names the pairs in their order, with captions where they are known already."""


class CaptionedFiles:
    """Pictures with captions, each picture a file of its own.

    Args:
      entries: (picture, its captions).
      origin: the folder or file that lists them, for messages.
      bad: (where, fault) of records that are counted and left out.
    """

    def __init__(
        self,
        entries: Iterable[tuple[Path, tuple[str, ...]]],
        origin: Path,
        bad: Sequence[tuple[str, Fault]] = (),
    ) -> None:
        self.entries, self.bad, self.origin = list(entries), list(bad), origin
        if not self.entries:
            raise ValueError(describe_empty(origin, "no pictures with captions in it", self.bad))

    def __len__(self) -> int:
        return len(self.entries) + len(self.bad)

    def __getitem__(self, i: int) -> Pair:
        if i >= len(self.entries):
            where, fault = self.bad[i - len(self.entries)]
            return Pair(b"", (), where, fault)
        path, captions = self.entries[i]
        content, fault_of_picture = read_picture(path)
        return Pair(content, captions, str(path), fault_of_picture)

    def listing(self) -> Iterator[str]:
        for path, captions in self.entries:
            yield str(path).removeprefix(str(self.origin))
            yield from captions
        yield from (where for where, _ in self.bad)


def describe_empty(origin: Path, what: str, bad: Sequence[tuple[str, Fault]]) -> str:
    """The message for a source without usable records: `what`, or its first bad record."""
    if not bad:
        return f"{origin}: {what}"
    where, fault = bad[0]
    return f"{origin}: none of its {len(bad)} records can be used; {where}: {fault.detail}"


def read_caption_folder(root: Path) -> CaptionedFiles:
    """Pictures with a text file beside each: x.jpg and x.txt, one caption a line.

    EmojiPictures without one are left out, which is logged once.

    Raises:
      ValueError: there are no pictures, or none of them has a text file.
    """
    found = find_pictures(root)
    captioned = [(file, text) for file in found.pictures if (text := found.text_of(file))]
    found.log_left_out(len({text for _, text in captioned}))
    total = len(found.pictures)
    bare = f"{total - len(captioned)} of {total} pictures have no caption file beside them"
    if total > len(captioned):
        bare += ": expected x.txt beside x.jpg"
        if not captioned:
            raise ValueError(f"{root}: {bare}")
        logger.warning("%s: left out: %s", root, bare)
    entries, bad = [], []
    for file, text in captioned:
        try:
            captions = parse_captions(split_lines(read_text(text, MOST_TEXT_BYTES)))
            entries.append((file, captions))
        except ValueError as error:
            bad.append((str(text), Fault(BAD_CAPTION, str(error).removeprefix(f"{text}: "))))
    return CaptionedFiles(entries, root, bad)


def caption_class_folders(root: Path, templates: Sequence[str] = (TEMPLATE,)) -> CaptionedFiles:
    """Pictures in class folders, such as `tabby_cat/1.jpg`, with captions from the templates."""
    entries = []
    for file, name in find_class_pictures(root)[0]:
        words = name.replace("_", " ")
        entries.append((file, tuple(template.format(words) for template in templates)))
    return CaptionedFiles(entries, root)


def find_class_pictures(root: Path) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
    """((picture, its class), all classes) of class folders; an empty folder is a class too."""
    found = find_pictures(root)
    pairs = [(file, name) for file in found.pictures if (name := found.class_of(file))]
    if len(pairs) < len(found.pictures):
        found.others["pictures beside the class folders"] += len(found.pictures) - len(pairs)
    found.log_left_out()
    return pairs, tuple(found.folders)


def read_caption_table(
    path: Path, image: str = "image", caption: str = "caption"
) -> CaptionedFiles:
    """Pictures of a .csv (with a header), .tsv or .jsonl: a path and a caption a line.

    Paths start at the table's folder. In JSON lines the caption may be a list of several. Lines of
    one picture are joined.
    """
    found: dict[Path, list[str]] = {}
    bad: list[tuple[str, Fault]] = []
    for number, row in table_rows(path, (image, caption)):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            picture, captions = path.parent / parse_path(row[image]), parse_captions(row[caption])
        except ValueError as error:
            bad.append((f"{path}, line {number}", Fault(BAD_ROW, str(error))))
            continue
        found.setdefault(picture, []).extend(captions)
    return CaptionedFiles(((picture, tuple(texts)) for picture, texts in found.items()), path, bad)


# Tar shards ---------------------------------------------------------------------------------------


class TarShards(Shards):
    """Tar shards whose captions are in `.txt`, or in the field `caption` of `.json`."""

    def __getitem__(self, i: int) -> Pair:
        entry = self.entry(i)
        if entry.fault is not None:
            return Pair(b"", (), entry.where, entry.fault)
        with self.open_example(i) as (members, read, where):
            kind, image, captions = "broken picture", b"", tuple[str, ...]()
            try:
                image = read(picture_of(members))
                kind = BAD_CAPTION
                captions = _captions(members, read)
            except ValueError as error:
                return Pair(image, captions, where, Fault(kind, str(error)))
            return Pair(image, captions, where)


def _captions(members: Members, read: Read) -> tuple[str, ...]:
    """The captions of an example; ValueError where they are no captions."""
    if "txt" in members:
        return parse_captions(split_lines(decode_text(read("txt"), ".txt")))
    if "json" in members:
        record = parse_json(decode_text(read("json"), ".json"))
        if not isinstance(record, dict):
            raise ValueError(".json: expected an object, got another value")
        value = record.get("caption")
        return () if value is None else parse_captions(value)
    return ()


# tensorflow-datasets ------------------------------------------------------------------------------


class TfdsPairs:
    """Pairs of a prepared dataset of tensorflow-datasets, read without TensorFlow.

    Args:
      name: as `tfds.data_source` takes it.
      split: such as "train" or "train[:1000]".
      data_dir: where it was prepared, as array_record files.
      image: the feature with the picture.
      caption: the feature with a caption or several, or with a class label, whose name is used; by
        default "caption", or "label" where there is no such feature.
      template: for class names.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: Path | None = None,
        *,
        image: str = "image",
        caption: str | None = None,
        template: str = TEMPLATE,
    ) -> None:
        import tensorflow_datasets as tfds  # the extra `tfds`

        builder = tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
        if caption is None:
            caption = "caption" if "caption" in features else "label"
        if image not in features or caption not in features:
            known = ", ".join(features)
            raise ValueError(f"{name}: expected the features {image!r}, {caption!r}, got {known}")
        decoders = {image: tfds.decode.SkipDecoding()}
        self.rows = builder.as_data_source(split=split, decoders=decoders)
        self.names: list[str] | None = getattr(features[caption], "names", None)
        self.image, self.caption, self.template = image, caption, template
        self.origin, self.version = f"{name}, {split}", str(builder.info.full_name)

    def __len__(self) -> int:
        return len(self.rows)

    def listing(self) -> Iterator[str]:
        yield from (self.version, self.origin)

    def __getitem__(self, i: int) -> Pair:
        row = self.rows[i]
        value = row[self.caption]
        where = f"{self.origin}, row {i}"
        if self.names is not None:
            captions = (self.template.format(self.names[int(value)].replace("_", " ")),)
            return Pair(bytes(row[self.image]), captions, where)
        values = [value] if isinstance(value, bytes | str) else list(value)
        try:
            texts = [decode_text(v, "caption") if isinstance(v, bytes) else v for v in values]
            return Pair(bytes(row[self.image]), parse_captions(texts), where)
        except ValueError as error:
            return Pair(b"", (), where, Fault(BAD_CAPTION, str(error)))


# In memory ----------------------------------------------------------------------------------------


class DrawingPairs:
    """Named pictures in memory; the caption of each is its name."""

    def __init__(self, pictures: EmojiPictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures.names)

    def __getitem__(self, i: int) -> Pair:
        file = io.BytesIO()
        Image.fromarray(self.pictures.images[i]).save(file, "png", compress_level=0)
        return Pair(file.getvalue(), (self.pictures.names[i],), self.pictures.files[i])

    def listing(self) -> Iterator[str]:
        return self.pictures.listing()


def open_drawings(split: str) -> DrawingPairs:
    """The embedded pictures of a split; of "test" those that `jaxclip evaluate` uses."""
    return DrawingPairs(load_unseen_artist() if split == "test" else load_emoji(split))


# By spec ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tfds_errors_as_value_errors(spec: DataSpec) -> Iterator[None]:
    """Raise one ValueError for whatever tensorflow-datasets raises when it opens a dataset."""
    try:
        yield
    except ImportError:
        raise ValueError(f"{spec.name} needs pip install 'jaxclip[tfds]'") from None
    except (RuntimeError, KeyError, AssertionError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise  # one of ours; theirs list every dataset that exists
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"tfds:{spec.name}:{spec.split} cannot be read: {cause}; it has to be prepared, as "
            "array_record files, in --data-dir"
        ) from None


def open_pairs(spec: DataSpec, data_dir: Path | None = None) -> ListedSource:
    """The pairs of a dataset; class names become captions by the template TEMPLATE.

    Raises:
      ValueError: it holds no pictures with captions, or is of another kind than its spec says.
    """
    if spec.kind == "tfds":
        with tfds_errors_as_value_errors(spec):
            return TfdsPairs(spec.name, spec.split, data_dir)
    if spec.kind == "tar":
        return TarShards(spec.paths)
    if spec.kind == "emoji":
        return open_drawings(spec.split)
    readers: dict[str, Callable[[Path], ListedSource]] = {
        "classes": caption_class_folders,
        "captions": read_caption_folder,
        "table": read_caption_table,
    }
    return readers[spec.kind](spec.paths[0])
