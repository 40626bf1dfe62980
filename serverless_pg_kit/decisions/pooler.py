"""Whether a pooler stands between, as far as the name of the host tells. The pids tell the rest (`opening.introduce`).

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
