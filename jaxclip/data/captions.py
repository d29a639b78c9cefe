"""Caption files apart from their pictures: MS-COCO's, Karpathy's splits, Flickr30k's.

captions_val2014.json     COCO's own: `images` (id, file_name) and `annotations` (image_id, caption)
dataset_coco.json, dataset_flickr30k.json
                          Karpathy's: `images` with split, filename, filepath, sentences[].raw
results_20130124.token    Flickr30k's own: "36979.jpg#0<tab>caption" a line
"""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from jaxclip.data.pairs import CaptionedFiles
from jaxclip.data.records import Fault, parse_captions, parse_path
from jaxclip.files import parse_json, read_text, split_lines

KINDS = "COCO's or Karpathy's JSON, or Flickr30k's lines NAME#NUMBER<tab>CAPTION"


class _Found:
    """Captions by the name of their picture, and the records that cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captions: dict[str, list[str]] = {}
        self.bad: list[tuple[str, Fault]] = []

    def add(self, where: str, read: Callable[[Any], tuple[str, list[str]]], record: Any) -> None:
        """Add the (name, captions) of a picture that `read` returns; what it raises is a fault."""
        try:
            name, captions = read(record)
            checked = parse_captions(captions)
            self.captions.setdefault(parse_path(name), []).extend(checked)
        except KeyError as error:
            self._leave_out(where, f"expected a record with {error}, got none in it")
        except (TypeError, AttributeError):
            self._leave_out(where, "expected a record of such a file, got other values")
        except ValueError as error:
            self._leave_out(where, str(error))

    def _leave_out(self, where: str, why: str) -> None:
        self.bad.append((f"{self.path}, {where}", Fault("bad caption", why)))


def read_caption_file(
    path: Path, pictures: Path, split: str = "", only: Path | None = None
) -> CaptionedFiles:
    """The pairs of a caption file, in its order.

    Args:
      path: one of the kinds above; the kind is detected from the content.
      pictures: the folder of the pictures; names in the file are below it.
      split: of Karpathy's files: "train", "restval", "val" or "test"; all of it by default.
      only: a text file with one file name a line: the pictures to keep.

    Raises:
      ValueError: the file is none of these kinds, or nothing of it is left.
    """
    found, text = _Found(path), read_text(path)
    if path.suffix.lower() == ".json":
        _add_json(found, text, split)
    else:
        _add_lines(found, text)
    wanted: Container[str] = found.captions
    if only is not None:
        wanted = {line.strip() for line in split_lines(read_text(only))}
    entries = [(pictures / n, tuple(texts)) for n, texts in found.captions.items() if n in wanted]
    return CaptionedFiles(entries, path, found.bad)


def _add_json(found: _Found, text: str, split: str) -> None:
    try:
        record = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{found.path}: expected a caption file ({KINDS}): {error}") from None
    lists = record if isinstance(record, dict) else {}
    names = ("images", "annotations") if "annotations" in lists else ("images",)
    if not all(isinstance(lists.get(name), list) for name in names):
        raise ValueError(f"{found.path}: expected a caption file ({KINDS}), got other JSON")
    if len(names) == 1:
        _add_karpathy(found, lists["images"], split)
    elif split:
        message = "it has no splits; name the pictures that are wanted in a file"
        raise ValueError(f"{found.path}: {message}")
    else:
        _add_coco(found, lists["images"], lists["annotations"])


def _add_coco(found: _Found, images: list[Any], annotations: list[Any]) -> None:
    names: dict[Any, str] = {}

    def read_image(image: Any) -> tuple[str, list[str]]:
        names[image["id"]] = image["file_name"]
        return image["file_name"], []

    def read_annotation(one: Any) -> tuple[str, list[str]]:
        if one["image_id"] not in names:
            raise ValueError("expected the id of one of the images, got another one")
        return names[one["image_id"]], [one["caption"]]

    for i, image in enumerate(images):
        found.add(f"images[{i}]", read_image, image)
    for i, one in enumerate(annotations):
        found.add(f"annotations[{i}]", read_annotation, one)


def _add_karpathy(found: _Found, images: list[Any], split: str) -> None:
    def read_image(image: Any) -> tuple[str, list[str]]:
        name = str(Path(image.get("filepath", "")) / image["filename"])
        return name, [sentence["raw"] for sentence in image["sentences"]]

    for i, image in enumerate(images):
        if not split or not isinstance(image, dict) or image.get("split") == split:
            found.add(f"images[{i}]", read_image, image)


def _add_lines(found: _Found, text: str) -> None:
    def read_line(line: str) -> tuple[str, list[str]]:
        name, mark, caption = line.partition("\t")
        if not mark or "#" not in name:
            raise ValueError("expected NAME#NUMBER<tab>CAPTION, got another line")
        return name.rpartition("#")[0], [caption]

    for number, line in enumerate(split_lines(text), start=1):
        if line.strip():
            found.add(f"line {number}", read_line, line)
