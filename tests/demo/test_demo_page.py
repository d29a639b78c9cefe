"""The page in a real Chromium, and what its server gives to others; skipped without gradio."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import EXAMPLES
from tests.support.node import CHROMIUM, needs_chromium, needs_node, run_node

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs gradio: pip install -e '.[demo]'"
)
BROWSE = Path(__file__).with_name("browse.mjs")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a page that is served."""
    folder = tmp_path_factory.mktemp("photos")
    for path in EXAMPLES:
        shutil.copy(path, folder)
    command = [sys.executable, "-m", "jaxclip", "demo", "--folder", str(folder), "--port", "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().split()[0]
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0  # Ctrl-C is how it ends
    finally:
        child.kill()
        child.stdout.close()


def ask(url: str, data: Any = None, **headers: str) -> tuple[int, str]:
    body = None if data is None else json.dumps(data).encode()
    headers |= {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return answer.status, answer.read(100_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")


@needs_node
@needs_chromium
def test_every_tab_answers_and_nothing_leaves_the_machine(address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(EXAMPLES[0].read_bytes()[:200])
    examples = str(EXAMPLES[0].parent)
    got = run_node(BROWSE, str(CHROMIUM), address, examples, str(broken))
    told = got["told"]
    assert told["first"] == "rocket" and told["found"] == "rocket.png"
    assert told["labels"] == "expected labels, one a line, got none; write one"
    assert told["broken"].startswith("'broken.png': expected a picture (PNG, JPEG, ...), got a ")
    assert told["query"] == "expected words or a picture to search for, got neither; give one"
    assert told["maps"] == [300, 300]
    rocket, bicycle = told["cosines"][:4], told["cosines"][4:]
    assert rocket[1] == max(rocket) and bicycle[2] == max(bicycle)
    local = re.compile(re.escape(address) + "/|data:|blob:" + re.escape(address))
    assert [url for url in got["urls"] if not local.match(url)] == []
    assert got["errors"] == [] and got["problems"] == []
    assert "Traceback" not in got["page"] and str(tmp_path) not in got["page"]


def test_no_path_gives_another_file(address: str, tmp_path: Path) -> None:
    """Not by its address, nor as a picture that a client claims to have uploaded."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(EXAMPLES[0].read_bytes())
    assert ask(f"{address}/")[0] == 200
    assert ask(f"{address}/", Host="evil.example")[0] == 403
    assert ask(f"{address}/gradio_api/file={secret}")[0] == 403
    config = json.loads(ask(f"{address}/config")[1])
    classify = next(x["id"] for x in config["dependencies"] if len(x["inputs"]) == 3)
    example = next(
        x["props"]["value"]["path"]
        for x in config["components"]
        if x["type"] == "image" and x["props"].get("value")
    )

    def answer(path: object, session: str) -> str:
        picture = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        joined = {"data": [picture, "cat", "{}"], "fn_index": classify, "session_hash": session}
        assert ask(f"{address}/gradio_api/queue/join", joined)[0] == 200
        return ask(f"{address}/gradio_api/queue/data?session_hash={session}")[1]

    assert "cosine" in answer(example, "uploaded")
    refused = answer(secret, "not-uploaded")
    assert "cosine" not in refused and "Traceback" not in refused
