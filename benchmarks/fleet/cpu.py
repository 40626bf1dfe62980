"""How much CPU time a server has used: the postmaster and all its backends, the dead included."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Usage(NamedTuple):
    """One process: its parent's id, and the ticks that it and its children that were waited for have used."""

    parent: int
    ticks: int


def server_seconds(pid: int) -> float | None:
    """Return the CPU seconds of postmaster `pid` and its children so far; ``None`` where /proc does not tell.

    The postmaster waits for its children, so its own line holds the time of those that have ended. One that ends
    between two looks may be missed or counted twice: an estimate, exact to a few milliseconds.
    """
    postmaster = read_usage(pid)
    if postmaster is None:
        return None
    children = [usage for usage in map(read_usage, process_ids()) if usage is not None and usage.parent == pid]
    return (postmaster.ticks + sum(child.ticks for child in children)) / os.sysconf("SC_CLK_TCK")


def process_ids() -> list[int]:
    """Return the ids of all processes that can be seen."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def read_usage(pid: int) -> Usage | None:
    """Return the usage of process `pid`, or ``None`` if it is gone or the system has no such file."""
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def parse_stat(text: str) -> Usage:
    """Return the usage in a line of ``/proc/<pid>/stat``."""
    fields = text.rpartition(")")[2].split()  # the name of the program may hold blanks and brackets
    return Usage(parent=int(fields[1]), ticks=sum(map(int, fields[11:15])))
