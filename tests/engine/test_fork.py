"""A fork: the child never ends, commits or closes what belongs to its parent."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import psycopg
from support import entries, in_child


def test_fork_in_mid_request_does_not_end_the_parents_request(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A child that leaves the block neither commits nor closes what belongs to the parent."""
    engine = make_engine()
    with engine.request() as conn:
        conn.execute("insert into ledger values (1)")

        def child() -> None:
            with engine.request() as own:
                assert own is not conn
            engine.clean()

        in_child(child)
        assert entries(superuser) == []
        conn.execute("insert into ledger values (2)")
    assert entries(superuser) == [1, 2]


def test_forked_child_leaves_the_parents_connection_alone(make_engine: Any) -> None:
    """A child process opens its own connection, and the parent's goes on working."""
    engine = make_engine()
    with engine.request() as conn:
        parents = conn.info.backend_pid
    reader, writer = os.pipe()

    def child() -> None:
        with engine.request() as conn:
            os.write(writer, str(conn.info.backend_pid).encode())

    in_child(child)
    childs = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    with engine.request() as conn:
        assert conn.info.backend_pid == parents != childs


def test_close_in_a_child_keeps_the_parents_idle_connections(make_engine: Any) -> None:
    """A child that closes the inherited engine ends no session of its parent, and both go on working."""
    engine = make_engine()
    with engine.request() as one, engine.request(join=False) as other:
        pids = {one.info.backend_pid, other.info.backend_pid}

    def child() -> None:
        engine.close()
        assert engine.stats.open == 0
        with engine.request() as own:
            assert own.info.backend_pid not in pids
        engine.close()

    in_child(child)
    with engine.request() as one, engine.request(join=False) as other:
        assert {one.info.backend_pid, other.info.backend_pid} == pids


def test_close_in_a_child_keeps_the_parents_open_request(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A child that closes the inherited engine in mid-request rolls nothing of its parent's back."""
    engine = make_engine()
    engine.connect().execute("insert into ledger values (1)")
    in_child(engine.close)
    engine.connect().execute("insert into ledger values (2)")
    engine.clean()
    assert entries(superuser) == [1, 2]
    assert engine.stats.connects == 1


def test_close_in_a_child_keeps_what_the_parent_forgot(make_engine: Any) -> None:
    """Connections of requests that were never ended are the parent's to close, too."""
    engine = make_engine()
    kept: list[psycopg.Connection[Any]] = []
    thread = threading.Thread(target=lambda: kept.append(engine.connect()))
    thread.start()
    thread.join()
    del thread
    gc.collect()
    in_child(engine.close)
    assert kept[0].execute("select 1").fetchone() == (1,)
    engine.close()
    assert kept[0].closed
