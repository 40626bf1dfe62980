"""What goes over the wire: no more than by hand, and the truth about COMMIT wherever the line breaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import psycopg
import pytest
from blocking import decorated
from proxy import Cut, Proxy, Side, Traffic
from support import entries

from serverless_pg_kit import CommitUnknown, Engine
from serverless_pg_kit.decisions.cleaning import Strategy
from serverless_pg_kit.testing import PostgresServer

COMMITTED = b"C\0\0\0\x0bCOMMIT\0"
"""The server's message that a COMMIT is done."""

READY = b"Z\0\0\0\x05T"
"""The server's message that it is ready for the next command, inside a transaction."""


class Form(NamedTuple):
    """How a request is made."""

    deadline: float | None = None
    is_prepared: bool = False
    fails: bool = False
    level: psycopg.IsolationLevel | None = None
    read_only: bool | None = None


FORMS = [
    Form(deadline, is_prepared, fails, level, read_only)
    for deadline, is_prepared, fails, (level, read_only) in itertools.product(
        [None, 30.0], [False, True], [False, True], [(None, None), (psycopg.IsolationLevel.SERIALIZABLE, True)]
    )
]


def traffic_when_warm(proxy: Proxy, request: Callable[[], object]) -> Traffic:
    """Return what passes for one `request` after two like it."""
    request()
    request()
    with proxy.counting() as traffic:
        request()
    return traffic


def by_hand(conn: psycopg.Connection[Any], form: Form) -> None:
    """Do what a program with bare psycopg does."""
    conn.isolation_level, conn.read_only = form.level, form.read_only
    conn.execute("select 1", prepare=form.is_prepared)
    if form.fails:
        conn.rollback()
    else:
        conn.commit()


def by_engine(engine: Engine, form: Form) -> None:
    """Do the same as a request."""
    with engine.scope(deadline=form.deadline, isolation_level=form.level, read_only=form.read_only) as scope:
        scope.connection.execute("select 1", prepare=form.is_prepared)
        if form.fails:
            scope.fail()


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("census_ttl", [0, 3600])
@pytest.mark.parametrize("reset", [True, False])
def test_request_costs_no_round_trip_more_than_by_hand(
    make_engine: Any, proxy: Proxy, server: PostgresServer, strategy: str, census_ttl: float, reset: bool
) -> None:
    """Guard, time-outs, reset and census ride along with BEGIN and COMMIT, however the request is made.

    A rollback is psycopg's own, so what follows it may cost one exchange of its own.
    """
    engine = make_engine(conninfo=proxy.reroute(server.dsn), strategy=strategy, census_ttl=census_ttl, reset=reset)
    with psycopg.connect(proxy.reroute(server.dsn)) as conn:
        for form in FORMS:
            bare = traffic_when_warm(proxy, lambda form=form: by_hand(conn, form))  # type: ignore[misc]
            kits = traffic_when_warm(proxy, lambda form=form: by_engine(engine, form))  # type: ignore[misc]
            more = (kits.exchanges - bare.exchanges, kits.flights - bare.flights)
            assert more in ([(0, 0), (1, 1)] if form.fails else [(0, 0)]), (form, kits.queries)
    assert engine.stats.connects == 1
    assert engine.stats.censuses >= (3 * len(FORMS) if census_ttl == 0 else 1)


@pytest.mark.parametrize(("reset", "more"), [(True, 1), (False, 0)])
def test_autocommit_costs_the_reset_alone(
    make_engine: Any, proxy: Proxy, server: PostgresServer, reset: bool, more: int
) -> None:
    """With autocommit nothing goes before a statement, and after it only the way back to a clean session."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), autocommit=True, reset=reset, census_ttl=3600)
    with psycopg.connect(proxy.reroute(server.dsn), autocommit=True) as conn:
        bare = traffic_when_warm(proxy, lambda: conn.execute("select 1", prepare=False))
    kits = traffic_when_warm(proxy, lambda: by_engine(engine, Form()))
    assert (bare.exchanges, bare.flights) == (1, 1)
    assert (kits.exchanges, kits.flights) == (1 + more, 1 + more)


def test_request_that_touches_nothing_sends_nothing(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """A request that needs no database leaves even an open connection alone."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), census_ttl=0)
    by_engine(engine, Form())

    def handler(event: Any, context: Any) -> None:
        pass

    with proxy.counting() as traffic:
        with engine.scope(deadline=30, read_only=True):
            pass
        decorated(engine, handler)({}, None)
    assert traffic == Traffic()
    assert (engine.stats.connects, engine.stats.open) == (1, 1)


