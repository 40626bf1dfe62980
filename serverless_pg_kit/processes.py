"""Which process this is, counted from the first: cheaper to ask at every request than the system."""

from __future__ import annotations

import os

generation: int = 0
"""How many forks lie between this process and the one that imported the kit."""


def _count_fork() -> None:
    global generation
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)
