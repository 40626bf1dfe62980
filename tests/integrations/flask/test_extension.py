"""How the extension is attached, configured and looked at."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import flask
import pytest
from flask_support import MakeSite, Site
from support import entries, eventually, sessions

from serverless_pg_kit import AsyncEngine, Engine, Settings, SettingsError
from serverless_pg_kit.testing import PostgresServer, rolled_back
from serverless_pg_kit_flask import ServerlessPg

VALUES: dict[str, Any] = {
    "application_name": "fleet",
    "autocommit": True,
    "backoff_base": 0.2,
    "backoff_cap": 3.0,
    "census_ttl": 7.0,
    "check_after": 8.0,
    "conn_utilization": 0.5,
    "conninfo": "host=example.com",
    "deadline_margin": 0.25,
    "down_ttl": 0.0,
    "hold_warning": 2.0,
    "lease": 60.0,
    "max_connections": 50,
    "max_kills": 5,
    "max_lifetime": None,
    "max_retries": 3,
    "max_size": 4,
    "max_wait": 2.5,
    "min_idle_time": 1.5,
    "pooler": "pgbouncer",
    "reset": False,
    "strategy": "ranked",
}
"""A value for each setting that text can express; the others are taken from a `Settings` object."""


def app_with(**config: Any) -> flask.Flask:
    """Return an app with that configuration."""
    app = flask.Flask("app")
    app.config.update(config)
    return app


def engine_of(app: flask.Flask, name: str = "serverless_pg") -> Engine:
    """Return the engine that is attached to `app`."""
    engine: Engine = app.extensions[name].engine
    return engine


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_every_setting_has_its_key(name: str) -> None:
    """Each setting works under its own name."""
    value = VALUES.get(name, getattr(Settings(), name))
    app = app_with(**{f"SERVERLESS_PG_{name.upper()}": value})
    ServerlessPg(app)

    assert getattr(engine_of(app).settings, name) == value


@pytest.mark.parametrize("name", sorted(VALUES))
def test_settings_as_text(name: str) -> None:
    """Texts, as ``from_prefixed_env`` or a .env file give them, are read as those of the environment are."""
    app = app_with(**{f"SERVERLESS_PG_{name.upper()}": str(VALUES[name])})
    ServerlessPg(app)

    assert getattr(engine_of(app).settings, name) == VALUES[name]


def test_environment_fills_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's configuration comes before the environment, which has what that lacks."""
    monkeypatch.setenv("SERVERLESS_PG_MAX_WAIT", "3")
    monkeypatch.setenv("SERVERLESS_PG_MAX_SIZE", "3")
    app = app_with(SERVERLESS_PG_MAX_SIZE=4)
    ServerlessPg(app)

    assert (engine_of(app).settings.max_wait, engine_of(app).settings.max_size) == (3.0, 4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"SERVERLESS_PG_MAX_SIZE": 0}, "max_size=0 is not allowed"),
        ({"SERVERLESS_PG_MAX_SIZE": "many"}, "max_size='many'"),
        ({"SERVERLESS_PG_MAX_SISE": 4}, "SERVERLESS_PG_MAX_SIZE"),
        ({"SERVERLESS_PG_CONNINFO": "host"}, "conninfo"),
        ({"SERVERLESS_PG_DEADLINE": 0}, "deadline=0 is not allowed"),
        ({"SERVERLESS_PG_DEADLINE": "soon"}, "deadline='soon' is not allowed"),
        ({"SERVERLESS_PG_DEADLINE": True}, "deadline=True is not allowed"),
        ({"SERVERLESS_PG_DEADLINE": float("nan")}, "deadline=nan is not allowed"),
    ],
)
def test_bad_setting_fails_at_start_up(config: dict[str, Any], says: str) -> None:
    """What is wrong is told when the app is made, by name, and nothing is attached."""
    app = app_with(**config)
    before = app.wsgi_app

    with pytest.raises(SettingsError, match=says):
        ServerlessPg(app)
    assert app.extensions == {}
    assert app.wsgi_app == before


def test_password_is_not_told() -> None:
    """An error about a connection string does not show it, nor does anything that is printed."""
    with pytest.raises(SettingsError) as caught:
        ServerlessPg(app_with(SERVERLESS_PG_CONNINFO="hozt=example.com password=secret"))
    app = app_with(SERVERLESS_PG_CONNINFO="host=example.com password=secret")
    pg = ServerlessPg(app)

    assert "secret" not in f"{caught.value!r} {pg!r} {app.extensions!r} {engine_of(app)!r}"


