"""Class names and prompt templates, as data files: jaxclip/data_files/prompts/*.json.

Each file is one JSON object: `classes` (names in the released order; none where the data have their
own), `templates` with one slot {} each, `metric` (the published one: "top1" or
"mean_per_class"), `origin` and `licence`; perhaps `folders` (other names of the classes, such as
wordnet ids) and `template_sets` ({name: templates}). A file of your own has the same keys.

Annotated: chapter 11, "Zero-shot and prompts".
"""

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxclip.files import distinct_lines, parse_json, read_text

METRICS = ("top1", "mean_per_class")
ALIASES = {"imagenetv2": "imagenet"}  # the same classes and templates under another name


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The classes and templates of one data set."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    metric: str
    folders: tuple[str, ...] = ()


def available() -> list[str]:
    """The names that `load` takes, besides the path of a file."""
    folder = files("jaxclip") / "data_files" / "prompts"
    names = [entry.name.removesuffix(".json") for entry in folder.iterdir()]
    return sorted([*names, *ALIASES])


def load(name_or_path: str, template_set: str = "") -> Prompts:
    """The classes and templates of a data set by name, or of a .json file.

    Args:
      name_or_path: one of `available()`, or a file.
      template_set: the name of other templates that the file has ("seven" and "one" of ImageNet).

    Raises:
      ValueError: there is no such file or it does not hold what it should.

    >>> len(load("imagenet").classes), len(load("imagenet").templates)
    (1000, 80)
    """
    if name_or_path in available():
        file = (
            files("jaxclip")
            / "data_files"
            / "prompts"
            / f"{ALIASES.get(name_or_path, name_or_path)}.json"
        )
        text = file.read_text(encoding="utf-8")
    elif Path(name_or_path).exists():
        text = read_text(name_or_path)
    else:
        raise ValueError(
            f"dataset: expected a file or one of {', '.join(available())}, got {name_or_path!r}"
        )
    try:
        return _read(parse_json(text), template_set)
    except KeyError as error:
        raise ValueError(f"classes and prompts of {name_or_path}: it has no {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"classes and prompts of {name_or_path}: {error}") from None


def _is_text(value: Any) -> bool:
    """Whether it is a text of more than space, and of whole characters."""
    half = isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value)
    return isinstance(value, str) and bool(value.strip()) and not half


def _read(record: Any, template_set: str) -> Prompts:
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object with classes and templates, got another value")
    sets = record.get("template_sets", {})
    if not isinstance(sets, dict):
        raise ValueError("expected template_sets as a JSON object, got another value")
    if template_set and template_set not in sets:
        raise ValueError(
            f"template set: expected one of {', '.join(sets) or 'none'}, got {template_set!r}"
        )
    templates = sets[template_set] if template_set else record["templates"]
    metric = record.get("metric", "top1")
    classes, folders = record.get("classes", []), record.get("folders", [])
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    for name, value in (("classes", classes), ("templates", templates), ("folders", folders)):
        if not isinstance(value, list) or not all(map(_is_text, value)):
            raise ValueError(f"{name}: expected a list of texts, got another value")
    if folders and len(folders) != len(classes):
        raise ValueError(f"folders: expected {len(classes)}, one a class, got {len(folders)}")
    return Prompts(tuple(classes), require_slots(templates), metric, tuple(folders))


def require_slots(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, each with exactly one slot {} for the class; ValueError for any other."""
    if not templates:
        raise ValueError("templates: expected at least one with a slot {}, got none")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(
                f"prompt: expected exactly one slot {{}} for the label, got {template!r}"
            )
    return tuple(templates)


def read_templates(given: Sequence[str]) -> tuple[str, ...]:
    """The templates that people name, each once, in order.

    Args:
      given: templates with a slot {}, names of data sets whose released templates to take, .json
        files as `load` reads them, and text files with one template a line.

    Raises:
      ValueError: a text is none of these, or a template has no slot.

    >>> read_templates(["{}", "fashion_mnist"])
    ('{}', 'a photo of a {}.')
    """
    found: list[str] = []
    for text in given:
        if "{" in text:
            found.append(text)
        elif text in available() or text.lower().endswith(".json"):
            found += load(text).templates
        elif Path(text).is_file():
            found += distinct_lines(text)
        else:
            raise ValueError(
                "prompts: expected a template with one slot {}, a text file of templates or one of "
                f"{', '.join(available())}, got {text!r}"
            )
    return require_slots(list(dict.fromkeys(found)))
