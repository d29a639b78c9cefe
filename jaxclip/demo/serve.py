"""Serve the page on loopback until Ctrl-C, with a folder of uploads that goes with it."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxclip.demo.guard import Guard

HOST = "127.0.0.1"  # and no other: nothing beside this machine can reach the page
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def open_socket(port: int) -> socket.socket:
    """A socket that listens on loopback; ValueError where the port is taken. Port 0: a free one."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        opened.listen()  # who connects before the page is ready waits for it
    except OSError as error:
        opened.close()
        raise ValueError(
            f"--port: expected a free port, got {port} ({error.strerror}); give another one or 0"
        ) from None
    return opened


def serve(opened: socket.socket, make: Callable[[Path], Any], say: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C.

    Args:
      opened: of `open_socket`.
      make: the page's ASGI application, from the folder of uploads.
      say: told the address once the page is ready.
    """
    port = opened.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="jaxclip-demo-") as folder:
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=folder)  # read when gradio is imported
        app = make(Path(folder))
        import uvicorn

        config = uvicorn.Config(
            Guard(app, port, Path(folder)), log_level="warning", timeout_graceful_shutdown=1
        )
        say(f"http://{HOST}:{port}")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[opened])
