"""What several tests need: waiting with a bound, looking at the server, searching errors for secrets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Return whether `condition` becomes true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def sessions(conn: psycopg.Connection[Any], fleet: str) -> list[int]:
    """Return the pids of the sessions of `fleet`, seen by a superuser in autocommit mode."""
    rows = conn.execute(
        "select pid from pg_stat_activity where split_part(application_name, ':', 1) = %s order by state_change",
        [fleet],
    )
    return [pid for (pid,) in rows]


def kill(conn: psycopg.Connection[Any], *pids: int) -> None:
    """End sessions and wait until they are gone."""
    for pid in pids:
        conn.execute("select pg_terminate_backend(%s, 5000)", [pid])


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
