"""The shell: it acts on decisions and holds no policy. Here is what users call.

`acquire` is how a request comes to its connection, `clean` is how it ends.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from psycopg import AsyncConnection, Error, IsolationLevel

from serverless_pg_kit.aio.scope import JoinedRequest, JoinedScope, Request, Scope, Work
from serverless_pg_kit.aio.waiting import pause, uninterrupted
from serverless_pg_kit.aio.warm import Warm
from serverless_pg_kit.clean_base import CLOSE_SECONDS
from serverless_pg_kit.conninfo import Conninfo
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.decisions.ending import Ending
from serverless_pg_kit.decisions.replay import replay_delay
from serverless_pg_kit.events import Replaying
from serverless_pg_kit.exchange import Answers
from serverless_pg_kit.scope_base import Begins

R = TypeVar("R")


class AsyncEngine(Warm):
    """Direct PostgreSQL connections for one process, healthy across freezes, bursts and restarts.

    Takes a `Settings` object, or single settings by name; what is not named comes from ``SERVERLESS_PG_<NAME>``.
    Opens nothing until a request needs a connection, and keeps no thread. Make it once, at module level; its methods
    may be called from several threads. Raises `SettingsError` for bad settings.
    """

    _current: ContextVar[Work | None]

    def request(
        self,
        *,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        join: bool = True,
        conninfo: Conninfo | None = None,
    ) -> Request:
        """Give a connection, inside a transaction, for the length of an ``async with`` block; the engine closes it.

        Success commits, an exception rolls back. `deadline` is in seconds from now: it bounds the acquisition and, on
        the server, every statement; ``None`` inherits that of an enclosing request, otherwise there is no limit;
        ``math.inf`` opts out. `isolation_level` and `read_only` hold for this transaction; ``None`` leaves them to the
        connection. `conninfo`, a connection string or a mapping of libpq's parameters, is another tenant's: what it
        names comes over the settings, and the connection has never served anybody else; ``None`` inherits that of an
        enclosing request, an empty one is the settings' own. A request inside a request joins it, unless `join` is
        False or it has another `conninfo`.

        Raises `SettingsError` for a bad `conninfo`; `AcquireTimeout`, `TooManyConnections`, `ConnectRejected` or
        `CredentialsRejected` before the block, and `TransactionFailed`, `CommitUnknown` or the server's error about
        COMMIT after it.
        """
        outer = self._current.get()
        if outer is None or not outer.is_open:
            tenant = None if conninfo is None else self._tenant(conninfo)
            until = math.inf if deadline is None else self._now() + deadline
            return Request(self, until, isolation_level, read_only, tenant)
        tenant = outer._tenant if conninfo is None else self._tenant(conninfo)
        if join and outer._is_for(tenant):
            return JoinedRequest(outer)
        return Request(self, self._inherited(outer, deadline), isolation_level, read_only, tenant)

    def scope(
        self,
        *,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        join: bool = True,
        conninfo: Conninfo | None = None,
        transaction: Begins = True,
    ) -> Scope:
        """Return a request to enter by ``async with``; it acquires nothing before its `connection` is touched.

        With ``transaction=False`` the connection comes idle: whoever holds it begins and ends transactions by itself,
        in psycopg's ways, and may set ``autocommit``. Everything else is done as for any request: the open proves that
        the connection lives, takes the guard, raises the lease and sets the deadline's time-outs; the end resets the
        session, after a transaction that was left open is committed, or rolled back after `Scope.fail`. It costs
        a round trip at the begin and one at the end; `isolation_level` and `read_only` say nothing then. ``"ahead"``
        saves the round trip of psycopg's own BEGIN: one is sent along with the open. A statement finds it, and whatever
        else comes first takes it back and finds the connection idle (only ``conn.info`` tells of it). A request that
        joins another takes what that one has.

        The other arguments and errors are those of `request`.
        """
        outer = self._current.get()
        if outer is None or not outer.is_open:
            tenant = None if conninfo is None else self._tenant(conninfo)
            return Scope(self, self._until(deadline), isolation_level, read_only, tenant, transaction=transaction)
        tenant = outer._tenant if conninfo is None else self._tenant(conninfo)
        if join and outer._is_for(tenant):
            return JoinedScope(outer)
        until = self._inherited(outer, deadline)
        return Scope(self, until, isolation_level, read_only, tenant, transaction=transaction)

    def _inherited(self, outer: Work, deadline: float | None) -> float:
        return outer.until if deadline is None else self._until(deadline)

    async def run_transaction(
        self,
        work: Callable[[AsyncConnection[Any]], Awaitable[R]],
        *,
        attempts: int = 5,
        deadline: float | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool | None = None,
        conninfo: Conninfo | None = None,
    ) -> R:
        """Return what ``work(conn)`` returns, run as a request of its own, all of it or nothing.

        It is run again, on a fresh transaction, after a serialization failure, a deadlock, or a connection lost before
        COMMIT was sent: at most `attempts` times in all, and within `deadline` seconds. So it must not commit by
        itself, nor do elsewhere what may not be done twice. The other arguments are those of `request`; `conninfo` is
        inherited from an enclosing one, too.

        Raises the error of the last run; `CommitUnknown`, never tried again, if the connection was lost during COMMIT;
        and what `request` raises. Inside another request it takes a second connection, of which `max_size` must allow.
        """
        until, run = self._deadline(deadline), 0
        outer = self._open_scope()
        tenant = self._tenant(conninfo) if conninfo is not None else None if outer is None else outer._tenant
        while True:
            run += 1
            request = Request(self, until.at, isolation_level, read_only, tenant)
            try:
                async with request as conn:
                    return await work(conn)
            except Error as error:
                is_closed = request.report is not None and request.report.decision == "closed"
                delay = replay_delay(error, attempts=run, limit=attempts, dice=self._clock.dice(), is_closed=is_closed)
                if delay is None or delay >= until.remaining():
                    raise
                self._announce(Replaying(run, type(error).__name__, delay))
            await pause(self._clock, delay)

    @property
    async def connection(self) -> AsyncConnection[Any]:
        """The connection of the current request, acquired at the first touch.

        Raises ``RuntimeError`` outside a request, and what `request` raises.
        """
        scope = self._open_scope()
        if scope is None:
            raise RuntimeError("no request is open: use @with_db, engine.request(), engine.scope() or engine.connect()")
        return await scope.connection

    async def connect(self, *, deadline: float | None = None, conninfo: Conninfo | None = None) -> AsyncConnection[Any]:
        """Begin a request by hand and return its connection; end it with `clean`, best in a ``finally``.

        `deadline`, `conninfo` and errors are those of `request`. If a request is open, it is joined and its connection
        returned; but one that was begun by hand and lost its connection is taken for forgotten, and a new one begins.
        Raises ``RuntimeError`` if the open one has another `conninfo`.
        """
        tenant = None if conninfo is None else self._tenant(conninfo)
        scope = self._open_scope()
        if scope is not None and scope.begun_by_hand and not self._is_connected(scope):
            await self._abort(scope)
            scope = None
        if scope is None:
            scope = Scope(self, self._until(deadline), None, None, tenant)
            scope.begun_by_hand = True
            conn = await scope.connection
            self._current.set(scope)
            return conn
        if conninfo is not None and not scope._is_for(tenant):
            raise RuntimeError("a request with another conninfo is open: end it first, or use request()")
        return await scope.connection

    async def clean(self) -> CleanReport:
        """End the request that `connect` began: commit, or roll back a failed transaction; then see to room.

        Without a request it sees to room over an idle connection, if there is one. Raises what the end of `request`
        raises, but no `TransactionFailed` for a transaction that a database error had failed before: that was seen.
        """
        scope = self._open_scope()
        if scope is None:
            return await self._clean_idle()
        self._current.set(None)
        scope.forgive()
        return await uninterrupted(self._end(scope))

    async def close(self) -> None:
        """Roll back the current request, and close all connections: idle ones now, others when their requests end.

        The engine can be used again; it opens new connections then.
        """
        self._check_process()
        scope = self._open_scope()
        if scope is not None:
            await self._abort(scope)
        self._reclaim()
        self._condemn("the engine was closed")

    async def census(self, *, conninfo: Conninfo | None = None) -> Census:
        """Ask the server now, over a connection of its own, how many connections there are and how many may come.

        `conninfo` is that of `request`, but inherited from nobody. Raises what `request` raises, and ``RuntimeError``
        if the server cannot tell, as behind a pooler.
        """
        tenant = None if conninfo is None else self._tenant(conninfo)
        slot = await self._acquire(Scope(self, self._until(None), None, None, tenant))
        slot.wants_census, slot.census, lease = True, None, None
        try:
            if slot.hook is not None:
                self._end_watch(slot)
            lease = self._lease(slot)
            await self._finish(slot, Ending.ROLLBACK, lease, self._deadline(CLOSE_SECONDS), Answers())
            census = slot.census
        except BaseException:
            self._drop(slot, "the census failed")
            raise
        finally:
            slot.wants_census = False
            if lease is not None:
                slot.lease = lease.seconds
            self._release(slot, keep=not slot.conn.closed)
        if census is None:
            raise RuntimeError("there is no census: a pooler stands between, or the server refused it (see the log)")
        return census

    async def _clean_idle(self) -> CleanReport:
        self._check_process()
        slot = self._slots.take_idle()
        if slot is None:
            return CleanReport("closed", "no connection is open")
        if not self._is_usable(slot, slot.target, self._clock.wall()):
            self._slots.give_back(None)
            return CleanReport("closed", "the idle connection was dead or too old")
        slot.begun = self._clock.monotonic()
        report, _ = await uninterrupted(self._conclude(slot, Scope(self, self._until(0), None, None)))
        return report

    def _open_scope(self) -> Work | None:
        """Return the current request; not one that has ended or is the parent's: tasks and forks inherit those."""
        scope = self._current.get()
        return scope if scope is not None and scope.is_open else None

    def _is_connected(self, scope: Work) -> bool:
        return scope._slot is not None and scope._slot.line.is_alive()

    async def _abort(self, scope: Work) -> None:
        self._current.set(None)
        scope.fail()
        await uninterrupted(self._end(scope))
