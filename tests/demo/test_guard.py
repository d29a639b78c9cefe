"""The guard before the page: who is answered, and which files are served."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jaxclip.demo.guard import HEADERS, Guard
from jaxclip.demo.serve import HOST, open_socket

PORT = 7860
OURS = {"host": f"127.0.0.1:{PORT}"}


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"hello"})


def answer(path: str, headers: dict[str, str], files: Path = Path("/nowhere")) -> tuple[int, Any]:
    """(status, headers) of a request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw}
    asyncio.run(Guard(_hello, PORT, files)(scope, _hello, send))
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", OURS),
        ("/", {"host": f"localhost:{PORT}"}),
        ("/", OURS | {"sec-fetch-site": "cross-site"}),  # a link that somebody follows
        ("/gradio_api/queue/join", OURS | {"origin": f"http://127.0.0.1:{PORT}"}),
        ("/assets/index.js", OURS | {"sec-fetch-site": "same-origin"}),
    ],
)
def test_the_page_s_own_requests_are_answered(path: str, headers: dict[str, str]) -> None:
    status, got = answer(path, headers)
    assert status == 200 and got["x-own"] == "1"
    assert {name: got[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {"host": "evil.example"}),  # a foreign name that points to loopback
        ("/", {"host": "127.0.0.1:80"}),
        ("/", {}),
        ("/", OURS | {"origin": "http://evil.example"}),
        ("/", OURS | {"origin": "null"}),
        ("/gradio_api/queue/join", OURS | {"origin": "http://localhost:9999"}),
        ("/assets/index.js", OURS | {"sec-fetch-site": "cross-site"}),
        ("/gradio_api/queue/join", OURS | {"sec-fetch-site": "same-site"}),
        ("/gradio_api/proxy=http://127.0.0.1:1/", OURS),
        ("/gradio_api/vibe-edit/", OURS),
        ("/gradio_api/call/classify", OURS),
        ("/static/../../etc/passwd", OURS),
    ],
)
def test_others_are_refused(path: str, headers: dict[str, str]) -> None:
    assert answer(path, headers)[0] == 403


def test_files_are_served_from_the_folder_of_uploads_alone(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "a.png").touch()
    (uploads / "link.png").symlink_to(tmp_path / "secret.png")

    def status(path: object) -> int:
        return answer(f"/gradio_api/file={path}", OURS, uploads)[0]

    assert status(uploads / "a.png") == 200
    outside = ["/etc/passwd", uploads / ".." / "secret.png", f"{uploads}/%2e%2e/secret.png"]
    outside += ["a.png", "http://127.0.0.1:1/a.png", uploads / "link.png", f"{uploads}-2/a.png"]
    assert [status(path) for path in outside] == [403] * len(outside)


def test_a_port_that_is_taken_is_said_and_a_free_one_is_on_loopback() -> None:
    with open_socket(0) as opened:
        host, port = opened.getsockname()
        assert host == HOST == "127.0.0.1"
        with pytest.raises(ValueError, match=f"--port: expected a free port, got {port}"):
            open_socket(port)
