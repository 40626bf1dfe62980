"""Process groups: how they are frozen, thawed and ended."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def freeze(group: int) -> None:
    """Stop the processes of `group` where they are; the kernel keeps their connections open."""
    send(group, signal.SIGSTOP)


def thaw(group: int) -> None:
    """Let the processes of `group` go on."""
    send(group, signal.SIGCONT)


def kill(group: int) -> None:
    """End the processes of `group`, frozen or not."""
    send(group, signal.SIGKILL)


def send(group: int, number: signal.Signals) -> None:
    """Send a signal to all processes of `group`, if there are any."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)
