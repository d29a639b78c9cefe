"""One file from one address, continued where an earlier run stopped.

The bytes are appended to a hidden file NAME.part, which gets its final name once its size and
SHA-256 are right. The digest alone decides whether an old part and the server's file belong
together: no ETag is compared, and one mirror may continue what another began.
"""

import hashlib
import http.client
import ipaddress
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from jaxclip.images.kinds import text_kind
from jaxclip.terminal import complain

TIMEOUT = 20.0  # seconds without a connection, or without a byte
WINDOW = 60.0  # seconds over which the rate is measured
SLOWEST = 1_000  # bytes a second over a window
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers after which another attempt may work
CHUNK = 1 << 20


class _TryAgain(Exception):
    """Another attempt may succeed."""


class _StartOver(_TryAgain):
    """The same, but not with the bytes received so far."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one line that says which file and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; free some space or get write "
            "permission, or choose another folder with JAXCLIP_CACHE"
        ) from error


def is_allowed(address: str) -> bool:
    """Whether an address is https, or http that does not leave this machine."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme == "http":
        with suppress(ValueError):
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return parts.scheme == "https" and bool(host)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any
    ) -> Any:
        fp.close()  # its body, which may have no end, is not read
        target = urljoin(req.full_url, headers.get("location", ""))
        if urlsplit(target).scheme != req.type or not is_allowed(target):
            raise ValueError(
                f"{req.full_url} redirects to {target[:200]!r}; expected another {req.type} "
                "address; use another network or JAXCLIP_MIRROR"
            )
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _stream(address: str, start: int) -> Generator[Any]:
    """The response to a request for the bytes from `start` on, then those bytes in chunks."""
    headers = {"User-Agent": "jaxclip"} | ({"Range": f"bytes={start}-"} if start else {})
    handlers: list[urllib.request.BaseHandler] = [_Redirects()]
    if urlsplit(address).scheme == "http":
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy would be another machine
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
        yield response
        while chunk := response.read1(CHUNK):
            yield chunk


