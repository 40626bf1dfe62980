"""Whether a pooler stands between, as far as can be told without asking. The pids tell the rest (`opening.introduce`).

A pooler shares the server's sessions out among its clients, so nothing may be left in them.
"""

from __future__ import annotations

import re
from typing import Literal

Pooler = Literal["auto", "none", "pgbouncer", "rds-proxy", "supavisor", "neon"]

HINTS: tuple[tuple[Pooler, str], ...] = (
    ("rds-proxy", r".+\.proxy-[^.]+\.[^.]+\.rds\.amazonaws\.com(\.cn)?"),
    ("neon", r"[^.]+-pooler\..+\.neon\.(tech|build)"),
    ("supavisor", r".+\.pooler\.supabase\.com"),
)
"""Host names that providers give their poolers. Ports are no hint: 6432 and 6543 are habits, and the pids know."""


LARGEST_PID = 2**22
"""No server's own: Linux counts no further, other systems stop much earlier. Poolers that draw theirs at random, as
PgBouncer does from all numbers of 32 bits, seldom stay below."""

NO_TURN = "no connection of the pooler's to its server came free in time"
NO_TURN_ADVICE = (
    "raise the pooler's number of connections to the server (PgBouncer: default_pool_size) or max_wait, end"
    " transactions sooner, and see whether the server behind the pooler is up"
)


def could_be_pid(pid: int) -> bool:
    """Tell whether a server's own process may have the `pid` that was told at connect; otherwise it is a pooler's."""
    return 0 < pid <= LARGEST_PID


def pooler_of(pooler: Pooler, host: str) -> Pooler | None:
    """Return which pooler stands in front of the server at `host` by the setting `pooler`, or ``None``: ask the server.

    With ``"auto"`` the name of the host decides; ``"none"`` says that the name misleads.
    """
    if pooler == "none":
        return None
    return pooler if pooler != "auto" else hinted(host)


def hinted(host: str) -> Pooler | None:
    """Return the pooler that is known by host names like `host`, ``None`` for any other."""
    name = host.rstrip(".").lower()
    return next((pooler for pooler, pattern in HINTS if re.fullmatch(pattern, name)), None)
