"""A download ends with the right bytes in place, or with one line and nothing changed."""

import hashlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxclip.hub import download as transfer
from tests.support import file_server
from tests.support.file_server import HALF, HTML, PAYLOAD, Behaviour, Server

SHA256 = hashlib.sha256(PAYLOAD).hexdigest()
WRONG = PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1])
REST = f"bytes={HALF}-"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[Server]:
    with file_server.running() as server:
        yield server


def download(server: Server, path: Path) -> None:
    transfer.download(f"{server.url}/file", path, len(PAYLOAD), SHA256, lambda count: None)


def ranges_asked(server: Server) -> list[str | None]:
    return [wanted for _, wanted in server.seen]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part(folder: Path) -> Path:
    return folder / ".file.part"


WRONG_ANSWERS = {
    "other content": (file_server.whole(WRONG), ValueError, hashlib.sha256(WRONG).hexdigest()),
    "shorter": (
        file_server.whole(PAYLOAD[:9]),
        ValueError,
        "expected 300004 bytes from .*, got 9 bytes",
    ),
    "longer": (file_server.whole(PAYLOAD + b"x"), ValueError, "got 300005 bytes"),
    "longer, unsaid": (
        file_server.whole(PAYLOAD + b"x", length=None),
        ValueError,
        "expected 300004 bytes, got more",
    ),
    "shorter, unsaid": (
        file_server.whole(PAYLOAD[:9], length=None),
        OSError,
        "after 9 of 300004 bytes; gave up after 5 attempts",
    ),
    "HTML": (file_server.whole(HTML), ValueError, "an HTML page"),
    "HTML, unsaid": (file_server.whole(HTML, length=None), ValueError, "an HTML page"),
    "HTML, padded": (
        file_server.whole(HTML.ljust(len(PAYLOAD))),
        ValueError,
        "got an HTML page",
    ),
    "XML": (file_server.whole(b"<?xml version='1.0'?><Error/>"), ValueError, "an XML text"),
    "LFS": (
        file_server.whole(b"version https://git-lfs.github.com/spec/v1"),
        ValueError,
        "a Git LFS pointer",
    ),
    "404": (file_server.status(404), OSError, "answered 404 Not Found"),
    "500": (file_server.status(500), OSError, "answered 500 .*; gave up after 5"),
    "206 unasked": (file_server.partial(9), OSError, "answered 206"),
    "to http": (
        file_server.status(302, Location="http://cdn.example/file"),
        ValueError,
        "redirects to 'http://cdn.example/file'",
    ),
    "to a file": (
        file_server.status(301, Location="file:///etc/passwd"),
        ValueError,
        "redirects to 'file:///etc/passwd'",
    ),
    "to itself": (file_server.status(307, Location="/file"), OSError, "answered 307"),
    "no HTTP": (file_server.no_http, OSError, "gave up after 5"),
    "nothing": (file_server.nothing, OSError, "gave up after 5"),
}


@pytest.mark.parametrize(
    ("behave", "error", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys()
)
def test_a_wrong_answer_is_refused_in_one_line_and_changes_nothing(
    behave: Behaviour, error: type[Exception], message: str, server: Server, tmp_path: Path
) -> None:
    server.script = [behave]
    path = tmp_path / "file"
    path.write_bytes(b"old and good")
    with pytest.raises(error, match=message) as caught:
        download(server, path)
    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old and good"
    # only what ended too early is kept, to be continued
    kept = [".file.part"] if message.startswith("after 9") else []
    assert names(tmp_path) == [*kept, "file"]
    server.script = [file_server.ranges()]  # the next run is none the worse
    download(server, path)
    assert path.read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    "behave",
    [
        file_server.half(),
        file_server.reset,
        file_server.status(500),
        file_server.status(503),
        file_server.status(429),
        file_server.nothing,
        file_server.no_http,
    ],
    ids=["half", "reset", "500", "503", "429", "nothing", "no HTTP"],
)
def test_passing_trouble_is_outlasted(behave: Behaviour, server: Server, tmp_path: Path) -> None:
    server.script = [behave, behave, file_server.ranges()]
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert len(server.seen) == 3


