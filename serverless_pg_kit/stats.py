"""What `Engine.stats` returns. Loaded when somebody looks."""

from __future__ import annotations

from typing import NamedTuple


class Stats(NamedTuple):
    """What happened in this process since the engine was made, or since the process was forked; a snapshot.

    `open` connections are in use, idle or being opened now; `in_use` counts the requests that have one or wait for one
    to open, `waiting` those that wait in line because `max_size` are in use. `killed` counts ended sessions, `reapings`
    the times that any were ended. `connect_seconds` is what requests waited for new connections, `wait_seconds` in
    line, `failure_seconds` in vain; `frozen_seconds` is how long the process stood still. The other fields count the
    events of the same meaning.
    """

    open: int = 0
    in_use: int = 0
    waiting: int = 0
    connects: int = 0
    refusals: int = 0
    retries: int = 0
    pauses: int = 0
    credential_refreshes: int = 0
    reuses: int = 0
    waits: int = 0
    failures: int = 0
    downs: int = 0
    losses: int = 0
    expirations: int = 0
    leases: int = 0
    thaws: int = 0
    restarts: int = 0
    holds: int = 0
    cancels: int = 0
    commits: int = 0
    commit_failures: int = 0
    rollbacks: int = 0
    replays: int = 0
    censuses: int = 0
    reapings: int = 0
    killed: int = 0
    yields: int = 0
    closes: int = 0
    maintenance_failures: int = 0
    connect_seconds: float = 0.0
    wait_seconds: float = 0.0
    failure_seconds: float = 0.0
    frozen_seconds: float = 0.0
