"""An experiment's flags: what is understood, and one line about what is not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from tyro.conf import Positional

from jaxclip.cli.usage import Natural, Positive, Share, parse

HEADER = "What it is.\n\nCommand:   python -m it\nResult:    a number\n"


@dataclass(frozen=True)
class Flags:
    folders: Positional[tuple[Path, ...]]
    out: Path
    batch: Positive = 8
    limit: Natural = 0
    share: Share = 0.5
    towers: tuple[Literal["vit", "resnet"], ...] = ("vit", "resnet")
    epochs: float | None = None
    force: bool = False


def test_flags_are_filled() -> None:
    given = "a b --out c --batch 3 --share 0.25 --towers vit --epochs 1.5 --force"
    assert parse(Flags, given.split(), "it", HEADER) == Flags(
        (Path("a"), Path("b")), Path("c"), 3, 0, 0.25, ("vit",), 1.5, True
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a --out c --batch 0", "--batch: expected a whole number from 1 to 1048576, got '0'"),
        ("a --out c --limit 1.5", "--limit: expected a whole number from 0 to"),
        ("a --out c --share 1", "--share: expected a number between 0 and 1, got '1'"),
        ("a --out c --towers vit mlp", "--towers: expected one of resnet, vit, got 'mlp'"),
        ("a --out c --towers", "towers: expected a value, got none"),
        ("--out c", "folders: expected a value, got none"),
        ("a --out c --bad 3", "expected a flag that is known, got --bad; see it --help"),
        ("a --out c --epochs many", "--epochs: expected a number, got 'many'"),
        ("a", "--out PATH"),
        ("a --out c --bogus", "--bogus"),
    ],
)
def test_a_usage_error_takes_one_line_and_exits_2(
    given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Flags, given.split(), "it", HEADER)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("it: ") and err.count("\n") == 1 and message in err


def test_help_begins_with_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Flags, ["--help"], "it", HEADER)
    out = capsys.readouterr().out
    assert stop.value.code == 0 and out.startswith(HEADER) and "--epochs" in out
