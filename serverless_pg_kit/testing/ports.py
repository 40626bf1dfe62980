"""Which TCP port a server gets."""

from __future__ import annotations

import secrets
import socket

# Below the range from which the kernel takes the ports of outgoing connections: while a server is stopped, none of
# those may take its port.
PORTS = range(20_000, 32_000)

ATTEMPTS = 20


def random_port() -> int:
    """Return a port that is probably free."""
    return PORTS[secrets.randbelow(len(PORTS))]  # not `random`: tests seed it, and all would choose the same


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
