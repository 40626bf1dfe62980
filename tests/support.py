"""What several tests need: waiting with a bound, forking, looking at the server, searching errors for secrets."""

from __future__ import annotations

import inspect
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from serverless_pg_kit import Engine

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def debian_15() -> Path:
    """Return Debian's binaries; without them the test is skipped, in CI it fails."""
    if not DEBIAN_15.is_dir():
        reason = "Debian's PostgreSQL 15 is not installed (apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return DEBIAN_15


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Return whether `condition` becomes true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a forked child and wait for its end; an exception in it fails the test."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's coverage is not collected
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def entries(superuser: psycopg.Connection[Any]) -> list[int]:
    """Return what is in the ledger."""
    return [entry for (entry,) in superuser.execute("select entry from ledger order by 1")]


def sessions(conn: psycopg.Connection[Any], fleet: str) -> list[int]:
    """Return the pids of the sessions of `fleet`, seen by a superuser in autocommit mode."""
    rows = conn.execute(
        "select pid from pg_stat_activity where split_part(application_name, ':', 1) = %s order by state_change",
        [fleet],
    )
    return [pid for (pid,) in rows]


def is_working(superuser: psycopg.Connection[Any], fleet: str) -> bool:
    """Tell whether a session of `fleet` executes ``pg_sleep``."""
    query = "select true from pg_stat_activity where state = 'active' and query like %s and application_name like %s"
    return superuser.execute(query, ["%pg_sleep(%", f"{fleet}%"]).fetchone() is not None


def kill(conn: psycopg.Connection[Any], *pids: int) -> None:
    """End sessions and wait until they are gone."""
    for pid in pids:
        conn.execute("select pg_terminate_backend(%s, 5000)", [pid])


def check_replaced_soon(engine: Engine, lost: psycopg.Connection[Any]) -> None:
    """Check that the next request is served, although the line of the idle connection `lost` is silent. The bound is
    about a second, a slow machine not counted; the system's own would be minutes."""
    started = time.monotonic()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
        assert time.monotonic() - started < 5.0
        assert conn is not lost
    assert (engine.stats.losses, engine.stats.connects) == (1, 2)


def settable(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return the public attributes of `conn` that can be set, whichever this version of psycopg has."""
    properties = inspect.getmembers(type(conn), lambda member: isinstance(member, property) and member.fset is not None)
    names = {*dict(properties), *vars(conn)}
    return {name: getattr(conn, name) for name in names if not name.startswith("_")}


def whole_chain(error: BaseException | None) -> Iterator[str]:
    """Yield everything that hangs on `error`: texts, attributes, causes, contexts, and the locals of its frames."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        for name in dir(error):
            yield repr(getattr(error, name, None))
        trace = error.__traceback__
        while trace is not None:
            if "serverless_pg_kit" in trace.tb_frame.f_code.co_filename:
                yield repr({name: value for name, value in trace.tb_frame.f_locals.items()})
            trace = trace.tb_next
        yield from whole_chain(error.__context__)
        error = error.__cause__


def server_versions() -> list[int]:
    """Return the versions of PostgreSQL to test with: all, or those in the variable TEST_SERVERS (as in "15,18")."""
    return [int(version) for version in os.environ.get("TEST_SERVERS", "15,16,18").split(",")]


def shells() -> list[str]:
    """Return the shells to test: both, or those in the variable TEST_SHELLS (as in "sync")."""
    return os.environ.get("TEST_SHELLS", "sync,async").split(",")


NOTICES_DISCARDS = tuple(int(part) for part in psycopg.__version__.split(".")[:2]) >= (3, 3)
"""Whether psycopg itself notices that prepared statements were discarded by SQL: before 3.3 its own next use fails."""


SYNC_ONLY = pytest.mark.parametrize("shell", ["sync"], indirect=True)
"""For tests of what only exists between threads, or where blocking calls are interrupted."""
