"""Messages between the simulator's processes: JSON over a socket that keeps message boundaries."""

from __future__ import annotations

import json
import socket
from typing import Any

# The kernel's default send buffer, which bounds a message on such a socket.
MAX_MESSAGE = 212_992


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends; the caller closes both."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message. Raises `OSError` if the other side is gone or the message is longer than `MAX_MESSAGE`."""
    channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """Return the next message, waiting for it, or ``None`` if the other side is gone."""
    try:
        data = channel.recv(MAX_MESSAGE)
    except ConnectionError:
        return None
    return json.loads(data) if data else None
