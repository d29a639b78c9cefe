"""A file server on this machine that behaves well, or badly in one of the ways seen in the wild."""

import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAYLOAD = b"PK\x03\x04" + random.Random(0).randbytes(300_000)
HALF = len(PAYLOAD) // 2
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"

Behaviour = Callable[[Any], None]


class Server(ThreadingHTTPServer):
    """Answers request after request with the next behaviour of `script`, then with the last."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Behaviour] = [whole()]
        self.seen: list[tuple[str, str | None]] = []  # path and Range of each request
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is what many tests are about."""


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Range"]))
        script = self.server.script
        behave = script.pop(0) if len(script) > 1 else script[0]
        behave(self)

    def log_message(self, *args: object) -> None:
        pass

    def start(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def whole(body: bytes = PAYLOAD, length: Any = True) -> Behaviour:
    """All of `body` with status 200; `length`: the right one, none, or another."""

    def behave(handler: Handler) -> None:
        handler.start(Content_Length=len(body) if length is True else length)
        handler.wfile.write(body)

    return behave


def ranges(body: bytes = PAYLOAD) -> Behaviour:
    """A good server: all of `body`, or the part from the byte that the client wants."""

    def behave(handler: Handler) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        return (partial(int(wanted[1]), body) if wanted else whole(body))(handler)

    return behave


def half(body: bytes = PAYLOAD) -> Behaviour:
    """Promises everything, sends the first half and closes the connection."""

    def behave(handler: Handler) -> None:
        handler.start(Content_Length=len(body))
        handler.wfile.write(body[:HALF])

    return behave


def stall(handler: Handler) -> None:
    """Sends the first half and then nothing, on an open connection."""
    half()(handler)
    handler.wfile.flush()
    handler.server.over.wait(60)


def reset(handler: Handler) -> None:
    """Sends some and breaks the connection off."""
    half()(handler)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"220 mail.example ready\r\n")


def nothing(handler: Handler) -> None:
    """Closes the connection without a word."""


def status(number: int, **headers: object) -> Behaviour:
    return lambda handler: handler.start(number, **headers)


def partial(start: int, body: bytes = PAYLOAD) -> Behaviour:
    """Status 206 with bytes from `start`, whatever was asked for."""

    def behave(handler: Handler) -> None:
        sent = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.start(206, Content_Range=sent, Content_Length=len(body) - start)
        handler.wfile.write(body[start:])

    return behave


def drip(start: bytes) -> Behaviour:
    """Sends `start` without HTTP of its own, then a byte every hundredth of a second, for ever."""

    def behave(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.server.over.wait(0.01):
            handler.wfile.write(b"a")

    return behave


def endless(start: bytes, more: bytes) -> Behaviour:
    """Sends `start`, then `more` again and again, as fast as it is read."""

    def behave(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.server.over.is_set():
            handler.wfile.write(more)

    return behave
