"""HTTP connections that are shut down when they bring too little.

A socket's timeout does not see to that: it begins anew with every byte, of a header as well.
"""

import http.client
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from functools import partial
from typing import Any

WINDOW = 60.0  # seconds over which the rate is measured
SLOWEST = 1_000  # bytes a second over a window


class Watch:
    """Shuts down the connections of one attempt that is too slow or lasts beyond its deadline.

    Whatever they are waiting for: the handshake, a header, a redirect, the content.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline  # of `time.monotonic`
        self.count = 0  # bytes of content in this attempt; the reader adds them
        self.reason = ""  # why the connections were shut down
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self._sockets:
            each.close()

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """`socket.create_connection`, watched."""
        made = socket.create_connection(*args, **kwargs)
        self._sockets.append(made.dup())  # TLS replaces the socket itself
        return made

    def _run(self) -> None:
        before = 0
        while not self._over.wait(min(WINDOW, max(0.0, self.deadline - time.monotonic()))):
            if time.monotonic() >= self.deadline:
                self.reason = "the time for a download is over"
            elif self.count - before < SLOWEST * WINDOW:
                rate = (self.count - before) / WINDOW
                self.reason = f"expected at least {SLOWEST:,} bytes a second, got {rate:,.0f}"
            before = self.count
            while self.reason and not self._over.wait(0.1):  # what connects meanwhile, too
                for each in tuple(self._sockets):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)


def _connection(kind: Any, watch: Watch, *args: Any, **kwargs: Any) -> Any:
    made = kind(*args, **kwargs)
    made._create_connection = watch.connect  # http.client keeps the function there
    return made


class WatchedHttp(urllib.request.HTTPHandler):
    """http, by connections that a `Watch` can shut down."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._kind = partial(_connection, http.client.HTTPConnection, watch)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind, req)


class WatchedHttps(urllib.request.HTTPSHandler):
    """The same for https."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._kind = partial(_connection, http.client.HTTPSConnection, watch)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind, req)
