"""One file from one address: continued where it broke off, and put in place when it is verified.

A download fills a file of its own, which no other process ever writes, and which takes the final
name once its size and SHA-256 are right. A hidden note beside the final name tells a later run
where an unfinished download stands (`downloads` notes there what was verified).
"""

import hashlib
import http.client
import ipaddress
import json
import os
import re
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from jaxclip.hub.connection import Watch, WatchedHttp, WatchedHttps
from jaxclip.terminal import printable

TIMEOUT = 20.0  # seconds without a connection, or without a byte
TOTAL = 6 * 3600.0  # seconds for a file, all attempts together
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
WORTH_ANOTHER = {408, 425, 429, 500, 502, 503, 504}  # answers of a server in passing trouble
CHUNK = 1 << 20
# RFC 9110, section 8.8.3; a weak one, W/"...", does not promise equal bytes
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')


class _TryAgain(Exception):
    """What went wrong may go right at the next attempt."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk's refusal in one line that says which file and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; make room or give the right to write "
            "there, or choose another folder with JAXCLIP_CACHE"
        ) from error


def say(text: str) -> None:
    if sys.stderr is not None:
        print(f"jaxclip: {printable(text)}", file=sys.stderr, flush=True)


def read_note(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        note = json.loads(path.with_name(f".{path.name}.json").read_text(encoding="utf-8"))
        return note if isinstance(note, dict) else {}
    return {}


def write_note(path: Path, note: dict[str, Any]) -> None:
    """In place: a note that is torn or cannot be written costs time, never correctness."""
    with suppress(OSError):
        path.with_name(f".{path.name}.json").write_text(json.dumps(note), encoding="utf-8")


def likeness(head: bytes) -> str:
    """What an archive's first bytes show it to be instead, as a clause; nothing if unremarkable."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return ", a Git LFS pointer"
    if start.startswith(b"<?xml") and b"<html" not in start and b"doctype html" not in start:
        return ", an XML text"
    return ", an HTML page (of a network that wants a login?)" if start.startswith(b"<") else ""


