"""One verified file in the cache, whoever asks, however often, whatever happens meanwhile."""

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from jaxclip import config
from jaxclip.hub import download as transfer
from jaxclip.hub.released import RELEASED_FILES, ReleasedFile, cache_folder, fetch
from tests.support import file_server
from tests.support.file_server import HALF, PAYLOAD, Server

SHA256 = hashlib.sha256(PAYLOAD).hexdigest()
DONE = [".tiny.pt.lock", ".tiny.pt.verified", "tiny.pt"]
NOBODY = 65534
# A process of its own: the address of the server, the folder, and how large a file may grow there.
FETCH = f"""
import resource, sys
from jaxclip.hub.released import RELEASED_FILES, ReleasedFile, fetch
if sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
address = sys.argv[1] + "/tiny.pt"
RELEASED_FILES["tiny"] = ReleasedFile(address, "{SHA256}", {len(PAYLOAD)})
try:
    print(fetch("tiny", sys.argv[2]))
except OSError as error:
    sys.exit(f"OSError: {{error}}")
"""


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "MIRROR", "OFFLINE"):
        monkeypatch.delenv(f"JAXCLIP_{name}", raising=False)
    monkeypatch.setattr(transfer, "PAUSE", 0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a model called "tiny"."""
    with file_server.running() as server:
        released = ReleasedFile(f"{server.url}/{SHA256}/tiny.pt", SHA256, len(PAYLOAD))
        monkeypatch.setitem(RELEASED_FILES, "tiny", released)
        server.script = [file_server.ranges()]
        yield server


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def start(server: Server, folder: Path, stderr: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, server.url, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 120  # far beyond what it takes: the machine may be busy
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The table and the folder


def test_the_table_lists_the_released_models_in_the_released_order() -> None:
    assert list(RELEASED_FILES) == list(config.RELEASED)
    for name, released in RELEASED_FILES.items():
        folder = f"https://openaipublic.azureedge.net/clip/models/{released.sha256}/"
        assert released.url == folder + re.sub("[/@]", "-", name) + ".pt"
        assert re.fullmatch("[0-9a-f]{64}", released.sha256)


def test_the_sizes_are_those_published_elsewhere() -> None:
    """In MiB, from the model list of clip-as-service, which rounds now up, now down."""
    published = [244, 278, 402, 631, 1291, 338, 335, 890, 891]
    for released, size in zip(RELEASED_FILES.values(), published, strict=True):
        assert abs(released.size / 2**20 - size) < 1


def test_the_folder_is_the_argument_then_ours_then_the_desktops_then_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path("/home/me/.cache/jaxclip")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/jaxclip")
    monkeypatch.setenv("JAXCLIP_CACHE", "~/ours")
    assert cache_folder() == Path("/home/me/ours")
    assert cache_folder("~/given") == Path("/home/me/given")


def test_nobody_without_a_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OSError, match="name a folder with JAXCLIP_CACHE"):
        cache_folder()


# From the cache


def test_a_file_is_downloaded_once_and_hashed_no_more(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch("tiny", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "tiny.pt"
    assert path.read_bytes() == PAYLOAD
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(path.parent) == DONE
    assert server.seen == [(f"/{SHA256}/tiny.pt", None)]
    monkeypatch.delattr(hashlib, "file_digest")
    assert fetch("tiny", path.parent) == path
    assert len(server.seen) == 1


def test_a_file_placed_by_hand_serves(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_socket: None
) -> None:
    (tmp_path / "tiny.pt").write_bytes(PAYLOAD)
    assert fetch("tiny", tmp_path) == tmp_path / "tiny.pt"
    monkeypatch.delattr(hashlib, "file_digest")
    assert fetch("tiny", tmp_path) == tmp_path / "tiny.pt"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "0 bytes"),
        (PAYLOAD[:-1], "300003 bytes"),
        (b"x" * len(PAYLOAD), f"sha256 {hashlib.sha256(b'x' * len(PAYLOAD)).hexdigest()}"),
        (file_server.HTML, "55 bytes, an HTML page"),
    ],
    ids=["empty", "cut", "other", "HTML"],
)
def test_a_wrong_file_is_named_and_left_to_its_owner(
    content: bytes, got: str, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "tiny.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"expected the official file, .*got .*{got}.*delete it"):
        fetch("tiny", tmp_path)
    assert (tmp_path / "tiny.pt").read_bytes() == content
    assert server.seen == []


def test_a_file_that_changed_is_hashed_again(server: Server, tmp_path: Path) -> None:
    path = fetch("tiny", tmp_path)
    status = path.stat()
    path.write_bytes(PAYLOAD[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(ValueError, match="expected the official file"):
        fetch("tiny", tmp_path)
    copy = tmp_path / "copy"  # the same size and time, but another inode
    copy.write_bytes(PAYLOAD[::-1])
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(copy, path)
    with pytest.raises(ValueError, match="expected the official file"):
        fetch("tiny", tmp_path)


@pytest.mark.parametrize("note", ["", "{", "\udcff", SHA256])
def test_a_broken_note_costs_a_hash_and_no_more(note: str, server: Server, tmp_path: Path) -> None:
    path = fetch("tiny", tmp_path)
    beside = tmp_path / ".tiny.pt.verified"
    beside.write_bytes(note.encode(errors="surrogateescape"))
    assert fetch("tiny", tmp_path) == path
    assert beside.read_text().startswith(f"{SHA256} {len(PAYLOAD)} ")


def test_what_is_no_file_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").mkdir()
    with pytest.raises(OSError, match=r"tiny\.pt is a directory"):
        fetch("tiny", tmp_path)
    (tmp_path / "tiny.pt").rmdir()
    os.mkfifo(tmp_path / "tiny.pt")  # opening it would wait for ever
    with pytest.raises(OSError, match=r"tiny\.pt is not a regular file"):
        fetch("tiny", tmp_path)
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        fetch("tiny", tmp_path / "folder")
    assert server.seen == []


# The network or none


@pytest.mark.parametrize("name", RELEASED_FILES)
def test_offline_opens_no_socket_and_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_socket: None
) -> None:
    monkeypatch.setenv("JAXCLIP_OFFLINE", "1")
    with pytest.raises(OSError, match="JAXCLIP_OFFLINE") as caught:
        fetch(name, tmp_path / "none")
    released = RELEASED_FILES[name]
    path = tmp_path / "none" / released.file_name
    for part in (str(path), released.url, released.sha256, str(released.size)):
        assert part in str(caught.value)
    assert not path.parent.exists()


def test_online_a_socket_would_have_been_opened(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_socket: None
) -> None:
    monkeypatch.setenv("JAXCLIP_OFFLINE", "0")
    with pytest.raises(AssertionError, match="a socket was opened"):
        fetch("tiny", tmp_path)


def test_a_mirror_stands_for_host_and_path(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = ReleasedFile("https://not.example/clip/models/x/tiny.pt", SHA256, len(PAYLOAD))
    monkeypatch.setitem(RELEASED_FILES, "tiny", released)
    monkeypatch.setenv("JAXCLIP_MIRROR", f"{server.url}/our/mirror/")
    assert fetch("tiny", tmp_path).read_bytes() == PAYLOAD
    assert server.seen == [(f"/our/mirror/{SHA256}/tiny.pt", None)]


@pytest.mark.parametrize("mirror", ["http://mirror.example", "file:///a", "/a", "ftp://a.example"])
def test_a_mirror_that_is_not_https_is_refused(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_socket: None
) -> None:
    monkeypatch.setenv("JAXCLIP_MIRROR", mirror)
    with pytest.raises(ValueError, match=f"expected an address https://.*'{mirror}/"):
        fetch("RN50", tmp_path / "none")
    assert not (tmp_path / "none").exists()


# The disk


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may read and not write, even if it runs as root."""
    folder = Path(tempfile.mkdtemp())  # not tmp_path: nobody but root may pass through that
    user = os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(NOBODY)
    yield folder
    if user == 0:
        os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_cache_that_lacks_the_file_is_named(server: Server, read_only: Path) -> None:
    with pytest.raises(OSError, match=f"cannot write {read_only}/tiny.pt: Permission denied; "):
        fetch("tiny", read_only)
    assert server.seen == []


def test_a_read_only_cache_that_has_the_file_serves(server: Server, read_only: Path) -> None:
    if os.getuid() == 0:
        os.seteuid(0)
    read_only.chmod(0o755)
    (read_only / "tiny.pt").write_bytes(PAYLOAD)
    read_only.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    assert fetch("tiny", read_only) == read_only / "tiny.pt"
    assert names(read_only) == ["tiny.pt"]


def test_a_full_disk_is_named_and_gets_its_space_back(server: Server, tmp_path: Path) -> None:
    """No file may grow beyond half of what is to come."""
    process = subprocess.run(
        [sys.executable, "-c", FETCH, server.url, str(tmp_path), str(HALF)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"OSError: cannot write {tmp_path}/.tiny.pt.part: File too large; free")
    assert names(tmp_path) == [".tiny.pt.lock"]
    assert fetch("tiny", tmp_path).read_bytes() == PAYLOAD


# Others at the same time


def test_eight_processes_share_one_download(server: Server, tmp_path: Path) -> None:
    all_wait = threading.Event()

    def hold(handler: file_server.Handler) -> None:
        assert all_wait.wait(120)
        file_server.ranges()(handler)

    def printed() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("*.err"))

    server.script = [hold]
    processes = []
    for number in range(8):
        with (tmp_path / f"{number}.err").open("w") as stderr:
            processes.append(start(server, tmp_path / "cache", stderr))
    wait_until(lambda: printed().count("waiting for another process") == 7)
    all_wait.set()
    assert [process.communicate()[0] for process in processes] == [
        f"{tmp_path}/cache/tiny.pt\n"
    ] * 8, printed()
    assert (tmp_path / "cache" / "tiny.pt").read_bytes() == PAYLOAD
    assert names(tmp_path / "cache") == DONE
    assert len(server.seen) == 1


def test_after_kill_9_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.script = [file_server.stall, file_server.ranges()]
    process = start(server, tmp_path, sys.__stderr__)
    part = tmp_path / ".tiny.pt.part"
    wait_until(lambda: part.exists() and part.stat().st_size == HALF)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) == [".tiny.pt.lock", ".tiny.pt.part"]
    # another address, as of another mirror, may continue
    assert fetch("tiny", tmp_path).read_bytes() == PAYLOAD
    assert [wanted for _, wanted in server.seen] == [None, f"bytes={HALF}-"]
    assert names(tmp_path) == DONE


# What is shown


def test_progress_is_plain_lines_where_there_is_no_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("tiny", tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith(f"jaxclip: downloading {server.url}/{SHA256}/tiny.pt (0.3 MB) to ")
    assert lines[-1] == "jaxclip: tiny: 0.3 of 0.3 MB"
    assert len(lines) <= 11
    fetch("tiny", tmp_path)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_on_a_terminal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    fetch("tiny", tmp_path)
    assert "300.0/300.0 kB" in terminal.getvalue()