@pytest.mark.parametrize(
    ("value", "deadline"), [("2.5", 2.5), (2.5, 2.5), ("none", None), (None, None), ("inf", float("inf"))]
)
def test_deadline_key(value: Any, deadline: float | None) -> None:
    """The time for a web request can be configured, too; that key is no setting of the engine."""
    app = app_with(SERVERLESS_PG_DEADLINE=value)
    ServerlessPg(app)

    assert app.extensions["serverless_pg"]._deadline == deadline


def test_attached_twice() -> None:
    """A second extension without a name is refused, with the remedy."""
    app = app_with()
    pg = ServerlessPg(app)

    with pytest.raises(RuntimeError, match="call init_app once, or name the second one"):
        pg.init_app(app)
    with pytest.raises(RuntimeError, match="name the second one"):
        ServerlessPg(app)


def test_attached_too_late() -> None:
    """An app that has served a request is refused by Flask, and is left as it was."""
    app = app_with()
    app.test_client().get("/")
    before = app.wsgi_app

    with pytest.raises(AssertionError, match="setup method"):
        ServerlessPg(app)
    assert app.extensions == {}
    assert app.wsgi_app == before


def test_named_extensions(make_site: MakeSite, server: PostgresServer, superuser: Any) -> None:
    """Two databases in one app: each has its keys and its transaction, and one request ends both."""
    site = make_site({"REPORTS_SERVERLESS_PG_CONNINFO": f"{server.superuser_dsn}", "REPORTS_SERVERLESS_PG_MAX_SIZE": 1})
    reports = ServerlessPg(site.app, name="reports")

    @site.app.get("/")
    def view() -> list[str]:
        conns = site.conn, reports.connection
        assert site.engine.connection is conns[0]
        assert reports.engine.connection is conns[1]
        return [conn.info.user for conn in conns]

    @site.app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(pg.connection.info.user for pg in (site.pg, reports))

    engine = engine_of(site.app, "serverless_pg_reports")
    assert site.client.get("/").json == ["app", "postgres"]
    assert site.client.get("/stream").text == "apppostgres"
    assert [(each.stats.commits, each.stats.in_use) for each in (site.engine, engine)] == [(2, 0), (2, 0)]
    assert engine.settings.max_size == 1
    engine.close()


@pytest.mark.parametrize("name", ["my reports", "2", "a-b"])
def test_bad_name(name: str) -> None:
    """A name has to make a key of the configuration."""
    with pytest.raises(ValueError, match="has to be an identifier"):
        ServerlessPg(name=name)


@pytest.mark.parametrize("statuses", [500, "500", None])
def test_bad_rollback_on(statuses: Any) -> None:
    """What is no collection of statuses is refused at once."""
    with pytest.raises(TypeError, match="has to be a container of statuses"):
        ServerlessPg(rollback_on=statuses)


def test_apps_have_engines_of_their_own(make_site: MakeSite) -> None:
    """One extension on several apps, each with its own configuration."""
    pg = ServerlessPg()
    apps = [app_with(SERVERLESS_PG_MAX_SIZE=size) for size in (2, 3)]
    for app in apps:
        pg.init_app(app)
    for app, size in zip(apps, (2, 3), strict=True):
        with app.app_context():
            assert pg.engine.settings.max_size == size


def test_engine_can_be_passed(make_site: MakeSite) -> None:
    """An engine that is used elsewhere, too, serves the app; one given to `init_app` comes first."""
    engine, other = Engine(), Engine()
    site = make_site(engine=engine)
    app = flask.Flask("other")
    ServerlessPg(engine=engine).init_app(app, engine=other)

    assert site.engine is engine
    assert engine_of(app) is other


def test_engine_beside_settings() -> None:
    """Settings that would have no effect are an error, and so is an engine whose connections do not block."""
    with pytest.raises(SettingsError, match="SERVERLESS_PG_MAX_WAIT has no effect"):
        ServerlessPg(app_with(SERVERLESS_PG_MAX_WAIT=1), engine=Engine())
    wrong: Any = AsyncEngine()
    with pytest.raises(TypeError, match="pass an Engine, not AsyncEngine"):
        ServerlessPg(app_with(), engine=wrong)


def test_apps_are_collected(server: PostgresServer, superuser: Any, fleet: str) -> None:
    """An app that nobody needs any more goes away with its connections: tests make many of them."""

    def serve() -> weakref.ref[flask.Flask]:
        app = app_with(SERVERLESS_PG_CONNINFO=server.dsn, SERVERLESS_PG_APPLICATION_NAME=fleet)
        pg = ServerlessPg(app)
        app.add_url_rule("/", view_func=lambda: str(pg.connection.info.backend_pid))
        app.test_client().get("/")
        assert len(sessions(superuser, fleet)) == 1
        return weakref.ref(app)

    gone = serve()
    gc.collect()
    assert gone() is None
    assert eventually(lambda: sessions(superuser, fleet) == [])


