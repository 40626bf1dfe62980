"""Whole transactions that are run again: all of them once, or told that it is unknown."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import time
from typing import Any

import psycopg
import pytest
from blocking import working
from proxy import Cut, Proxy, Side
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


class Bank:
    """Ten accounts and a ledger of what was moved between them, each transfer known by a number of its own."""

    def __init__(self, superuser: psycopg.Connection[Any]) -> None:
        self._superuser = superuser
        superuser.execute("drop table if exists transfers")
        superuser.execute("create table transfers (entry int primary key, giver int, taker int)")
        superuser.execute("grant all on transfers to app")

    def move(self, conn: psycopg.Connection[Any], entry: int) -> None:
        """Make transfer number `entry`."""
        giver, taker = entry % 10, (entry // 10 + entry) % 9
        taker += taker >= giver
        transfer(conn, giver, taker)
        conn.execute("insert into transfers values (%s, %s, %s)", [entry, giver, taker])

    def entries(self) -> set[int]:
        """Return the numbers of the transfers that were made. Fails if the balances do not follow from them."""
        moved = """select id, balance, 100 - (select count(*) from transfers where giver = id)
                                           + (select count(*) from transfers where taker = id) from accounts"""
        assert [row for row in self._superuser.execute(moved) if row[1] != row[2]] == []
        assert self._superuser.execute("select sum(balance) from accounts").fetchone() == (1000,)
        return {entry for (entry,) in self._superuser.execute("select entry from transfers")}


STEP = 25
"""Bytes between two cuts of a line: less than a COMMIT with its surroundings takes, on either side."""

LONGEST_REQUEST = 1200
"""Bytes, about, that a transfer sends, and that it gets for an answer."""


class Saboteur(threading.Thread):
    """Has the line of the next request cut after some bytes of its questions or answers, so many `times`, as the dice
    fall: anywhere in it, or where another request on the same line has followed."""

    def __init__(self, proxy: Proxy, dice: random.Random, times: int) -> None:
        super().__init__()
        self._proxy = proxy
        self._dice = dice
        self._over = threading.Event()
        self._times = times
        self.cuts: list[Cut] = []

    def run(self) -> None:
        """Order one cut after the other."""
        for _ in range(self._times):
            toward: Side = self._dice.choice(["server", "client"])
            cut = Cut(self._dice.randrange(LONGEST_REQUEST), toward, b"BEGIN")
            self.cuts.append(cut)
            self._proxy.arm(cut)
            late = time.monotonic() + 1.0  # its line may have been given up for another reason
            while not cut.done and time.monotonic() < late and not self._over.wait(0.002):
                pass
            self._over.wait(self._dice.random() / 20)  # in which some requests go through

    def __enter__(self) -> Saboteur:
        self.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        self.join()
        self._proxy.disarm()


@pytest.mark.parametrize("seed", [1, 2])
def test_transfers_over_a_line_that_is_cut_at_any_byte(
    make_engine: Any, proxy: Proxy, server: PostgresServer, superuser: Any, accounts: str, seed: int
) -> None:
    """Eight workers, serializably, while lines are cut in the middle of questions and answers, those of COMMIT too.
    Each transfer is made exactly once, or its worker was told that nobody knows; then it is made once or not at all."""
    bank, dice = Bank(superuser), random.Random(seed)
    engine = make_engine(conninfo=proxy.reroute(server.dsn), max_size=8, max_wait=60.0)
    done: list[int] = []
    unknown: list[int] = []
    problems: list[str] = []

    def work(number: int) -> None:
        for entry in itertools.count(number, 8):
            if not saboteur.is_alive():
                return
            try:
                moving = working(engine, functools.partial(bank.move, entry=entry))
                engine.run_transaction(moving, attempts=1000, isolation_level=SERIALIZABLE)
                done.append(entry)
            except CommitUnknown:
                unknown.append(entry)
            except Exception as error:
                problems.append(f"{entry}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with Saboteur(proxy, dice, times=25) as saboteur:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert len(done + unknown) == len({*done, *unknown})
    made = bank.entries()
    assert set(done) <= made <= set(done + unknown)
    assert sum(cut.done for cut in saboteur.cuts) > 15
    assert engine.stats.replays > 0


@pytest.mark.parametrize("toward", ["server", "client"])
def test_line_cut_all_along_a_request(
    make_engine: Any, proxy: Proxy, server: PostgresServer, superuser: Any, accounts: str, toward: Side
) -> None:
    """From the first byte of its BEGIN to the last of its COMMIT, one after the other."""
    bank = Bank(superuser)
    engine = make_engine(conninfo=proxy.reroute(server.dsn), max_wait=60.0)
    whole = Cut(1 << 30, toward, b"BEGIN")
    engine.connect()
    engine.clean()
    proxy.arm(whole)
    engine.run_transaction(working(engine, functools.partial(bank.move, entry=0)))
    length = len(whole.asked if toward == "server" else whole.answered)
    engine.close()
    unknown: list[int] = []
    entries_tried = range(1, 2 + length // STEP)
    for entry in entries_tried:
        proxy.arm(Cut((entry - 1) * STEP, toward, b"BEGIN"))
        try:
            engine.run_transaction(working(engine, functools.partial(bank.move, entry=entry)))
        except CommitUnknown:
            unknown.append(entry)
    proxy.disarm()
    made = bank.entries()
    assert {0, *entries_tried} - set(unknown) <= made
    assert unknown, "no cut met a COMMIT"
    assert length > 300


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


def test_one_attempt_is_no_retry(make_engine: Any) -> None:
    """``attempts=1`` runs the work once."""
    engine, runs = make_engine(), []

    def work(conn: Any) -> None:
        runs.append(1)
        conn.execute("do $$ begin raise exception 'again' using errcode = '40001'; end $$")

    with pytest.raises(psycopg.errors.SerializationFailure):
        engine.run_transaction(working(engine, work), attempts=1)
    assert (len(runs), engine.stats.replays) == (1, 0)


def test_deadlock_is_resolved(make_engine: Any, accounts: str, superuser: Any) -> None:
    """Two that lock the same rows in opposite order both succeed: the server ends one of them, which is run again."""
    engine = make_engine(max_size=2, max_wait=30.0)
    superuser.execute("alter role app set deadlock_timeout = '50ms'")
    meeting = threading.Barrier(2)
    runs: list[int] = []
    problems: list[str] = []

    def work(conn: Any, first: int, second: int) -> None:
        runs.append(first)
        conn.execute("update accounts set balance = balance + 1 where id = %s", [first])
        if runs.count(first) == 1:
            meeting.wait(30)
        conn.execute("update accounts set balance = balance - 1 where id = %s", [second])

    def run_one(first: int, second: int) -> None:
        try:
            engine.run_transaction(working(engine, functools.partial(work, first=first, second=second)))
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run_one, args=pair) for pair in ((1, 2), (2, 1))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        superuser.execute("alter role app reset deadlock_timeout")
    assert problems == []
    assert len(runs) == 3
    assert superuser.execute("select distinct balance from accounts").fetchall() == [(100,)]
    assert (engine.stats.commits, engine.stats.replays) == (2, 1)


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
