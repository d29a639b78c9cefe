"""docs/migrating.md stays true: every name in its table is what the converters call it."""

import re
from pathlib import Path

import pytest

import jaxclip
from jaxclip.config import RELEASED
from jaxclip.convert.layouts import huggingface, openai
from jaxclip.shapes import parameters

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
TABLE = PAGE.split("## Names of parameters")[1]
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("| `")
]
OURS = parameters(RELEASED["ViT-B/32"]) | parameters(RELEASED["RN50"])


def test_there_are_rows() -> None:
    assert len(ROWS) >= 20 and {len(row) for row in ROWS} == {3}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][0])
def test_a_name_of_the_table_is_the_converters_own(row: list[list[str]]) -> None:
    (ours,), (official,), others = row
    path = ours.replace(".N.", ".0.")
    assert path in OURS
    assert openai.names(path) == (official.replace(".N.", ".0."),)
    if others:
        assert huggingface.names(path) == tuple(name.replace(".N.", ".0.") for name in others)
    else:
        with pytest.raises(ValueError, match="this layout has"):
            huggingface.names(path)


def test_every_name_of_jaxclip_in_the_table_of_calls_is_there() -> None:
    calls = PAGE.split("## Calls")[1].split("##")[0]
    names = set(re.findall(r"jaxclip\.(\w+)\(", calls))
    assert names >= {"available_models", "load", "tokenize"}
    assert all(hasattr(jaxclip, name) for name in names)
