"""A guard before the page's server: this machine's own page only, and only what it needs.

Any web page that is open in a browser may send requests to loopback, and a foreign name may be
pointed at it. So a request is answered only if its Host is ours (no foreign name), its Origin and
Sec-Fetch-Site are those of our own page, and its path is one that the page uses. The answers carry
a Content-Security-Policy by which the browser fetches nothing from elsewhere.

ASGI, without gradio.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
FOLDERS = ("/assets/", "/static/", "/svelte/")
API = "/gradio_api/"
CALLS = {"info", "app_id", "theme.css", "startup-events", "upload", "upload_progress", "reset"}
CALLS |= {"queue/join", "queue/data", "cancel", "heartbeat"}
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """An ASGI application before another one.

    Args:
      app: the one that answers what is let through.
      port: where it listens, on 127.0.0.1.
      files: the only folder whose files are served by path.
    """

    def __init__(self, app: App, port: int, files: Path) -> None:
        self.app, self.files = app, files.resolve()
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no websocket
            return
        if reason := self.refusal(scope):
            await _answer(send, 403, f"{reason}\n".encode())
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [x for x in message["headers"] if x[0].decode().lower() not in HEADERS]
                message = {**message, "headers": [*kept, *added]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> str:
        """Why a request is not answered; empty if it is."""
        headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
        path = scope["path"]
        if headers.get("host") not in self.hosts:
            return f"expected a request to {min(self.hosts)}, got another host"
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            return "expected a request of this page, got another origin"
        site = headers.get("sec-fetch-site", "none")
        if (
            site not in ("none", "same-origin") and path != "/"
        ):  # a link to the page may be followed
            return "expected a request of this page, got one of another site"
        return "" if self.is_known(path) else "expected a path of this page, got another one"

    def is_known(self, path: str) -> bool:
        """Whether the page needs a path; a file has to be in the folder of uploads."""
        if path in PAGES or path.startswith(FOLDERS):
            return ".." not in path
        if not path.startswith(API):
            return False
        call = path.removeprefix(API)
        if call.startswith("file="):
            asked = Path(unquote(call.removeprefix("file=")))
            return asked.is_absolute() and asked.resolve().is_relative_to(self.files)
        return call.rstrip("/") in CALLS or (call.startswith("heartbeat/") and ".." not in call)


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
