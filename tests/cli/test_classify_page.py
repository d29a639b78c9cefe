"""classify --html: one self-contained page, with every text escaped."""

import re
import shutil
from pathlib import Path

import pytest

from jaxclip import cli
from jaxclip.evaluation.classified import ClassifiedPicture, LabelScore
from jaxclip.search.classified_page import classified_page
from tests.support.command import EXAMPLES, LABELS, fails

EVIL = "<img src=x onerror=alert(1)>"


def test_a_page_fetches_nothing_and_shows_markup_as_text(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES[0], tmp_path / f"{EVIL}.png")
    scores = (LabelScore(EVIL, 0.75, 0.31, 31), LabelScore("cat", 0.25, 0.2, 20))
    rows = [
        ClassifiedPicture(str(tmp_path / f"{EVIL}.png"), scores, False),
        ClassifiedPicture(str(tmp_path / "gone.png"), (), True),
    ]
    page = classified_page(EVIL, rows)
    assert EVIL not in page and page.count("&lt;img") == 4  # title, heading, name, label
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "75.0 %" in page and "cosine 0.310" in page and "width:25.0%" in page
    assert page.count("no label fits") == 1 and "cannot be read any more" in page
    assert "together 100 %" in page and "on its own" in classified_page("", rows, alone=True)


def test_classify_writes_a_page_in_place_of_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    given = ["classify", *map(str, EXAMPLES), "--labels", *LABELS, "--html", str(page)]
    assert cli.main(given) == 0
    told = capsys.readouterr()
    assert told.out == "" and f"wrote {page}" in told.err
    text = page.read_text()
    assert text.count("<section>") == len(EXAMPLES)
    first = [re.findall(r"<td>([^<]*)</td>", x)[0] for x in text.split("<section>")[1:]]
    assert first == [path.stem.replace("-", " ") for path in EXAMPLES]
    assert "add --force or another --html" in fails(capsys, 2, *given)
    assert cli.main([*given, "--force"]) == 0
