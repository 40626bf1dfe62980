"""The kit's SQL, whole messages of the simple protocol. Subclass `Statements` for databases that need other words.

Every form here was tried against PostgreSQL 15, 16 and 18; `docs/protocol.md` tells what each part prevents. Names are
qualified with ``pg_catalog``, because a user's ``search_path`` may hide them.
"""

from __future__ import annotations

from typing import NamedTuple

from serverless_pg_kit.decisions.deadline import ServerTimeouts

GUARD_KEY = 0x7370676B
"""First key of the guard's advisory lock ("spgk" in ASCII); the second is the backend's pid."""

ORPHAN_CHECK = "500ms"
"""How often a running statement looks whether its client still lives (``client_connection_check_interval``)."""


class TransactionMode(NamedTuple):
    """How a transaction begins: the words after BEGIN; ``None`` leaves each to the session's default."""

    isolation_level: str | None = None
    read_only: bool | None = None
    deferrable: bool | None = None

    def words(self) -> str:
        """Return the clause for BEGIN, empty or with a leading blank."""
        parts = [
            f"ISOLATION LEVEL {self.isolation_level}" if self.isolation_level else "",
            {None: "", True: "READ ONLY", False: "READ WRITE"}[self.read_only],
            {None: "", True: "DEFERRABLE", False: "NOT DEFERRABLE"}[self.deferrable],
        ]
        return "".join(f" {part}" for part in parts if part)


OWN_PATH = "SET LOCAL search_path TO pg_catalog, pg_temp"
"""Keeps operators and casts of a user's schema out of the kit's statements, until the end of their transaction. Before
the census and the reaper it opens no lasting one: their message is one implicit transaction."""


