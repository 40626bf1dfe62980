# Written by .ci/make_sync.py from aio/ahead.py: edit that, and run it.
"""A BEGIN that was sent ahead, with the open exchange, on a connection that its user takes for an idle one.

psycopg does all its waiting through ``conn.wait``. Until the first statement somebody stands in front of it: what
psycopg begins a transaction for finds one, and everything else finds the connection idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.abc import RV, PQGen

from serverless_pg_kit.decisions.deadline import OPEN_SECONDS, Deadline

if TYPE_CHECKING:
    from serverless_pg_kit.slots import Slot

STATEMENTS = frozenset(
    {
        "_execute_gen",
        "_executemany_gen_no_pipeline",
        "_stream_send_gen",
        "_start_copy_gen",
        "_declare_gen",
    }
)
"""psycopg's generators that begin a transaction where there is none. Under another name they only cost a round trip:
then the one that was sent ahead is taken back first, as it is for pipelines, which have their own way to begin."""

ENDINGS = frozenset({"_commit_gen", "_rollback_gen"})
"""psycopg's generators that do nothing where there is no transaction."""


class Ahead:
    """Stands in for the ``wait`` of a connection inside a transaction that nobody has asked for yet.

    Everybody who waits through it holds the connection's lock.
    """

    __slots__ = ("_deadline", "_outer", "_slot")

    def __init__(self, slot: Slot, deadline: Deadline) -> None:
        self._slot = slot
        self._deadline = deadline
        self._outer = {name: value for name, value in vars(slot.conn).items() if name == "wait"}
        vars(slot.conn)["wait"] = self

    def end(self) -> None:
        """Give ``conn.wait`` back, unless that was done: the transaction is wanted, or over."""
        self._slot.ahead = None
        own = vars(self._slot.conn)
        if own.get("wait") is self:
            del own["wait"]
            own.update(self._outer)

    def __call__(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV | None:
        """Do what ``conn.wait`` does. Raises what that raises, and ``psycopg.OperationalError`` if the connection is
        lost while the transaction is taken back."""
        name = getattr(gen, "__name__", "")
        if name in ENDINGS:
            gen.close()
            return None
        self.end()
        conn = self._slot.conn
        if name not in STATEMENTS:
            until = self._deadline.within(OPEN_SECONDS)
            conn.pgconn.send_query(b"ROLLBACK")
            self._slot.line.receive([], until.now(), until.at, until.now)
        return conn.wait(gen, *args, **kwargs)  # type: ignore[no-any-return]
