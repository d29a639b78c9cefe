"""Caption files that lie apart from their pictures: MS-COCO's, Karpathy's splits, Flickr30k's.

captions_val2014.json     COCO's own: `images` (id, file_name) and `annotations` (image_id, caption)
dataset_coco.json, dataset_flickr30k.json
                          Karpathy's: `images` with split, filename, filepath, sentences[].raw
results_20130124.token    Flickr30k's own: "36979.jpg#0<tab>caption" a line
"""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from jaxclip.data.pairs import Files

Found = dict[str, list[str]]  # {name of the picture: captions}


def caption_file(path: Path, pictures: Path, split: str = "", only: Path | None = None) -> Files:
    """The pairs of a caption file, in its order.

    Args:
      path: one of the kinds above; which one is seen from what is in it.
      pictures: the folder of the pictures; names in the file are below it.
      split: of Karpathy's files: "train", "restval", "val" or "test"; all of it if not given.
      only: a text file with a picture's file name a line; others are left out.

    Raises:
      ValueError: the file is none of these kinds, or nothing of it is left.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = _from_json(json.loads(text), split) if path.suffix == ".json" else _from_lines(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no caption file that is known here ({error!r})") from None
    wanted: Container[str] = found
    if only is not None:
        wanted = {line.strip() for line in only.read_text(encoding="utf-8").splitlines()}
    entries = [(pictures / n, tuple(texts)) for n, texts in found.items() if n in wanted]
    return Files(entries, path)


def _from_json(record: dict[str, Any], split: str) -> Found:
    if "annotations" in record:
        if split:
            raise ValueError("it has no splits; name the pictures that are wanted in a file")
        names = {image["id"]: image["file_name"] for image in record["images"]}
        found: Found = {name: [] for name in names.values()}
        for annotation in record["annotations"]:
            found[names[annotation["image_id"]]].append(annotation["caption"])
        return found
    return {
        str(Path(image.get("filepath", "")) / image["filename"]): [
            sentence["raw"] for sentence in image["sentences"]
        ]
        for image in record["images"]
        if not split or image["split"] == split
    }


def _from_lines(text: str) -> Found:
    found: Found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, mark, caption = line.partition("\t")
        if not mark or "#" not in name:
            raise ValueError(f"line {number} is not NAME#NUMBER<tab>CAPTION")
        found.setdefault(name.rpartition("#")[0], []).append(caption)
    return found
