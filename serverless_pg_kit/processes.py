"""Which process this is, counted from the first: cheaper to ask at every request than the system."""

from __future__ import annotations

import os

generation: int = 0
"""How often the process that imported the kit has become another one since: by a fork, or a restored snapshot."""


def start_anew() -> None:
    """Count a new process: what was opened before belongs to another one."""
    global generation
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=start_anew)
