"""The kit's SQL, whole messages of the simple protocol. Subclass `Statements` for databases that need other words.

Every form here was tried against PostgreSQL 15, 16 and 18; `docs/protocol.md` tells what each part prevents. Names are
qualified with ``pg_catalog``, because a user's ``search_path`` may hide them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from serverless_pg_kit.decisions.deadline import ORPHAN_CHECK, timeout_names

GUARD_KEY = 0x7370676B
"""First key of the guard's advisory lock ("spgk" in ASCII); the second is the backend's pid."""

ELECTION_KEY = 0x73706765
"""First key of the lock that elects the fleet's cleaner ("spge"); the second stands for fleet, role and interval."""


ENDLESS = {"idle_session_timeout": 0}
"""The settings of a request without a deadline, where there are leases: none may end it."""


class TransactionMode(NamedTuple):
    """How a transaction begins: the words after BEGIN; ``None`` leaves each to the session's default."""

    isolation_level: str | None = None
    read_only: bool | None = None
    deferrable: bool | None = None

    def words(self) -> str:
        """Return the clause for BEGIN, empty or with a leading blank."""
        if self == SESSION_MODE:
            return ""
        parts = [
            f"ISOLATION LEVEL {self.isolation_level}" if self.isolation_level else "",
            {None: "", True: "READ ONLY", False: "READ WRITE"}[self.read_only],
            {None: "", True: "DEFERRABLE", False: "NOT DEFERRABLE"}[self.deferrable],
        ]
        return "".join(f" {part}" for part in parts if part)


SESSION_MODE = TransactionMode()

OWN_PATH = "SET LOCAL search_path TO pg_catalog, pg_temp"
"""Keeps operators and casts of a user's schema out of a longer statement of the kit, until the end of its transaction.
Short ones name the schema of their operators instead, which costs the server less."""

OWN_ROLE = "SET LOCAL ROLE NONE"
"""Sees and ends the login role's sessions, whatever role the session starts from: another one may not be allowed to."""


