"""`jaxclip/models/` names no chip, no compiler and no trick for one, and is short."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import jaxclip

FILES = sorted((Path(jaxclip.__file__).parent / "models").glob("*.py"))
WORDS = re.compile(
    r"(?i:\b(cpu|gpu|tpu|xla|caches?)\b|padded|winograd|barrier)|\bPADDING\b|preferred_element_type"
)
MEANT_OTHERWISE = re.compile(r"functools\.cache|padding")  # Python's; a convolution's, a text's


def named(source: str) -> list[str]:
    """The words in it that belong into `hardware/`."""
    return [match[0] for match in WORDS.finditer(MEANT_OTHERWISE.sub("", source))]


def test_no_model_names_a_chip():
    assert {"clip.py", "layers.py", "resnet.py"} <= {file.name for file in FILES}
    assert {file.name: words for file in FILES if (words := named(file.read_text()))} == {}


def test_a_chip_would_be_noticed():
    assert named("# XLA on a CPU, its cache") == ["XLA", "CPU", "cache"]
    assert named("from jaxclip.models.layers import PADDING, Padded") == ["PADDING", "Padded"]
    assert named("padding=((1, 1), (1, 1))") == []


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            text = node.body[0]
            lines -= set(range(text.lineno, (text.end_lineno or 0) + 1))
    return len(lines)


def test_the_models_are_short():
    towers = ("layers.py", "vit.py", "resnet.py", "text.py")
    assert sum(len(f.read_text().splitlines()) for f in FILES if f.name in towers) < 950
    lines = {file.name: code_lines(file.read_text()) for file in FILES}
    assert sum(lines.values()) < 1200, lines


def test_lines_of_code_are_counted():
    assert code_lines('"""Two\nlines."""\n\n# one\nx = (\n    1\n)\n') == 3
