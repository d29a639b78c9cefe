"""The command line in this process, and the examples it is shown."""

from pathlib import Path

import pytest

from jaxclip import cli

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
LABELS = ["cat face", "rocket", "hot beverage", "bicycle"]


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line on stderr of a command that fails; its exit code is checked."""
    try:
        got = cli.main(arguments)
    except SystemExit as stop:
        got = stop.code
    out, err = capsys.readouterr()
    assert got == code, err
    assert out == ""
    assert err.startswith("jaxclip: ") and err.count("\n") == 1 and "Traceback" not in err
    return err
