"""For tests of several processes."""

import socket

PATIENCE = 300  # seconds for both, on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