class Statements:
    """The messages of the engine. `pid` is always the one the server gave at connect (BackendKeyData).

    Arguments called `fleet` are SQL literals, quoted by the caller. `settings` are the session settings, by name in
    milliseconds, that a request needs. Methods return SQL text.

    The open exchange comes in three forms. `first_open` introduces a new connection. `open` is for connections known
    to be direct. `prepared_open` says the same with a prepared statement, in less of the server's time, once a
    connection has shown that it is used often.

    All of them check for themselves that no pooler stands between: behind one the pids differ (and the prepared
    statement does not exist), the guard is not taken and no setting outlives the small transaction that they are in,
    so that nothing reaches another client. That transaction is committed, because a rollback of the user's would undo
    the settings, and because the guard's snapshot would make SET TRANSACTION fail.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def first_open(self, pid: int, settings: Mapping[str, int | str], server_version: int) -> str:
        """Return the first open of a connection, and every one where session settings are kept.

        Its columns are the backend's pid, whether the server runs on Linux, the session's own time-outs in milliseconds
        (`timeout_names`); more follow that are of no interest.
        """
        known = timeout_names(server_version)
        columns = [
            self.own_pid(),
            self.linux(),
            *(self.own_timeout(name) for name in known),
            self.guard(pid),
            self.orphan_check(pid) if server_version >= 140000 else "NULL",
            *(self.shorter(name, value, pid) for name, value in settings.items() if name in known),
            *(self.setting(name, str(value), pid) for name, value in settings.items() if name not in known),
        ]
        return f"{OWN_PATH}; SELECT {', '.join(columns)}"

    def open(self, pid: int, settings: Mapping[str, int | str]) -> str:
        """Return the open of a connection known to be direct: the guard and `settings`. First column: the pid."""
        wanted = [self.setting(name, str(value), pid) for name, value in settings.items()]
        return f"SELECT {', '.join([self.own_pid(), self.guard(pid), *wanted])}"

    def prepared_open(self, pid: int, settings: Mapping[str, int | str]) -> str:
        """Return what `open` does, for a connection on which `prepare` was run; what that was given is not repeated."""
        if settings == ENDLESS:
            return "EXECUTE serverless_pg_kit_endless_guard"
        return "; ".join(["EXECUTE serverless_pg_kit_guard", *self.assignments(settings)])

    def prepare(self, pid: int, busy: Mapping[str, int | str], idle: Mapping[str, int | str], *, reset: bool) -> str:
        """Return the statements that `prepared_open` and the way back use. The first makes the settings `busy`, which
        each request has, the second the settings `idle`, which the session sleeps under. Without `reset` that one
        gives back nothing but the guard."""
        guard = [self.lock(pid), *map(self.assignment, busy, busy.values())]
        endless = [*guard, *map(self.assignment, ENDLESS, ENDLESS.values())]
        kept = map(self.assignment, idle, idle.values())
        release = [self.no_role(), *kept, self.unlock_all()] if reset else [*kept, self.unlock(pid)]
        statements = {"guard": guard, "release": release}
        if ENDLESS.keys() <= idle.keys():  # the server has leases
            statements["endless_guard"] = endless
        return "; ".join(
            f"PREPARE serverless_pg_kit_{name} AS {self.silent(calls)}" for name, calls in statements.items()
        )

    def timed_open(self) -> str:
        """Return what `prepared_open` does, with the settings that `prepare_timed` was given last."""
        return "EXECUTE serverless_pg_kit_timed_guard"

    def prepare_timed(self, pid: int, settings: Mapping[str, int | str], *, again: bool) -> str:
        """Return the statement that `timed_open` uses, which makes the `settings`; `again` says that there is one."""
        calls = [self.lock(pid), *map(self.assignment, settings, settings.values())]
        before = "DEALLOCATE serverless_pg_kit_timed_guard; " if again else ""
        return f"{before}PREPARE serverless_pg_kit_timed_guard AS {self.silent(calls)}"

    def silent(self, calls: Iterable[str]) -> str:
        """Return the query that makes all of the function `calls`, in this order, and answers with no row and no
        column: a row costs the server and the client more than most of the calls. None of them may return NULL.

        Their results are alternatives because the planner leaves those as they are; what AND joins it sorts by cost.
        """
        return f"SELECT WHERE {' OR '.join(f'{call} IS NULL' for call in calls)}"

    def assignment(self, name: str, value: int | str) -> str:
        """Return the call that gives `name` a `value` for the session, where the backend is known to be ours."""
        return f"pg_catalog.set_config('{name}', '{value}', false)"

    def no_role(self) -> str:
        """Return the call that does what ``RESET ROLE`` does, if there is a role: to look costs less than to set.

        As a value, NULL stands for the default.
        """
        return (
            "CASE WHEN pg_catalog.current_setting('role') OPERATOR(pg_catalog.=) 'none' THEN 'none'"
            " ELSE pg_catalog.set_config('role', NULL, false) END"
        )

    def unlock(self, pid: int) -> str:
        """Return the call that gives the guard of the backend `pid` back."""
        return f"pg_catalog.pg_advisory_unlock_shared({GUARD_KEY}, {pid})"

    def unlock_all(self) -> str:
        """Return the call that releases all advisory locks of the session."""
        return "pg_catalog.pg_advisory_unlock_all()"

    def assignments(self, settings: Mapping[str, int | str]) -> list[str]:
        """Return the plain SETs of `settings`: for places where the backend is known to be ours."""
        return [f"SET {name} = {value}" for name, value in settings.items()]

    def own_pid(self) -> str:
        """Return the expression for the pid of the backend that runs the statement."""
        return "pg_catalog.pg_backend_pid()"

    def linux(self) -> str:
        """Return the expression that tells whether the server runs on Linux."""
        return "pg_catalog.version() LIKE '%linux%'"

    def own_timeout(self, name: str) -> str:
        """Return the expression for the session's own time-out `name`, in milliseconds (0: none)."""
        seconds = f"EXTRACT(epoch FROM pg_catalog.current_setting('{name}')::interval)"
        return f"({seconds} * 1000)::bigint"

    def guard(self, pid: int) -> str:
        """Return the expression that takes the guard, unless a pooler stands between."""
        return f"CASE WHEN {self.own_pid()} OPERATOR(pg_catalog.=) {pid} THEN {self.lock(pid)} END"

    def lock(self, pid: int) -> str:
        """Return the expression that takes the guard of the backend `pid`."""
        return f"pg_catalog.pg_advisory_lock_shared({GUARD_KEY}, {pid})"

    def setting(self, name: str, value: str, pid: int) -> str:
        """Return the expression that gives `name` a `value`: for the session, or where a pooler stands between for
        this transaction alone."""
        return f"pg_catalog.set_config('{name}', '{value}', {self.own_pid()} OPERATOR(pg_catalog.<>) {pid})"

    def session(self, settings: Mapping[str, str], pid: int) -> str:
        """Return what gives the session its own `settings`, texts by name; empty without any."""
        wanted = [self.setting(name, value.replace("'", "''"), pid) for name, value in settings.items()]
        return f"SELECT {', '.join(wanted)}" if wanted else ""

    def shorter(self, name: str, value: int | str, pid: int) -> str:
        """Return the expression that sets time-out `name`, unless the role or database already has a shorter one."""
        current = f"pg_catalog.current_setting('{name}')"
        return (
            f"pg_catalog.set_config('{name}', CASE WHEN {current}::interval BETWEEN '1 ms' AND '{value} ms'"
            f" THEN {current} ELSE '{value}ms' END, pg_catalog.pg_backend_pid() <> {pid})"
        )

    def orphan_check(self, pid: int) -> str:
        """Return the expression that makes a running statement notice the death of its client.

        Only where the server runs on Linux: elsewhere some versions refuse any value but 0.
        """
        wanted = self.setting("client_connection_check_interval", str(ORPHAN_CHECK), pid)
        return f"CASE WHEN {self.linux()} THEN {wanted} END"

    def begin(self, mode: TransactionMode) -> str:
        """Return the user's BEGIN."""
        return f"BEGIN{mode.words()}"

    def commit(self) -> str:
        """Return the end of the user's transaction."""
        return "COMMIT"

    def reset(
        self,
        pid: int,
        settings: Mapping[str, int | str],
        *,
        keep_guard: bool,
        prepared: Mapping[str, int | str] | None,
        other_user: bool,
    ) -> str:
        """Return the session's way back to its defaults, but with `settings`; cursors were closed before.

        Prepared statements stay. `keep_guard` is for autocommit connections, which hold the guard of `pid` as long as
        they live; `prepared` are the ``idle`` settings of `prepare`, ``None`` if that was not run; `other_user` tells
        whether the session goes by another user name than at its begin.
        """
        clean, guard = "RESET ALL; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES", [f"SELECT {self.guard(pid)}"]
        user = "SET SESSION AUTHORIZATION DEFAULT"
        if prepared is None:
            release = f"SELECT {self.unlock_all()}"
            return "; ".join([user, "RESET ROLE", clean, *self.assignments(settings), release, *guard * keep_guard])
        others = {name: value for name, value in settings.items() if prepared.get(name) != value}
        way_back = [clean, "EXECUTE serverless_pg_kit_release", *self.assignments(others)]
        return "; ".join([*[user] * other_user, *way_back, *guard * keep_guard])

    def close_cursors(self) -> str:
        """Return what closes every cursor: a forgotten WITH HOLD cursor is otherwise read to its end by COMMIT."""
        return "CLOSE ALL"

    def undo_open(
        self,
        pid: int,
        changed: Iterable[str],
        settings: Mapping[str, int | str],
        *,
        keep_guard: bool,
        prepared: Mapping[str, int | str] | None,
    ) -> str:
        """Return what takes back only what the open did, for users without reset: the settings `changed` and the
        guard. `settings` are set instead. May be empty. `keep_guard` and `prepared` are those of `reset`."""
        parts = [f"RESET {name}" for name in changed if name not in settings]
        if prepared is not None and not keep_guard:
            others = {name: value for name, value in settings.items() if prepared.get(name) != value}
            return "; ".join([*parts, "EXECUTE serverless_pg_kit_release", *self.assignments(others)])
        return "; ".join([*parts, *self.assignments(settings), *[f"SELECT {self.unlock(pid)}"] * (not keep_guard)])

    def census(self, fleet: str, pid: int) -> str:
        """Return the count of sessions and limits, one row (see `decisions.census.Census` for the columns), or none
        where a pooler stands between.

        A client's session is a row with a database and a role. An ordinary role sees neither state nor kind of other
        roles' sessions; parallel workers and WAL senders, which take no slot, can be left out where they are seen.
        `fleet` is a literal.
        """
        return f"""{OWN_PATH}; {OWN_ROLE};
SELECT pg_catalog.current_setting('max_connections')::int,
       CASE WHEN r.rolsuper THEN 0 ELSE pg_catalog.current_setting('superuser_reserved_connections')::int END,
       CASE WHEN r.rolsuper OR coalesce(reserve.mine, false) THEN 0
            ELSE coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0) END,
       CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END,
       CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END,
       a.used, a.role_used, a.database_used, a.fleet_used, a.fleet_idle, a.fleet_new
FROM pg_catalog.pg_roles r
CROSS JOIN pg_catalog.pg_database d
LEFT JOIN (SELECT pg_catalog.pg_has_role(session_user, p.oid, 'USAGE') AS mine
           FROM pg_catalog.pg_roles p WHERE p.rolname = 'pg_use_reserved_connections') reserve ON true
CROSS JOIN LATERAL (
  SELECT pg_catalog.count(*) AS used,
         pg_catalog.count(*) FILTER (WHERE s.usesysid = r.oid) AS role_used,
         pg_catalog.count(*) FILTER (WHERE s.datid = d.oid) AS database_used,
         pg_catalog.count(*) FILTER (WHERE f.ours) AS fleet_used,
         pg_catalog.count(*) FILTER (WHERE f.ours AND s.state = 'idle') AS fleet_idle,
         pg_catalog.count(*) FILTER (WHERE f.ours AND s.backend_start > pg_catalog.statement_timestamp()
                                                                        - interval '1 second') AS fleet_new
  FROM pg_catalog.pg_stat_get_activity(NULL) s
  CROSS JOIN LATERAL (SELECT s.usesysid = r.oid AND s.datid = d.oid
                             AND pg_catalog.split_part(s.application_name, ':', 1) = {fleet} AS ours) f
  WHERE s.datid IS NOT NULL AND s.usesysid IS NOT NULL
    AND s.backend_type IS DISTINCT FROM 'parallel worker' AND s.backend_type IS DISTINCT FROM 'walsender') a
WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database() AND {self.own_pid()} = {pid}"""

    def reap(self, fleet: str, min_idle_seconds: float, limit: int | None, interval: float) -> str:
        """Return the reaper: it ends idle sessions of the fleet, longest idle first, each only if it gets its guard.

        To be sent alone and outside any transaction: inside one its locks would stay held and the victims hang. The
        locks are taken in the target list of the outer query, never in a WHERE, where the planner may evaluate them
        before the other conditions. `fleet` is a literal. With an `interval` in seconds it ends nobody if another
        session of the fleet was elected for the present one. The rows, at least one, are the pid (NULL: nobody was
        found), whether it was ended (NULL: guarded), the second key of the election's lock, and whether this session
        was elected; it holds the lock until the interval is over.
        """
        age = f"interval '{min_idle_seconds:.6f} seconds'"
        return f"""{OWN_PATH}; {OWN_ROLE};
WITH election AS MATERIALIZED (SELECT {self.election(fleet, interval)} AS key),
cleaner AS MATERIALIZED (
  SELECT key, {f"pg_catalog.pg_try_advisory_lock({ELECTION_KEY}, key)" if interval else "true"} AS elected
  FROM election),
victim AS MATERIALIZED (
  SELECT a.pid FROM cleaner c CROSS JOIN pg_catalog.pg_stat_get_activity(NULL) a
  WHERE c.elected
    AND a.usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
    AND a.datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND pg_catalog.split_part(a.application_name, ':', 1) = {fleet}
    AND a.state = 'idle' AND a.pid <> pg_catalog.pg_backend_pid()
    AND a.state_change < pg_catalog.statement_timestamp() - {age}
  ORDER BY a.state_change LIMIT {"ALL" if limit is None else limit} OFFSET 0)
SELECT v.pid, CASE WHEN pg_catalog.pg_try_advisory_xact_lock({GUARD_KEY}, v.pid)
                   THEN pg_catalog.pg_terminate_backend(v.pid) END, c.key, c.elected
FROM cleaner c LEFT JOIN victim v ON true"""

    def election(self, fleet: str, interval: float) -> str:
        """Return the expression for the second key of the election's lock: another one in every interval, so that a
        cleaner that was frozen with the lock hinders nobody for longer."""
        if not interval:
            return "0"
        number = f"pg_catalog.floor(EXTRACT(epoch FROM pg_catalog.statement_timestamp()) / {interval:.3f})"
        return f"pg_catalog.hashtext(pg_catalog.concat_ws('/', {fleet}, session_user, {number}))"

    def stay_elected(self, key: int) -> str:
        """Return what takes the election's lock again after a reset has released it."""
        return f"SELECT pg_catalog.pg_try_advisory_lock({ELECTION_KEY}, {key})"

    def resign(self, key: int) -> str:
        """Return what gives the election's lock back, for users without reset."""
        return f"SELECT pg_catalog.pg_advisory_unlock({ELECTION_KEY}, {key})"