def test_a_stalled_connection_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 1.0)
    server.script = [file_server.stall, file_server.ranges()]
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert ranges_asked(server)[:2] == [None, REST]


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a byte every hundredth of a second a server is too slow after a quarter of a second."""
    monkeypatch.setattr(transfer, "WINDOW", 0.25)
    monkeypatch.setattr(transfer, "SLOWEST", 1_000)
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)


LENGTH = f"Content-Length: {len(PAYLOAD)}\r\n\r\n".encode()
SLOW = {
    "a status a byte at a time": file_server.drip(b""),
    "a header a byte at a time": file_server.drip(b"HTTP/1.1 200 OK\r\nServer: "),
    "content a byte at a time": file_server.drip(b"HTTP/1.1 200 OK\r\n" + LENGTH + PAYLOAD[:9000]),
    "its first bytes a byte at a time": file_server.drip(b"HTTP/1.1 200 OK\r\n" + LENGTH),
    "the size of a chunk": file_server.drip(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "answers that announce others": file_server.endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a redirect a byte at a time": file_server.drip(b"HTTP/1.1 302 Found\r\nLocation: /"),
}


@pytest.mark.parametrize("behave", SLOW.values(), ids=SLOW.keys())
def test_a_slow_server_is_given_up_in_one_line(
    behave: Behaviour, server: Server, tmp_path: Path, short_window: None
) -> None:
    server.script = [behave]
    began = time.monotonic()
    with pytest.raises(OSError, match=r"at least 1,000 bytes a second, got .*after 2 attempts"):
        download(server, tmp_path / "file")
    assert time.monotonic() - began < 10


def test_what_a_slow_server_sent_is_kept_for_the_next_run(
    server: Server, tmp_path: Path, short_window: None
) -> None:
    start = b"HTTP/1.1 200 OK\r\n" + LENGTH + PAYLOAD[:HALF]
    server.script = [file_server.drip(start), file_server.drip(b"HTTP/1.1 ")]
    with pytest.raises(OSError, match=r"[0-9]+ bytes are kept, the next run continues"):
        download(server, tmp_path / "file")
    server.script = [file_server.ranges()]
    server.seen.clear()
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    "behave",
    [
        file_server.endless(b"HTTP/1.1 200 OK\r\n", b"Name: value\r\n"),
        file_server.endless(b"HTTP/1.1 200 OK\r\n", b"a" * 1_000),
        file_server.endless(b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n", b"a" * 100_000),
        file_server.status(302, Location="/file"),
    ],
    ids=["headers", "one header", "the text of a redirect", "redirects"],
)
def test_what_has_no_end_is_given_up_at_once(
    behave: Behaviour, server: Server, tmp_path: Path
) -> None:
    server.script = [behave]
    with pytest.raises(OSError):
        download(server, tmp_path / "file")
    assert names(tmp_path) == []


def test_control_characters_of_a_server_do_not_reach_the_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [file_server.drip(b"\x1b[31m\x07\r\n"), file_server.ranges()]
    download(server, tmp_path / "file")
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\x07" not in said and said.count("\n") == 1


def test_a_host_that_takes_no_connection_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/file"
    with pytest.raises(OSError, match=f"^{address}: .*refused; gave up after 5 attempts"):
        transfer.download(address, tmp_path / "file", 9, SHA256, lambda count: None)
    assert names(tmp_path) == []


def test_pauses_double(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    server.script = [file_server.status(500)]
    with pytest.raises(OSError, match="gave up"):
        download(server, tmp_path / "file")
    assert pauses == [transfer.PAUSE * factor for factor in (1, 2, 4, 8)]


# Continuing


def test_the_second_attempt_asks_for_the_rest(server: Server, tmp_path: Path) -> None:
    server.script = [file_server.half(), file_server.ranges()]
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert ranges_asked(server) == [None, REST]


AFTER_HALF: dict[str, list[Behaviour]] = {
    "Range ignored": [file_server.whole()],
    "206 from elsewhere": [file_server.partial(0), file_server.ranges()],
    "416": [file_server.status(416), file_server.ranges()],
    "other bytes": [file_server.ranges(WRONG), file_server.ranges()],
}


@pytest.mark.parametrize("then", AFTER_HALF.values(), ids=AFTER_HALF.keys())
def test_what_cannot_be_continued_starts_over(
    then: list[Behaviour], server: Server, tmp_path: Path
) -> None:
    server.script = [file_server.half(), *then]
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert ranges_asked(server) == [None, REST, None][: 1 + len(then)]
    assert names(tmp_path) == ["file"]


def interrupt(server: Server, path: Path) -> None:
    """A run that Ctrl-C ends half-way."""

    def show(count: int) -> None:
        if count >= HALF:
            raise KeyboardInterrupt

    server.script = [file_server.half(), file_server.ranges()]
    with pytest.raises(KeyboardInterrupt):
        transfer.download(f"{server.url}/file", path, len(PAYLOAD), SHA256, show)
    server.seen.clear()


def test_ctrl_c_leaves_what_the_next_run_continues(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "file")
    assert names(tmp_path) == [".file.part"]
    assert part(tmp_path).stat().st_size == HALF
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert ranges_asked(server) == [REST]
    assert names(tmp_path) == ["file"]


def test_a_login_page_keeps_what_was_received(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "file")
    kept = part(tmp_path).read_bytes()
    server.script = [file_server.whole(HTML)]
    with pytest.raises(ValueError, match="HTML"):
        download(server, tmp_path / "file")
    assert part(tmp_path).read_bytes() == kept


@pytest.mark.parametrize("tamper", ["flip", "too long", "gone"])
def test_a_wrong_part_is_not_trusted(
    tamper: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(server, tmp_path / "file")
    if tamper == "flip":
        part(tmp_path).write_bytes(b"x" * part(tmp_path).stat().st_size)
    elif tamper == "too long":
        part(tmp_path).write_bytes(PAYLOAD + b"x")
    else:
        part(tmp_path).unlink()
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert ranges_asked(server)[-1] is None
    assert len(server.seen) == (2 if tamper == "flip" else 1)
    assert ("trying again" in capsys.readouterr().err) == (tamper != "gone")


def test_a_part_that_is_whole_needs_no_network(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "file")
    part(tmp_path).write_bytes(PAYLOAD)
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert server.seen == []


# Addresses


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("https://example.com/a", True),
        ("http://127.0.0.1:80/a", True),
        ("http://[::1]:80/a", True),
        ("http://localhost/a", True),
        ("http://example.com/a", False),
        ("http://127.0.0.1.example.com/a", False),
        ("http://localhost@example.com/a", False),
        ("https:///a", False),
        ("ftp://127.0.0.1/a", False),
        ("file:///a", False),
        ("/a", False),
    ],
)
def test_only_https_leaves_this_machine(address: str, allowed: bool) -> None:
    assert transfer.is_allowed(address) is allowed


def test_a_redirect_on_this_machine_is_followed(server: Server, tmp_path: Path) -> None:
    server.script = [file_server.status(308, Location="/b?secret"), file_server.ranges()]
    download(server, tmp_path / "file")
    assert [path for path, _ in server.seen] == ["/file", "/b?secret"]


def test_what_a_redirect_leads_to_is_named(server: Server, tmp_path: Path) -> None:
    server.script = [file_server.status(302, Location="/b?secret"), file_server.whole(WRONG)]
    with pytest.raises(ValueError, match=f"got 300004 bytes with sha256 .* from {server.url}/b;"):
        download(server, tmp_path / "file")


def test_http_on_this_machine_asks_no_proxy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
