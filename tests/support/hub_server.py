"""A server on this machine that speaks the Hub's API, as far as loading a model needs it.

`faults` makes it misbehave for a file: "truncated", "wrong", "slow", or a status as a number.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = 10_000  # bytes; larger files are in LFS


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.files = repo, files
        self.faults: dict[str, Any] = {}
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is what some tests are about."""


@contextmanager
def running(repo: str, files: dict[str, bytes]) -> Iterator[Server]:
    with Server(repo, files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        self.server.seen.append(f"{self.command} {path}")
        repo = self.server.repo
        if path.startswith(f"/api/models/{repo}"):
            self._describe(path.removeprefix(f"/api/models/{repo}"))
        elif path.startswith(f"/{repo}/resolve/"):
            _, _, file = path.removeprefix(f"/{repo}/resolve/").partition("/")
            self._send_file(file, body)
        else:
            self._fail(401, {"X-Error-Code": "RepoNotFound"})  # as the Hub: it may be private

    def _describe(self, rest: str) -> None:
        status = self.server.faults.get("list")
        if isinstance(status, int):
            missing = {"X-Error-Code": "RepoNotFound"}
            codes = {403: {"X-Error-Code": "GatedRepo"}, 401: missing, 404: missing}
            return self._fail(status, codes.get(status, {}))
        if status == "slow":
            time.sleep(5)
        if rest.startswith("/revision/") and rest.split("/")[2] not in ("main", COMMIT):
            return self._fail(404, {"X-Error-Code": "RevisionNotFound"})
        if rest.startswith("/tree/"):
            return self._send_json([self._entry(name) for name in sorted(self.server.files)])
        siblings = [self._sibling(name) for name in sorted(self.server.files)]
        repo = self.server.repo
        return self._send_json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def _sibling(self, name: str) -> dict[str, Any]:
        content = self.server.files[name]
        found: dict[str, Any] = {"rfilename": name, "size": len(content)}
        found["blobId"] = git_digest(content)
        if len(content) > SMALL:
            sha256 = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return found

    def _entry(self, name: str) -> dict[str, Any]:
        sibling = self._sibling(name)
        entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            lfs = sibling["lfs"]
            entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 130}
        return entry

    def _send_json(self, data: Any) -> None:
        content = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_file(self, file: str, body: bool) -> None:
        fault, content = self.server.faults.get(file), self.server.files.get(file)
        if content is None:
            return self._fail(404, {"X-Error-Code": "EntryNotFound"})
        if isinstance(fault, int):
            return self._fail(fault, {})
        sibling = self._sibling(file)
        etag = sibling["lfs"]["sha256"] if "lfs" in sibling else sibling["blobId"]
        sent = bytes(len(content)) if fault == "wrong" else content
        start = int((self.headers["Range"] or "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if fault == "slow":
            time.sleep(5)
        if fault == "truncated":
            self.close_connection = True
            self.wfile.write(sent[start : start + (len(sent) - start) // 2])
            return
        self.wfile.write(sent[start:])

    def _fail(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