class Ledger:
    """Requests that insert a row each and are cut during COMMIT, and what their callers were told."""

    def __init__(self, engine: Engine, proxy: Proxy) -> None:
        self.engine = engine
        self.proxy = proxy
        self.told: dict[int, str] = {}
        self.wrong: list[tuple[Side, int, str]] = []

    def insert(self, after: int, toward: Side) -> tuple[int, int]:
        """Insert a row, the line being cut; check what is told, and return how many bytes passed each way."""
        entry, cut = len(self.told), Cut(after, toward, b"COMMIT")
        try:
            with self.engine.request() as conn:
                conn.execute("insert into ledger values (%s)", [entry])
                self.proxy.arm(cut)
        except CommitUnknown:
            self.told[entry] = "unknown"
        except psycopg.Error:
            self.told[entry] = "failed"
        else:
            self.told[entry] = "committed"
        if self.told[entry] != ("committed" if COMMITTED in cut.answered or not cut.done else "unknown"):
            self.wrong.append((toward, after, self.told[entry]))
        return len(cut.asked), len(cut.answered)

    def warm_up(self) -> None:
        """Serve a request that must work, whatever became of the last one."""
        with self.engine.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("census_ttl", [3600, 0])
def test_caller_is_told_the_truth_wherever_the_line_is_cut(
    make_engine: Any, proxy: Proxy, server: PostgresServer, superuser: Any, ledger: str, census_ttl: float
) -> None:
    """Cut after any byte of the message with COMMIT or of its answer: success is told for what is committed, loss for
    what is not, and unknown if, and only if, the answer to COMMIT itself did not arrive. The next request works."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), census_ttl=census_ttl)
    book = Ledger(engine, proxy)
    book.warm_up()
    question, answer = book.insert(1 << 20, "server")
    every = (1 if server.version == 18 else 7) if census_ttl else 53
    lengths: dict[Side, int] = {"server": question, "client": answer}
    for toward, length in lengths.items():
        for after in [*range(0, length, every), length - 1, length]:
            book.insert(after, toward)
            book.warm_up()
    assert book.wrong == []
    present = set(entries(superuser))
    assert not {entry for entry, told in book.told.items() if (told == "committed") > (entry in present)}
    assert not {entry for entry, told in book.told.items() if (told == "failed") and (entry in present)}
    assert {"committed", "unknown"} <= set(book.told.values())


def test_request_is_served_wherever_the_line_is_cut_while_it_begins(
    make_engine: Any, proxy: Proxy, server: PostgresServer, superuser: Any, ledger: str
) -> None:
    """Cut after any byte of the message with BEGIN or of its answer: nobody notices, and each row is there once."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), census_ttl=3600)

    pids: list[str] = []

    def insert(after: int, toward: Side, mentions: int = 0) -> Cut:
        """Cut a request so, a little elsewhere if its pid, of which there are `mentions`, is shorter than the first."""
        with engine.request() as conn:
            pids.append(str(conn.info.backend_pid))
        cut = Cut(max(0, after + mentions * (len(pids[-1]) - len(pids[0]))), toward, b"BEGIN")
        proxy.arm(cut)
        with engine.request() as conn:
            conn.execute("insert into ledger select count(*) from ledger")
        return cut

    whole = insert(1 << 20, "server")
    question = 1 + int.from_bytes(whole.asked[1:5], "big")
    answer = whole.answered.index(READY) + len(READY)  # with its last byte the request has begun
    mentions: dict[Side, int] = {
        "server": whole.asked[:question].count(pids[0].encode()),
        "client": whole.answered[:answer].count(pids[0].encode()),
    }
    lengths: dict[Side, int] = {"server": question + 1, "client": answer}
    every = 3 if server.version == 18 else 11
    cuts: list[tuple[int, Side]] = [
        (after, side) for side, length in lengths.items() for after in range(0, length, every)
    ]
    for after, side in cuts:
        assert insert(after, side, mentions[side]).done
    assert entries(superuser) == list(range(len(cuts) + 1))
    assert engine.stats.connects == engine.stats.losses + 1 == len(cuts) + 1
