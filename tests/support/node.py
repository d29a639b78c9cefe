"""Node.js and Chromium for the tests of docs/playground: found, or a reason to skip."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "playground"


@cache
def _why_no_node() -> str | None:
    if shutil.which("node") is None:
        return "needs Node.js 20 or newer on the PATH"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    newer = int(re.sub(r"\D.*", "", version.removeprefix("v")) or 0) >= 20
    return None if newer else f"needs Node.js 20 or newer, got {version.strip()}"


needs_node = pytest.mark.skipif(_why_no_node() is not None, reason=str(_why_no_node()))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium on the PATH (apt-get install chromium)"
)


def run_node(script: Path, *arguments: str, given: Any = None, seconds: float = 300) -> Any:
    """What a script prints, read as JSON; `given` is its standard input, as JSON."""
    command = ["node", str(script), *arguments]
    given = json.dumps(given)
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
