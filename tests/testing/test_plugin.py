"""The pytest plugin, in test runs of their own."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

import serverless_pg_kit

pytest_plugins = ["pytester"]

PLUGIN = "serverless_pg_kit_pytest"

APP = """
    from serverless_pg_kit import Engine, with_db

    engine = Engine()

    @with_db(engine)
    def place_order(event, context, conn):
        conn.execute("insert into orders values (%s)", [event["product"]])
        return {"statusCode": 500 if event["product"] == "bomb" else 200}
"""

CONFTEST = """
    import app
    import psycopg
    import pytest

    @pytest.fixture(scope="session")
    def serverless_pg_server(serverless_pg_server):
        with psycopg.connect(serverless_pg_server.dsn) as conn:
            conn.execute("create table orders (product text)")
        return serverless_pg_server

    @pytest.fixture
    def app_engine(serverless_pg_server, monkeypatch):
        monkeypatch.setenv("DATABASE_URL", serverless_pg_server.dsn)
        yield app.engine
        app.engine.close()
"""

TEST_APP = """
    import app
    import pytest

    @pytest.fixture
    def serverless_pg_engine(app_engine):
        return app_engine

    @pytest.mark.parametrize("time", [1, 2])
    def test_order(serverless_pg_request, time):
        app.place_order({"product": "lamp"}, None)
        app.place_order({"product": "bomb"}, None)
        assert serverless_pg_request.execute("select product from orders").fetchall() == [("lamp",)]
"""

TEST_FIXTURES = """
    import psycopg
    import pytest

    @pytest.mark.serverless_pg(max_size=3, application_name="class")
    class TestMarker:
        @pytest.mark.serverless_pg(max_size=2)
        def test_marker(self, serverless_pg_engine):
            assert serverless_pg_engine.settings.max_size == 2
            assert serverless_pg_engine.settings.application_name == "class"

    def test_options(serverless_pg_engine, serverless_pg_server):
        with serverless_pg_engine.request() as conn:
            assert conn.execute("show max_connections").fetchone() == ("7",)
            assert conn.execute("show log_statement").fetchone() == ("all",)
            assert conn.execute("show application_name").fetchone() == ("serverless_pg_kit",)

    def test_engine_is_closed(serverless_pg_server):
        with serverless_pg_server.superuser() as conn:
            left = "select count(*) from pg_stat_activity where usename = 'app'"
            assert conn.execute(left).fetchone() == (0,)

    def test_clock(serverless_pg_clock, serverless_pg_engine, serverless_pg_server):
        from serverless_pg_kit import TooManyConnections

        taken = []
        try:
            while True:
                taken.append(psycopg.connect(serverless_pg_server.dsn))
        except psycopg.OperationalError:
            pass
        with pytest.raises(TooManyConnections):
            serverless_pg_engine.connect()
        for conn in taken:
            conn.close()
        assert sum(serverless_pg_clock.slept) > 5
"""

OPTIONS = """
    [pytest]
    addopts = --strict-markers -p no:cacheprovider
    serverless_pg_max_connections = 7
    serverless_pg_settings =
        log_statement = all
        work_mem = 1MB
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a test run that has the plugin, from where the kit itself comes."""
    home = Path(serverless_pg_kit.__file__).parents[1]
    folders = [home, home / "integrations"]  # the second only in a checkout
    monkeypatch.setenv("PYTHONPATH", ":".join(str(folder) for folder in folders if folder.is_dir()))
    monkeypatch.delenv("CI", raising=False)
    if PLUGIN not in importlib.metadata.entry_points(group="pytest11").names:  # an older installation of a checkout
        pytester.plugins = [PLUGIN]
    return pytester


def test_plugin_costs_nothing_unless_asked(run: pytest.Pytester) -> None:
    """A run whose tests use none of the fixtures loads neither the kit nor psycopg, and starts no server."""
    run.makepyfile(
        """
        import subprocess, sys

        def test_nothing_is_loaded(request):
            assert "serverless_pg_kit_pytest" in sys.modules
            assert not [name for name in sys.modules if name.partition(".")[0] in ("psycopg", "serverless_pg_kit")]

        def test_no_child():
            children = open(f"/proc/self/task/{__import__('os').getpid()}/children").read()
            assert not children
        """
    )
    run.runpytest_subprocess().assert_outcomes(passed=2)


def test_code_under_test_is_rolled_back(run: pytest.Pytester) -> None:
    """A handler with an engine of its own works in each test as if it were the first, and what fails is undone."""
    run.makepyfile(app=APP, test_app=TEST_APP)
    run.makeconftest(CONFTEST)
    run.syspathinsert()
    run.runpytest_subprocess().assert_outcomes(passed=2)


def test_fixtures_and_options(run: pytest.Pytester) -> None:
    """Options of the server come from the configuration file, those of the engine from markers."""
    run.makepyfile(TEST_FIXTURES)
    run.makeini(OPTIONS)
    run.runpytest_subprocess().assert_outcomes(passed=4)


@pytest.mark.parametrize(("ci", "outcome"), [("", {"skipped": 1, "passed": 1}), ("true", {"errors": 1, "passed": 1})])
def test_missing_server_is_told(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: dict[str, int]
) -> None:
    """Without PostgreSQL a test says what to install: it is skipped, but in CI it fails. Others go on."""
    monkeypatch.setenv("CI", ci)
    run.makeini("[pytest]\nserverless_pg_bin_dir = nowhere")
    run.makepyfile(
        """
        def test_with(serverless_pg_request):
            pass

        def test_without():
            pass
        """
    )
    result = run.runpytest_subprocess("-rs")
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(["*serverless_pg_server: *nowhere*"])


def test_options_are_shown(run: pytest.Pytester) -> None:
    """`pytest --help` and `pytest --markers` tell what there is."""
    result = run.runpytest_subprocess("--help")
    result.stdout.fnmatch_lines(["*serverless_pg_version*", "*serverless_pg_settings*"])
    run.runpytest_subprocess("--markers").stdout.fnmatch_lines(["*serverless_pg(*settings): settings of the engine*"])
