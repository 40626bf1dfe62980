"""What the ordinary request says, decided once for all of them, as long as nothing changes.

Most requests on a warm connection are alike: the same transaction, the same lease, no census due. What they send then
differs in nothing but the values of the time-outs. A `Routine` holds it ready; whatever is out of the ordinary is
planned anew, by `opening.plan_open` and `closing.plan_close`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from serverless_pg_kit.closing import Closing, will_prepare, write_close
from serverless_pg_kit.decisions.deadline import LEASE_MARGIN, LONGEST_TIMEOUT, ORPHAN_GRACE, rounded_timeout
from serverless_pg_kit.decisions.lease import Lease
from serverless_pg_kit.history import NEVER
from serverless_pg_kit.opening import NOTHING, Opening, committed, write_open
from serverless_pg_kit.slots import Slot
from serverless_pg_kit.statements import Statements


class Routine(NamedTuple):
    """What ordinary requests say on one connection, as long as `lease` (``None``: without one) is what it sleeps under.

    `opening` is for requests without a deadline; `timed_opening`, with ``%d`` in place of each of so many `timeouts`,
    for those whose deadline is up to `longest` seconds away, and `prepared_opening` for those of them whose time-outs
    are prepared; `closing` commits, `idle_closing` finds nothing to commit.
    """

    lease: Lease | None
    opening: bytes
    timed_opening: bytes
    prepared_opening: bytes
    longest: float
    timeouts: int
    closing: Closing
    idle_closing: Closing

    def open(self, remaining: float) -> Opening | None:
        """Return the open exchange of a request with `remaining` seconds left, ``None`` if it is no ordinary one."""
        if remaining <= self.longest:
            return Opening(self.timed(remaining))
        return Opening(self.opening) if remaining == math.inf else None

    def timed(self, remaining: float) -> bytes:
        """Return the open exchange of a request with `remaining` seconds left, not more than `longest`."""
        inner = int(remaining * 1000) or 1
        outer = inner + ORPHAN_GRACE
        return self.timed_opening % (inner, outer, outer)[: self.timeouts]


def timed_opening(slot: Slot, routine: Routine, remaining: float) -> bytes:
    """Return the open exchange on `slot` for an ordinary request with `remaining` seconds left.

    It says the time-outs, because they are not prepared. If these are about as many seconds as the time before, the
    close exchange is to prepare them.
    """
    timeout, before = rounded_timeout(int(remaining * 1000)), slot.latest_timeout
    slot.latest_timeout = timeout
    if timeout == before and slot.prepared is not None:
        slot.wanted_timeout, slot.steady_until = timeout, NEVER
    return routine.timed(remaining)


def plan_routine(
    slot: Slot, statements: Statements, lease: Lease | None, session: Mapping[str, str] = NOTHING, *, reset: bool
) -> Routine | None:
    """Return the routine of `slot` under `lease`, ``None`` if its requests differ too much from each other. `session`
    are the settings that each starts from. Without `reset` there is none for requests with a deadline: the session may
    have time-outs of its own.

    For connections that have settled: known to be direct, in use for a while, with time-outs of nobody else's.
    """
    has_settled = slot.direct and not (slot.is_autocommit or slot.own_timeouts or will_prepare(slot))
    if not has_settled or type(statements) is not Statements:  # other words may hold anything, a percent sign too
        return None
    seconds = None if lease is None else lease.seconds
    basis = [statements.session(session, slot.pid)] if session and reset else []
    longest = (LONGEST_TIMEOUT / 1000 if seconds is None else seconds) - LEASE_MARGIN
    timed = dict.fromkeys(slot.timeout_names, "%d")
    return Routine(
        lease,
        write_open(slot, statements, slot.mode, {} if lease is None else {"idle_session_timeout": 0}),
        write_open(slot, statements, slot.mode, timed),
        committed(statements.timed_open(), statements.begin(slot.mode), slot),
        longest if reset else -math.inf,
        len(slot.timeout_names),
        write_close(slot, statements, basis, commit=True, reset=reset, lease=seconds),
        write_close(slot, statements, basis, commit=False, reset=reset, lease=seconds),
    )
