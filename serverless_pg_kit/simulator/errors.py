"""The one error of the simulator."""

from __future__ import annotations


class DemoError(RuntimeError):
    """The demo cannot be played; the message says why."""
