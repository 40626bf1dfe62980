"""The three acts on a small server, and the database as the demo sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest
from support import eventually

from serverless_pg_kit.simulator import contestants
from serverless_pg_kit.simulator.acts import THAW
from serverless_pg_kit.simulator.contestants import FLEET, KIT, PLAIN, examples_folder
from serverless_pg_kit.simulator.database import Database, embedded, existing
from serverless_pg_kit.simulator.demo import Result, kit_served_everything, perform
from serverless_pg_kit.simulator.errors import DemoError
from serverless_pg_kit.simulator.fleet import Fleet
from serverless_pg_kit.simulator.measure import Tally
from serverless_pg_kit.simulator.zygote import Zygote
from serverless_pg_kit.testing import PostgresServer


class Diary:
    """An audience that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, result: Result, fleet: Fleet) -> None:
        self.lines.append(f"{result.act.name} {result.contestant.name}")

    def say(self, text: str) -> None:
        self.lines.append(f"- {text}")

    def refresh(self) -> None:
        pass

    def end(self) -> None:
        self.lines.append("")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """The process from which the containers are forked."""
    with closing(Zygote(str(examples_folder()))) as process:
        yield process


@pytest.fixture
def small() -> Iterator[Database]:
    """An embedded server with six slots, three of them for the containers."""
    with embedded(6) as database:
        yield database


def by_contestant(results: list[Result]) -> dict[str, list[Tally]]:
    """The tallies in the order of the acts."""
    return {
        contestant.name: [result.tally for result in results if result.contestant is contestant]
        for contestant in (PLAIN, KIT)
    }


def test_acts_on_an_embedded_server(small: Database, zygote: Zygote) -> None:
    """The kit fails no request where plain psycopg does, on the same traffic; nobody exceeds the slots."""
    results = perform(small, zygote, 8, 1.0, 1, Diary())

    tallies = by_contestant(results)
    assert [tally.requests for tally in tallies["plain"]] == [tally.requests for tally in tallies["kit"]]
    assert [tally.reasons for tally in tallies["kit"]] == [{}, {}, {}]
    assert tallies["plain"][2].failed  # dead connections fail for certain; how many are refused depends on the machine
    assert all(0 < result.tally.peak <= small.slots for result in results)
    assert kit_served_everything(results)


def test_acts_on_an_existing_server(zygote: Zygote) -> None:
    """On somebody's server only the connections are killed, and the demo leaves nothing behind."""
    diary = Diary()
    with PostgresServer(max_connections=7) as server:
        with existing(server.dsn) as database:
            results = perform(database, zygote, 8, 1.0, 1, diary)
        with psycopg.connect(server.dsn) as conn:
            schemas = conn.execute("select count(*) from pg_namespace where nspname = %s", [FLEET]).fetchone()

    assert database.slots == 3
    assert schemas == (0,)
    assert "- their connections are killed" in diary.lines
    assert "- the server restarts" not in diary.lines
    assert by_contestant(results)["plain"][2].failed
    assert kit_served_everything(results)


def test_verdict_is_about_the_kit() -> None:
    """Failures of plain psycopg are expected; one of the kit's is not."""
    good, bad = Tally(), Tally()
    bad.failed_because("x")

    assert kit_served_everything([Result(THAW, PLAIN, bad), Result(THAW, KIT, good)])
    assert not kit_served_everything([Result(THAW, PLAIN, good), Result(THAW, KIT, bad)])


def test_connections_are_counted_without_the_monitor(small: Database) -> None:
    """Exactly the containers' sessions count, until they are killed or the server restarts."""
    small.prepare()
    assert eventually(lambda: small.connections() == 0)
    assert small.slots == 3

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(psycopg.connect(small.dsn)))
        assert small.connections() == 3
        with pytest.raises(psycopg.OperationalError, match="slots"):
            psycopg.connect(small.dsn)

        small.kill_connections()
        assert eventually(lambda: small.connections() == 0)

        stack.enter_context(closing(psycopg.connect(small.dsn)))
        small.restart()
        assert small.connections() == 0


def test_each_run_starts_with_fresh_tables(small: Database) -> None:
    """What one contestant writes the other does not find."""
    small.prepare()
    with psycopg.connect(small.dsn) as conn:
        conn.execute("delete from inventory")
    small.prepare()

    with psycopg.connect(small.dsn) as conn:
        assert conn.execute("select count(*) from inventory").fetchone() == (200,)


def test_one_demo_at_a_time() -> None:
    """A second demo in the same database is refused, instead of dropping the tables of the first."""
    with PostgresServer(max_connections=10) as server, existing(server.dsn):
        with pytest.raises(DemoError, match="another demo"), existing(server.dsn):
            pass
        with psycopg.connect(server.dsn) as conn:
            assert conn.execute("select 1").fetchone() == (1,)


def test_search_path_joins_the_options_of_the_dsn() -> None:
    """Options that the DSN already has are kept."""
    with (
        PostgresServer(max_connections=10) as server,
        existing(f"{server.dsn}?options=-c%20statement_timeout%3D7s") as database,
        psycopg.connect(database.dsn) as conn,
    ):
        settings = conn.execute("select current_setting('statement_timeout'), current_setting('search_path')")

        assert settings.fetchone() == ("7s", FLEET)


def test_examples_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy inside the package is preferred to the checkout's, and without either there is an error with words."""
    module = tmp_path / "serverless_pg_kit" / "simulator" / "contestants.py"
    monkeypatch.setattr(contestants, "__file__", str(module))
    with pytest.raises(DemoError, match="missing"):
        examples_folder()

    for folder in (tmp_path / "examples", module.parent / "_examples"):
        (folder / "logistics").mkdir(parents=True)
        (folder / "logistics" / "handlers.py").touch()
        assert examples_folder() == folder
