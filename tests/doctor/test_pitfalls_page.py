"""docs/pitfalls.md and the detector's table are one."""

import re
from pathlib import Path

import pytest

from jaxclip.config import RELEASED
from jaxclip.doctor.faults import BY_NAME, FAULTS, pitfall_of
from jaxclip.doctor.knobs import right_walk
from jaxclip.doctor.page import render, section
from jaxclip.doctor.variants import single_variants

PAGE = Path(__file__).parents[2] / "docs" / "pitfalls.md"


def test_page_is_what_the_table_writes() -> None:
    assert PAGE.read_text() == render()


def test_page_with_another_sentence_is_noticed() -> None:
    assert PAGE.read_text().replace("decoder", "encoder") != render()


def test_page_has_one_section_a_fault_in_four_parts() -> None:
    titles = re.findall(r"^### (\S+)$", PAGE.read_text(), re.M)
    assert sorted(titles) == sorted(BY_NAME) and len(BY_NAME) == len(FAULTS) >= 60
    for pitfall in FAULTS:
        assert section(pitfall).count("\n- **") == 4
        assert all((pitfall.sees, pitfall.why, pitfall.fix, pitfall.test)), pitfall.name


@pytest.mark.parametrize("model", ["ViT-B/32", "RN50"])
def test_every_variant_of_a_model_has_a_row(model: str) -> None:
    config = RELEASED[model]
    stages = ("pixels", "tokens", "image", "text", "logits")
    for variant in single_variants(config, right_walk(config), stages):
        (fault,) = variant.faults
        assert pitfall_of(fault.name) in FAULTS
        assert "{" not in fault.sentence and not fault.sentence.endswith(".")


@pytest.mark.parametrize("name", ["qkv-order-vqk", "heads-7"])
def test_members_of_a_family_have_their_family_s_row(name: str) -> None:
    assert pitfall_of(name).name in ("qkv-order-kqv", "heads-of-64")