def _network_error(address: str, error: Exception) -> Exception:
    """The exception to raise for one of the network's: `_TryAgain` where that may help."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        answer = f"answered {error.code} {http.client.responses.get(error.code, '')}".strip()
        if error.code == 416:  # the part is longer than what the server has
            return _StartOver(answer)
        if error.code in PASSING:
            return _TryAgain(answer)
        return OSError(f"{address} {answer}; check JAXCLIP_MIRROR and the network")
    if isinstance(error, http.client.InvalidURL):
        return ValueError(f"expected an address, got {address!r}: {error}; check JAXCLIP_MIRROR")
    if not isinstance(error, OSError | http.client.HTTPException):
        return error  # of _Redirects, or a fault of ours
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return OSError(f"{address}: {reason}; check the clock and the network")
    return _TryAgain(" ".join(str(reason).split()) or type(reason).__name__)


def _watched_stream(address: str, start: int) -> Generator[Any]:
    """The items of `_stream`, as long as they bring SLOWEST bytes a second.

    They are read in a thread of their own: a socket's timeout begins anew with every byte, of a
    header as well. Where one drips without end, the thread is left behind until the peer closes.
    """
    received: queue.Queue[Any] = queue.Queue(maxsize=4)
    stopped = threading.Event()

    def read() -> None:
        try:
            with closing(_stream(address, start)) as items:
                for item in items:
                    received.put(item)
                    if stopped.is_set():
                        return
            received.put(None)
        except Exception as error:
            received.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        count, end = 0, time.monotonic() + WINDOW
        while True:
            if time.monotonic() >= end:
                if count < SLOWEST * WINDOW:
                    got = f"got {count / WINDOW:,.0f}"
                    raise _TryAgain(f"expected at least {SLOWEST:,} bytes a second, {got}")
                count, end = 0, time.monotonic() + WINDOW
            try:
                item = received.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise _network_error(address, item) from item
            count += len(item) if isinstance(item, bytes) else 0
            yield item
    finally:
        stopped.set()
        while not received.empty():  # else the thread would wait for room
            received.get_nowait()


def _first_chunk(response: Any, chunks: Iterator[bytes], start: int, size: int) -> bytes:
    """The first bytes of a response that continues at byte `start`, or that is the whole file."""
    if start and response.status == 206:
        got, wanted = response.headers.get("Content-Range"), f"bytes {start}-{size - 1}/"
        if got not in (f"{wanted}{size}", f"{wanted}*"):
            raise _StartOver(f"expected {wanted}{size}, got {got}")
        return next(chunks, b"")
    if response.status != 200:
        raise _TryAgain(f"answered {response.status} to a request for the whole file")
    length, head = response.headers.get("Content-Length"), next(chunks, b"")
    kind = text_kind(head[:512])
    if kind or length not in (None, str(size)):
        source, got = response.url.partition("?")[0], kind or f"{length} bytes"
        raise ValueError(
            f"expected {size} bytes from {source}, got {got}; look at the address in a browser, "
            "use another network or JAXCLIP_MIRROR"
        )
    return head


def _append(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        with writing(Path(str(file.name))):
            while rest:
                rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(0)  # a full disk gets its space back
        raise


def _receive(address: str, file: FileIO, size: int, show: Callable[[int], None]) -> str:
    """Append to `file` what it lacks; returns the address of the bytes."""
    count = os.fstat(file.fileno()).st_size
    with closing(_watched_stream(address, count)) as chunks:
        response = next(chunks)
        source: str = response.url.partition("?")[0]
        chunk = _first_chunk(response, chunks, count, size)
        if response.status == 200:  # from the start, whatever was asked for
            file.truncate(0)
            count = 0
        while chunk:
            count += len(chunk)
            if count > size:
                file.truncate(0)
                raise ValueError(f"expected {size} bytes, got more from {source}; deleted")
            _append(file, chunk)
            show(count)
            chunk = next(chunks, b"")
    if count < size:
        raise _TryAgain(f"the connection ended after {count} of {size} bytes")
    return source


def _attempt(
    address: str, file: FileIO, size: int, sha256: str, show: Callable[[int], None]
) -> None:
    """Fill `file` from one response, and compare its digest."""
    start, source = os.fstat(file.fileno()).st_size, address
    if start > size:
        raise _StartOver(f"expected a part of at most {size} bytes, got {start}")
    show(start)
    if start < size:
        source = _receive(address, file, size, show)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == sha256:
        return
    if start:  # the old bytes may be to blame, not the server
        raise _StartOver("the continued file has a wrong digest and was deleted")
    file.truncate(0)
    raise ValueError(
        f"expected sha256 {sha256}, got {size} bytes with sha256 {digest} from {source}; deleted; "
        "try again or use JAXCLIP_MIRROR"
    )


def _fill(address: str, file: FileIO, *wanted: Any) -> None:
    """Attempt after attempt, until `file` holds the right bytes."""
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(address, file, *wanted)
        except _TryAgain as error:
            reason, cause = str(error), error
            if isinstance(error, _StartOver):
                file.truncate(0)
        if attempt + 1 < ATTEMPTS:
            pause = PAUSE * 2**attempt
            complain("jaxclip", f"{address}: {reason}; trying again in {pause:g} s")
            time.sleep(pause)
    kept = os.fstat(file.fileno()).st_size
    advice = f"{kept} bytes are kept, the next run continues" if kept else "check the network"
    raise OSError(f"{address}: {reason}; gave up after {ATTEMPTS} attempts; {advice}") from cause


def download(address: str, path: Path, size: int, sha256: str, show: Callable[[int], None]) -> None:
    """Put the file of `size` bytes with this digest, which is at `address`, at `path`.

    A file at `path` is replaced at the end, or left as it is. The caller holds a lock: no other
    process may download to `path` meanwhile. `show` is called with the bytes received so far.

    Raises:
      ValueError: the address offers or sent something else, or redirects elsewhere.
      OSError: the network failed or was too slow `ATTEMPTS` times, or the disk failed.

    Source: RFC 9110, section 14 (ranges).
    """
    part = path.with_name(f".{path.name}.part")
    with writing(part):
        file = open(part, "a+b", buffering=0)  # noqa: SIM115  (closed below)
    try:
        with file:
            _fill(address, file, size, sha256, show)
            with writing(part):
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with suppress(OSError):
            if not part.stat().st_size:
                part.unlink()
