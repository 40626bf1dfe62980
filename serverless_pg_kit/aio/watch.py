"""Watches how a request uses its connection, where the server alone cannot: between the statements.

psycopg does all its waiting through ``conn.wait``. The watch stands in front of it, and hands on to it as long as there
is nothing to do: no thread, no timer.
"""

from __future__ import annotations

import math
import threading
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from psycopg import Error, OperationalError, capabilities
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus

from serverless_pg_kit.aio.waiting import uninterrupted
from serverless_pg_kit.decisions.deadline import ORPHAN_GRACE, Deadline
from serverless_pg_kit.decisions.role import is_refused_write

if TYPE_CHECKING:
    from serverless_pg_kit.slots import Slot

GRACE = ORPHAN_GRACE / 1000
"""Seconds after the open in which a statement may begin so that the server's time-out for it comes soon enough."""

PATIENCE = GRACE + 0.05
"""Seconds after the deadline in which the server's own time-out must have been heard of."""

CANCEL_SECONDS = 0.25
"""Time for a cancellation to reach the server, and then again for the cancelled statement to end."""


class Watch:
    """Stands in for the ``wait`` of a connection during one request that ends at `deadline`. `monotonic` is the clock.

    The server's time-out holds for each statement anew: one that begins late in a request would outlive its deadline.
    The watch cancels it there. One that begins in the first moments is left to the server's own time-out, which comes
    hardly later; a server that says nothing even then is not asked again. Behind a pooler there is no such time-out.
    The watch also notes the longest pause between two uses, and whether a write was refused, which may be caught.
    """

    __slots__ = (
        "_conn",
        "_deadline",
        "_line",
        "_monotonic",
        "_server_helps_until",
        "_used_at",
        "_wait",
        "cancelled",
        "longest_pause",
        "refused_write",
    )

    def __init__(self, slot: Slot, deadline: Deadline, monotonic: Callable[[], float]) -> None:
        self._conn, self._line = slot.conn, slot.line
        self._wait = slot.conn.wait
        self._deadline = deadline
        self._monotonic = monotonic
        self._used_at = now = monotonic()
        self._server_helps_until = now + GRACE if slot.direct else now
        self.longest_pause: float = 0.0
        self.cancelled: bool = False
        self.refused_write: bool = False
        vars(slot.conn)["wait"] = self

    def end(self) -> None:
        """Give ``conn.wait`` back: what follows is the engine's own business."""
        self.longest_pause = max(self.longest_pause, self._monotonic() - self._used_at)
        vars(self._conn).pop("wait", None)

    async def __call__(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Do what ``conn.wait`` does. Raises what that raises: ``QueryCanceled`` for a statement cancelled here."""
        now = self._monotonic()
        self.longest_pause = max(self.longest_pause, now - self._used_at)
        try:
            if self._deadline.at == math.inf and not (args or kwargs):  # async only - psycopg's can be cancelled once
                return await self._line.wait(gen, self._deadline)  # type: ignore[no-any-return]  # async only
            # What names an interval or a time-out of its own, as `notifies()` does, ends by itself.
            if args or kwargs or self._deadline.at == math.inf:
                return await self._wait(gen, *args, **kwargs)  # type: ignore[no-any-return]
            if now < self._server_helps_until:
                patience = Deadline(self._deadline.at + PATIENCE, self._monotonic)
                return await self._line.wait(gen, patience)  # type: ignore[no-any-return]
            return await self._line.wait(gen, self._deadline, self._cancel)  # type: ignore[no-any-return]
        except CancelledError:  # async only
            await uninterrupted(self._give_up(gen))  # async only
            raise  # async only
        except Error as error:
            self.refused_write = self.refused_write or is_refused_write(error)
            raise
        finally:
            self._used_at = self._monotonic()

    async def _cancel(self) -> Deadline:
        """Ask the server to cancel what runs; return the deadline for its end.

        Before version 17 libpq can only block while it asks: that is done elsewhere, so that a server which says
        nothing holds nobody.
        """
        self.cancelled = True
        if capabilities.has_cancel_safe():
            with suppress(OperationalError):
                await self._conn.cancel_safe(timeout=CANCEL_SECONDS)
        else:
            threading.Thread(target=self._conn.cancel, daemon=True).start()
        return Deadline(self._monotonic() + CANCEL_SECONDS, self._monotonic)

    async def _give_up(self, gen: PQGen[Any]) -> None:  # async only
        """Cancel what runs, as psycopg does when a task is cancelled: the connection can go on."""  # async only
        if self._conn.pgconn.transaction_status == TransactionStatus.ACTIVE:  # async only
            with suppress(Error):  # async only
                await self._line.wait(gen, await self._cancel())  # async only
