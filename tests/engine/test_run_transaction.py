"""Whole transactions that are run again: all of them once, or told that it is unknown."""

from __future__ import annotations

import functools
import threading
from typing import Any

import psycopg
import pytest
from blocking import working
from proxy import Proxy
from support import entries, kill

from serverless_pg_kit import CommitUnknown, Engine, TransactionFailed
from serverless_pg_kit.testing import PostgresServer

SERIALIZABLE = psycopg.IsolationLevel.SERIALIZABLE


@pytest.fixture
def accounts(superuser: Any) -> str:
    """A table with ten accounts of 100 each."""
    superuser.execute("drop table if exists accounts")
    superuser.execute("create table accounts as select n as id, 100 as balance from generate_series(0, 9) n")
    superuser.execute("alter table accounts add primary key (id)")
    superuser.execute("grant all on accounts to app")
    return "accounts"


def transfer(conn: psycopg.Connection[Any], giver: int, taker: int) -> None:
    """Move 1 from one account to another, having looked at both."""
    look = "select balance from accounts where id = %s"
    [[gives], [takes]] = (conn.execute(look, [account]).fetchall()[0] for account in (giver, taker))
    conn.execute("update accounts set balance = %s where id = %s", [gives - 1, giver])
    conn.execute("update accounts set balance = %s where id = %s", [takes + 1, taker])


def test_transfers_in_a_storm_of_conflicts_all_succeed(make_engine: Any, superuser: Any, accounts: str) -> None:
    """Eight workers move money between few accounts, serializably: each transfer is made exactly once."""
    engine = make_engine(max_size=8, max_wait=30.0)

    def work(number: int) -> None:
        for step in range(25):
            giver = number % 4
            taker = (giver + 1 + step % 3) % 4
            moving = working(engine, functools.partial(transfer, giver=giver, taker=taker))
            engine.run_transaction(moving, attempts=100, isolation_level=SERIALIZABLE)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert superuser.execute("select sum(balance) from accounts").fetchone() == (1000,)
    assert (engine.stats.commits, engine.stats.in_use) == (200, 0)
    assert engine.stats.replays > 0


def test_result_is_returned_and_the_transaction_is_as_asked(make_engine: Any) -> None:
    """What the work returns, under the isolation level and the read-only mode of this call."""

    def look(conn: Any) -> Any:
        query = "select current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        return conn.execute(query).fetchone()

    engine = make_engine()
    for _ in range(2):
        result = engine.run_transaction(working(engine, look), isolation_level=SERIALIZABLE, read_only=True)
        assert result == ("serializable", "on")


def test_work_whose_connection_is_lost_is_run_again(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Nothing of the first run is kept."""
    runs: list[int] = []

    def work(conn: Any) -> int:
        runs.append(conn.info.backend_pid)
        conn.execute("insert into ledger values (1)")
        if len(runs) == 1:
            kill(superuser, runs[0])
        conn.execute("select 1")
        return len(runs)

    engine = make_engine()
    assert engine.run_transaction(working(engine, work)) == 2
    assert entries(superuser) == [1]


def test_connection_lost_before_commit_is_noticed_at_the_end(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Also if no statement of the work meets the loss."""
    runs: list[int] = []

    def work(conn: Any) -> None:
        runs.append(conn.info.backend_pid)
        conn.execute("insert into ledger values (1)")
        if len(runs) == 1:
            kill(superuser, runs[0])

    engine = make_engine()
    engine.run_transaction(working(engine, work))
    assert len(runs) == 2
    assert entries(superuser) == [1]


def test_line_cut_during_commit_is_never_run_again(
    make_engine: Any, proxy: Proxy, server: PostgresServer, superuser: Any, ledger: str
) -> None:
    """Whether it is committed is unknown, and a second run might do it twice."""
    engine, runs = make_engine(conninfo=proxy.reroute(server.dsn)), []

    def work(conn: Any) -> None:
        runs.append(1)
        conn.execute("insert into ledger values (%s)", [len(runs)])
        proxy.hush(newcomers=True)

    with pytest.raises(CommitUnknown):
        engine.run_transaction(working(engine, work), deadline=1.0)
    assert runs == [1]


@pytest.mark.parametrize(
    ("query", "error"),
    [("select 1/0", psycopg.errors.DivisionByZero), ("select nothing", psycopg.errors.UndefinedColumn)],
)
def test_errors_of_the_work_itself_are_raised_at_once(make_engine: Any, query: str, error: type[Exception]) -> None:
    """Running it again would not help."""
    engine, runs = make_engine(), []

    def work(conn: Any) -> None:
        runs.append(1)
        conn.execute(query)

    with pytest.raises(error):
        engine.run_transaction(working(engine, work))
    assert runs == [1]


def test_swallowed_error_is_no_success(make_engine: Any) -> None:
    """Work that goes on after a failed statement is told that nothing is kept, and is not run again."""
    engine, runs = make_engine(), []

    def work(conn: Any) -> None:
        runs.append(1)
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1/0")

    with pytest.raises(TransactionFailed):
        engine.run_transaction(working(engine, work))
    assert runs == [1]


def test_attempts_are_limited(make_engine: Any, superuser: Any) -> None:
    """The last error is raised when no attempt is left."""
    engine, runs = make_engine(), []

    def work(conn: Any) -> None:
        runs.append(1)
        conn.execute("do $$ begin raise exception 'again' using errcode = '40001'; end $$")

    with pytest.raises(psycopg.errors.SerializationFailure):
        engine.run_transaction(working(engine, work), attempts=3)
    assert len(runs) == 3
    assert engine.stats.replays == 2


def test_deadline_bounds_all_runs_together(make_engine: Any) -> None:
    """No run begins after it."""
    engine = make_engine()

    def work(conn: Any) -> None:
        conn.execute("select pg_sleep(0.05)")
        conn.execute("do $$ begin raise exception 'again' using errcode = '40001'; end $$")

    with pytest.raises(psycopg.Error):
        engine.run_transaction(working(engine, work), attempts=1000, deadline=0.5)
    assert engine.stats.replays < 20


def test_inside_a_request_it_is_a_transaction_of_its_own(engine_of_two: Engine, superuser: Any, ledger: str) -> None:
    """What it commits stays, even if the request around it fails."""
    with pytest.raises(ZeroDivisionError), engine_of_two.request() as outer:
        outer.execute("insert into ledger values (1)")
        engine_of_two.run_transaction(
            working(engine_of_two, lambda conn: conn.execute("insert into ledger values (2)"))
        )
        raise ZeroDivisionError
    assert entries(superuser) == [2]


@pytest.fixture
def engine_of_two(make_engine: Any) -> Engine:
    """An engine that may have two connections."""
    engine: Engine = make_engine(max_size=2)
    return engine