def test_rolled_back(site: Site, superuser: Any, ledger: str) -> None:
    """Tests of an app leave nothing behind inside ``rolled_back``, and see its requests as in production."""

    @site.app.post("/<int:entry>/<int:status>")
    def write(entry: int, status: int) -> tuple[str, int]:
        site.insert(entry)
        return "written", status

    @site.app.get("/")
    def read() -> flask.Response:
        rows = site.conn.execute("select entry from ledger order by 1")
        return flask.Response(f"{entry} " for (entry,) in rows)

    @site.app.get("/nested")
    def nested() -> str:
        site.insert(7)
        with site.app.app_context():
            site.insert(8)
        return "nested"

    with rolled_back(site.engine):
        for path in ("/1/200", "/2/500"):
            site.client.post(path)
        with site.app.app_context():
            site.insert(3)
            assert site.client.post("/4/200").status_code == 200
        with site.engine.request():
            assert site.client.get("/").text == "1 3 4 "
        with site.app.app_context():
            site.insert(5)
            with site.app.app_context():
                site.insert(6)
                assert site.client.get("/nested").text == "nested"
        assert site.client.get("/").text == "1 3 4 5 6 7 8 "
    assert entries(superuser) == []


def test_shell_knows_the_extension(site: Site) -> None:
    """``flask shell`` has it by name."""
    reports = ServerlessPg(site.app, name="reports", engine=site.engine)

    context = site.app.make_shell_context()
    assert (context["pg"], context["reports_pg"]) == (site.pg, reports)


def test_status_command(site: Site) -> None:
    """``flask pg status`` shows the census and what happened, and no secret."""
    site.app.add_url_rule("/", view_func=lambda: str(site.conn.info.backend_pid))
    site.client.get("/")
    result = site.app.test_cli_runner().invoke(args=["pg", "status"])

    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines["fleet"].startswith(site.engine.settings.application_name)
    assert lines["sessions"] == "1 of the fleet, 0 of them idle"
    assert " of 97 in use" in lines["server"]
    assert "more" in lines["room"]
    assert "connects 1" in lines["process"]
    assert "password" not in result.output


def test_status_behind_a_pooler(make_site: MakeSite) -> None:
    """Where nobody can count, the command says so."""
    site = make_site({"SERVERLESS_PG_POOLER": "pgbouncer"})
    result = site.app.test_cli_runner().invoke(args=["pg", "status"])

    assert result.exit_code == 0
    assert "unknown: a pooler stands between" in result.output


def test_clean_command(make_site: MakeSite, server: PostgresServer, superuser: Any, fleet: str) -> None:
    """``flask pg clean`` ends what is idle when room is short, and says whom."""
    idle = Engine(conninfo=server.dsn, application_name=fleet)
    with idle.request() as conn:
        pid = conn.info.backend_pid
    site = make_site(
        {
            "SERVERLESS_PG_CONN_UTILIZATION": 0.0,
            "SERVERLESS_PG_STRATEGY": "ranked",
            "SERVERLESS_PG_CENSUS_TTL": 0,
        }
    )
    runner = site.app.test_cli_runner()

    def cleaned() -> bool:
        result = runner.invoke(args=["pg", "clean"])
        assert result.exit_code == 0
        return str(pid) in result.output

    assert eventually(cleaned)  # a session younger than the floor is spared
    assert eventually(lambda: pid not in sessions(superuser, fleet))
    idle.close()


def test_command_without_a_server(make_site: MakeSite) -> None:
    """A command that cannot connect says why in one line, and fails."""
    conninfo = "host=127.0.0.1 port=1 password=secret"
    site = make_site({"SERVERLESS_PG_CONNINFO": conninfo, "SERVERLESS_PG_MAX_WAIT": 0})
    for name in ("status", "clean"):
        result = site.app.test_cli_runner().invoke(args=["pg", name])

        assert result.exit_code == 1
        assert result.output.startswith("Error: AcquireTimeout: ")
        assert "secret" not in result.output


def test_commands_of_a_named_extension(site: Site) -> None:
    """Each extension has commands for its own engine."""
    ServerlessPg(site.app, name="reports", engine=site.engine)

    assert site.app.test_cli_runner().invoke(args=["reports-pg", "status"]).exit_code == 0