class Statements:
    """The messages of the engine. `pid` is always the one the server gave at connect (BackendKeyData).

    Arguments called `fleet` are SQL literals, quoted by the caller. Methods return SQL text.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def open(self, pid: int, timeouts: ServerTimeouts, server_version: int) -> str:
        """Return the guard and the session's time-outs, in a small committed transaction of their own.

        Behind a pooler the pids differ; then the guard is not taken and the settings end with this transaction, so
        that nothing reaches another client. The transaction is its own because a rollback of the user's would undo
        the settings, and because the guard's snapshot would make SET TRANSACTION fail. Its first result column is the
        pid of the backend that ran it.
        """
        wanted = [self.shorter(name, time, pid) for name, time in self.known(timeouts, server_version)]
        columns = ["pg_catalog.pg_backend_pid()", *self.lasting(pid, server_version), *wanted]
        return f"BEGIN; {OWN_PATH}; SELECT {', '.join(columns)}; COMMIT"

    def lasting(self, pid: int, server_version: int) -> list[str]:
        """Return the expressions that hold whatever the deadline: the guard and the check for orphans."""
        return [self.guard(pid)] + ([self.orphan_check(pid)] if server_version >= 140000 else [])

    def guard(self, pid: int) -> str:
        """Return the expression that takes the guard, unless a pooler stands between."""
        return (
            f"CASE WHEN pg_catalog.pg_backend_pid() = {pid}"
            f" THEN pg_catalog.pg_advisory_lock_shared({GUARD_KEY}, {pid}) END"
        )

    def known(self, timeouts: ServerTimeouts, server_version: int) -> list[tuple[str, int]]:
        """Return name and milliseconds of the `timeouts` that are wanted and that this server has."""
        return [
            (name, milliseconds)
            for name, milliseconds, since in (
                ("statement_timeout", timeouts.statement, 0),
                ("idle_in_transaction_session_timeout", timeouts.idle_in_transaction, 0),
                ("transaction_timeout", timeouts.transaction, 170000),
            )
            if milliseconds and server_version >= since
        ]

    def shorter(self, name: str, milliseconds: int, pid: int) -> str:
        """Return the expression that sets time-out `name`, unless the role or database already has a shorter one."""
        current = f"pg_catalog.current_setting('{name}')"
        return (
            f"pg_catalog.set_config('{name}', CASE WHEN {current}::interval BETWEEN '1 ms' AND '{milliseconds} ms'"
            f" THEN {current} ELSE '{milliseconds}ms' END, pg_catalog.pg_backend_pid() <> {pid})"
        )

    def orphan_check(self, pid: int) -> str:
        """Return the expression that makes a running statement notice the death of its client.

        Only where the server runs on Linux: elsewhere some versions refuse any value but 0.
        """
        return (
            "CASE WHEN pg_catalog.version() LIKE '%linux%' THEN pg_catalog.set_config("
            f"'client_connection_check_interval', '{ORPHAN_CHECK}', pg_catalog.pg_backend_pid() <> {pid}) END"
        )

    def begin(self, mode: TransactionMode) -> str:
        """Return the user's BEGIN."""
        return f"BEGIN{mode.words()}"

    def commit(self) -> str:
        """Return the end of the user's transaction.

        Cursors are closed first: a forgotten WITH HOLD cursor is otherwise read to its end by the COMMIT.
        """
        return "CLOSE ALL; COMMIT"

    def reset(self, pid: int, server_version: int, *, keep_guard: bool) -> str:
        """Return the session's way back to its defaults, in a transaction of its own.

        Bracketed, because all that follows a COMMIT in one message is otherwise one implicit transaction, which an
        error in the census would undo. Prepared statements stay. `keep_guard` is for autocommit connections, which
        hold the guard of `pid` as long as they live.
        """
        again = f"SELECT {', '.join(self.lasting(pid, server_version))}; " if keep_guard else ""
        return (
            "BEGIN; CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; DISCARD TEMP;"
            f" DISCARD SEQUENCES; SELECT pg_catalog.pg_advisory_unlock_all(); {again}COMMIT"
        )

    def undo_open(self, pid: int, timeouts: ServerTimeouts, server_version: int, *, keep_guard: bool) -> str:
        """Return what takes back only what the open did, for users without reset; may be empty."""
        parts = [f"RESET {name}" for name, _ in self.known(timeouts, server_version)]
        if not keep_guard:
            parts.append(f"SELECT pg_catalog.pg_advisory_unlock_shared({GUARD_KEY}, {pid})")
        return "; ".join(["BEGIN", *parts, "COMMIT"]) if parts else ""

    def census(self, fleet: str) -> str:
        """Return the count of sessions and limits, one row (see `decisions.census.Census` for the columns).

        A client's session is a row with a database and a role. An ordinary role sees neither state nor kind of other
        roles' sessions; parallel workers and WAL senders, which take no slot, can be left out where they are seen.
        `fleet` is a literal.
        """
        return f"""{OWN_PATH};
SELECT pg_catalog.current_setting('max_connections')::int,
       CASE WHEN r.rolsuper THEN 0 ELSE pg_catalog.current_setting('superuser_reserved_connections')::int END,
       CASE WHEN r.rolsuper OR coalesce(reserve.mine, false) THEN 0
            ELSE coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0) END,
       CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END,
       CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END,
       a.used, a.role_used, a.database_used, a.fleet_used, a.fleet_idle
FROM pg_catalog.pg_roles r
CROSS JOIN pg_catalog.pg_database d
LEFT JOIN (SELECT pg_catalog.pg_has_role(session_user, p.oid, 'USAGE') AS mine
           FROM pg_catalog.pg_roles p WHERE p.rolname = 'pg_use_reserved_connections') reserve ON true
CROSS JOIN LATERAL (
  SELECT pg_catalog.count(*) AS used,
         pg_catalog.count(*) FILTER (WHERE s.usesysid = r.oid) AS role_used,
         pg_catalog.count(*) FILTER (WHERE s.datid = d.oid) AS database_used,
         pg_catalog.count(*) FILTER (WHERE f.ours) AS fleet_used,
         pg_catalog.count(*) FILTER (WHERE f.ours AND s.state = 'idle') AS fleet_idle
  FROM pg_catalog.pg_stat_get_activity(NULL) s
  CROSS JOIN LATERAL (SELECT s.usesysid = r.oid AND s.datid = d.oid
                             AND pg_catalog.split_part(s.application_name, ':', 1) = {fleet} AS ours) f
  WHERE s.datid IS NOT NULL AND s.usesysid IS NOT NULL
    AND s.backend_type IS DISTINCT FROM 'parallel worker' AND s.backend_type IS DISTINCT FROM 'walsender') a
WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()"""

    def reap(self, fleet: str, min_idle_seconds: float, limit: int | None) -> str:
        """Return the reaper: it ends idle sessions of the fleet, longest idle first, each only if it gets its guard.

        To be sent alone and outside any transaction: inside one its locks would stay held and the victims hang. The
        locks are taken in the target list of the outer query, never in a WHERE, where the planner may evaluate them
        before the other conditions. `fleet` is a literal. The rows are pid and whether it was ended (NULL: guarded).
        """
        return f"""{OWN_PATH};
WITH victim AS MATERIALIZED (
  SELECT a.pid FROM pg_catalog.pg_stat_get_activity(NULL) a
  WHERE a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
    AND a.datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND pg_catalog.split_part(a.application_name, ':', 1) = {fleet}
    AND a.state = 'idle' AND a.pid <> pg_catalog.pg_backend_pid()
    AND a.state_change < pg_catalog.statement_timestamp() - interval '{min_idle_seconds:.6f} seconds'
  ORDER BY a.state_change LIMIT {"ALL" if limit is None else limit} OFFSET 0)
SELECT pid, CASE WHEN pg_catalog.pg_try_advisory_xact_lock({GUARD_KEY}, pid)
                 THEN pg_catalog.pg_terminate_backend(pid) END
FROM victim"""