def may_ask(address: str) -> bool:
    """https, or http that does not leave this machine."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme == "http":
        with suppress(ValueError):
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return parts.scheme == "https" and bool(host)


class _Part:
    """The file a download fills: bytes so far, their digest, and the ETag they go with.

    What an earlier run left is copied into it, not written on: should a lock not hold, that run
    may still be alive.
    """

    def __init__(self, final: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
        self.final, self.path = final, Path(name)
        self.file = open(handle, "wb", buffering=0)  # noqa: SIM115  (`leave` closes it)
        self.path.chmod(0o644)
        self.placed = False
        self.start_over("")

    def start_over(self, etag: str) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.count, self.digest, self.etag, self.resumed = 0, hashlib.sha256(), etag, False

    def add(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        try:
            with writing(self.final):
                while rest:
                    rest = rest[self.file.write(rest) :]
        except OSError:
            self.start_over("")  # a full disk gets its space back
            raise
        self.digest.update(chunk)
        self.count += len(chunk)

    def remember(self, address: str) -> None:
        """Let a later run find this file; without an ETag it could not go on from it."""
        if self.etag:
            note = {"part": self.path.name, "address": address, "etag": self.etag}
            write_note(self.final, note)

    def others(self) -> list[Path]:
        """The files that interrupted runs have left."""
        found = self.final.parent.glob(f".{self.final.name}.*.part")
        return [path for path in found if path != self.path]

    def resume(self, address: str, size: int, *, alone: bool) -> None:
        """Begin with what an earlier run left; `alone`: nobody can be writing to it."""
        note = read_note(self.final)
        old = next((path for path in self.others() if path.name == note.get("part")), None)
        etag = str(note.get("etag"))
        if old is None or note.get("address") != address or not _STRONG_ETAG.fullmatch(etag):
            return
        try:
            file = old.open("rb")
        except OSError:  # gone meanwhile, or somebody else's
            return
        with file:
            if os.fstat(file.fileno()).st_size > size:
                return
            while chunk := file.read(CHUNK):
                self.add(chunk)
        self.etag, self.resumed = etag, True
        self.remember(address)
        if alone:
            with suppress(OSError):
                old.unlink()

    def place(self) -> os.stat_result:
        """Give the file, whole and right, its final name; clear up what earlier runs left."""
        with writing(self.final):
            os.fsync(self.file.fileno())
            status = os.fstat(self.file.fileno())
            self.file.close()
        os.replace(self.path, self.final)
        self.placed = True
        for path in self.others():
            with suppress(OSError):
                path.unlink()
        return status

    def leave(self) -> None:
        """Close the file, and delete it unless a later run can go on from it."""
        self.file.close()
        if self.placed or (self.count and self.etag):
            return
        with suppress(OSError):
            self.path.unlink()
            if read_note(self.final).get("part") == self.path.name:
                self.final.with_name(f".{self.final.name}.json").unlink()


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any
    ) -> Any:
        fp.close()  # its body, which may have no end, is not read
        target = urljoin(req.full_url, headers.get("location", ""))
        if urlsplit(target).scheme != urlsplit(req.full_url).scheme or not may_ask(target):
            raise ValueError(
                f"{req.full_url} redirects to {target[:200]!r}; expected another "
                f"{urlsplit(req.full_url).scheme} address; use another network or JAXCLIP_MIRROR"
            )
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _ask(address: str, part: _Part, watch: Watch) -> http.client.HTTPResponse:
    """The answer to a request for the file, or for the rest of it if some of it is here."""
    headers = {"User-Agent": "jaxclip"}
    if part.count:
        headers |= {"Range": f"bytes={part.count}-", "If-Range": part.etag}
    handlers: list[urllib.request.BaseHandler] = [
        _Redirects(),
        WatchedHttp(watch),
        WatchedHttps(watch),
    ]
    if urlsplit(address).scheme == "http":
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy would be another machine
    request = urllib.request.Request(address, headers=headers)
    try:
        return urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"answered {error.code} {http.client.responses.get(error.code, '')}".strip()
        if error.code == 416:  # what we have is no part of what is there now
            part.start_over("")
        if error.code in WORTH_ANOTHER | {416}:
            raise _TryAgain(answer) from error
        raise OSError(f"{address} {answer}; check JAXCLIP_MIRROR and the network") from error
    except http.client.InvalidURL as error:
        raise ValueError(f"{address!r} is no address: {error}; check JAXCLIP_MIRROR") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise OSError(f"{address}: {reason}; check the clock and the network") from error
        raise _TryAgain(str(reason) or type(reason).__name__) from error


def _read(read: Callable[[int], bytes], limit: int) -> bytes:
    try:
        return read(limit)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(str(error) or type(error).__name__) from error


def _check_continues(response: http.client.HTTPResponse, part: _Part, size: int) -> None:
    """That an answer 206 goes on where `part` ends, in the same file."""
    came, etag = response.headers.get("Content-Range", ""), response.headers.get("ETag", part.etag)
    wanted = f"bytes {part.count}-{size - 1}/"
    if came not in (f"{wanted}{size}", f"{wanted}*") or etag != part.etag:
        part.start_over("")
        raise _TryAgain("the server went on with other bytes than those asked for")


def _begin(response: http.client.HTTPResponse, part: _Part, size: int, address: str) -> None:
    """Take the start of an answer 200; what is here already goes only once that looks right."""
    length, source = response.length, response.url.partition("?")[0]
    head = _read(response.read, min(512, size))
    came = likeness(head)
    if came or length not in (None, size):
        offered = "something" if length is None else f"{length} bytes"
        raise ValueError(
            f"{source} offers {offered}{came}; expected {size} bytes; look at the address in "
            "a browser, use another network or JAXCLIP_MIRROR"
        )
    etag = response.headers.get("ETag", "")
    part.start_over(etag if _STRONG_ETAG.fullmatch(etag) else "")
    part.remember(address)
    part.add(head)


def _receive(
    address: str, part: _Part, size: int, show: Callable[[int], None], watch: Watch
) -> str:
    """Fill `part` from one answer; returns the address that the bytes came from."""
    if not part.etag:  # nothing says that the server still has the same file
        part.start_over("")
    with _ask(address, part, watch) as response:
        if part.count and response.status == 206:
            _check_continues(response, part, size)
            part.resumed = True
        elif response.status == 200:
            _begin(response, part, size, address)
        else:
            raise _TryAgain(f"answered {response.status} to a request for the whole file")
        source = response.url.partition("?")[0]
        while chunk := _read(response.read1, CHUNK):
            if part.count + len(chunk) > size:
                part.start_over("")
                raise ValueError(f"{source} sent more than the {size} bytes expected; deleted")
            part.add(chunk)
            watch.count += len(chunk)
            show(part.count)
    if part.count < size:
        raise _TryAgain(f"the connection ended after {part.count} of {size} bytes")
    return source


def _check_digest(part: _Part, sha256: str, source: str) -> None:
    digest, size, resumed = part.digest.hexdigest(), part.count, part.resumed
    if digest == sha256:
        return
    part.start_over("")
    if resumed:  # the old bytes may be to blame, not the server
        raise _TryAgain("the continued download has a wrong digest and was deleted")
    raise ValueError(
        f"{source} sent {size} bytes with sha256 {digest}; expected as many with sha256 {sha256}; "
        "they were deleted; try again or use JAXCLIP_MIRROR"
    )


def _fill(address: str, part: _Part, size: int, sha256: str, show: Callable[[int], None]) -> None:
    """Attempt after attempt until `part` holds the right bytes."""
    deadline = time.monotonic() + TOTAL
    for attempt in range(ATTEMPTS):
        with Watch(deadline) as watch:
            try:
                source = address
                if part.count < size:
                    source = _receive(address, part, size, show, watch)
                return _check_digest(part, sha256, source)
            except (_TryAgain, ValueError, OSError) as error:
                # what a connection that was shut down has left, half a header, says nothing
                if not watch.reason and not isinstance(error, _TryAgain):
                    raise
                reason, cause = watch.reason or " ".join(str(error).split()), error
        if time.monotonic() >= deadline:
            break
        if attempt + 1 < ATTEMPTS:
            pause = PAUSE * 2**attempt
            say(f"{address}: {reason}; trying again in {pause:g} s")
            time.sleep(pause)
    kept = part.count and part.etag
    advice = (
        "what was received is kept, the next run goes on from it" if kept else "check the network"
    )
    many = f"{attempt + 1} attempt{'s' if attempt else ''}"
    raise OSError(f"{address}: {reason}; gave up after {many}; {advice}") from cause


def download(
    address: str, path: Path, size: int, sha256: str, show: Callable[[int], None], *, alone: bool
) -> os.stat_result:
    """Put the file of `size` bytes with this digest, which is at `address`, at `path`.

    Args:
      address: one that `may_ask` allows.
      path: its folder must exist. What is there is replaced at the end, or left as it is.
      size, sha256: not one byte more is taken, and no other bytes are put in place.
      show: called with the count of bytes that are here.
      alone: no other process downloads it; what earlier runs left may go as soon as it is copied.

    Returns:
      The status of the file in its place.

    Raises:
      ValueError: the address offers or sent something else, or redirects elsewhere.
      OSError: the network failed or was too slow `ATTEMPTS` times, `TOTAL` is over, or the disk
        failed.
      FileNotFoundError: another process, not kept out by a lock, was first and cleared up.

    Source: RFC 9110, sections 13.1.5 (If-Range) and 14 (ranges).
    """
    with writing(path):
        part = _Part(path)
    try:
        part.resume(address, size, alone=alone)
        show(part.count)
        _fill(address, part, size, sha256, show)
        return part.place()
    finally:
        part.leave()
