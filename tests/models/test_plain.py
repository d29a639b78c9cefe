"""`jaxclip/models/` names no chip, no compiler and no trick for one, and is short."""

from __future__ import annotations

import re
from pathlib import Path

import jaxclip

FILES = sorted((Path(jaxclip.__file__).parent / "models").glob("*.py"))
# `padding=` of a convolution may be written, the padding of kernels may not
WORDS = re.compile(
    r"\b(cpu|gpu|tpu|xla|caches?)\b|padded|\bPADDING\b|winograd|barrier|preferred_element_type",
    re.IGNORECASE,
)
CONVOLUTIONS = re.compile(r"padding=")


def named(source: str) -> list[str]:
    """The words in it that belong into `hardware/`."""
    return [match[0] for match in WORDS.finditer(CONVOLUTIONS.sub("", source))]


def test_no_model_names_a_chip():
    assert {"clip.py", "layers.py", "resnet.py"} <= {file.name for file in FILES}
    assert {file.name: words for file in FILES if (words := named(file.read_text()))} == {}


def test_a_chip_would_be_noticed():
    assert named("# XLA on a CPU, its cache") == ["XLA", "CPU", "cache"]
    assert named("from jaxclip.models.layers import PADDING, Padded") == ["PADDING", "Padded"]
    assert named("padding=((1, 1), (1, 1))") == []


def test_the_architecture_is_short():
    """What stands beside clip/model.py: no moving of trees to files, no checks of arguments."""
    beside = [file for file in FILES if file.name not in ("parameters.py", "inputs.py")]
    lines = {file.name: len(file.read_text().splitlines()) for file in beside}
    assert sum(lines.values()) < 1100, lines
