"""How engines are made: whose settings, which options, and what is refused by name."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import AsyncClientCursor, ClientCursor
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import HSTORE, INET
from sqlalchemy.pool import StaticPool
from sqlalchemy_stage import Make, Stage, driver

from serverless_pg_kit import AsyncEngine, Engine, Settings, SettingsError
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_sqlalchemy import create_async_engine, create_engine, engine_options

SECRET = "a-secret-word"


def scalar(stage: Stage, statement: str | sa.Executable) -> Any:
    """Return the first value of `statement`."""

    def work() -> Any:
        with stage.engine.connect() as conn:
            return conn.scalar(sa.text(statement) if isinstance(statement, str) else statement)

    return stage.run(work)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("pool_size", 5, "max_size"),
        ("max_overflow", 0, "max_size"),
        ("pool_timeout", 3, "max_wait"),
        ("pool_recycle", 60, "max_lifetime"),
        ("pool_use_lifo", True, "used last"),
        ("poolclass", StaticPool, "keeps the connections"),
        ("pool", None, "keeps the connections"),
        ("creator", print, "opens the connections"),
        ("async_creator", print, "opens the connections"),
        ("client_encoding", "utf8", "conninfo"),
        ("url", "postgresql://", "conninfo"),
    ],
)
def test_refused(name: str, value: object, instead: str) -> None:
    """What the kit's engine decides is refused by name, and the setting for it is named."""
    with pytest.raises(TypeError, match=rf"{name} is not allowed here.*{instead}"):
        create_engine(Engine(), **{name: value})
    with pytest.raises(TypeError, match=rf"{name} is not allowed here.*{instead}"):
        create_async_engine(AsyncEngine(), **{name: value})


def test_unknown_option() -> None:
    """An option that SQLAlchemy does not know is refused, a setting of the kit too: it belongs to its engine."""
    with pytest.raises(TypeError, match="max_size"):
        create_engine(Engine(), max_size=3)
    with pytest.raises(SettingsError, match="MAX_SIZ="):
        Settings.from_config({"SERVERLESS_PG_MAX_SIZ": "3"})


@pytest.mark.parametrize("name", ["host", "options", "autocommit", "row_factory", "context"])
def test_refused_connect_args(make: Make, name: str) -> None:
    """``connect_args`` holds nothing that the settings decide."""
    stage = make({"connect_args": {name: "x"}})
    with pytest.raises(TypeError, match=rf"connect_args: {name} is not allowed"):
        scalar(stage, "select 1")


def test_wrong_engine() -> None:
    """An engine of the other kind, SQLAlchemy's or an URL is refused by name."""
    with pytest.raises(TypeError, match=r"pass a serverless_pg_kit.Engine, not .*AsyncEngine"):
        create_engine(AsyncEngine())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pass a serverless_pg_kit.AsyncEngine, not .*Engine"):
        create_async_engine(Engine())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pass a .*, not builtins.str"):
        engine_options("postgresql://")  # type: ignore[arg-type]


def test_url_alone_will_not_do() -> None:
    """An engine made of the URL tells how to make one."""
    engine = sa.create_engine("postgresql+serverless_pg_kit://")
    with pytest.raises(exc.ArgumentError, match="create_engine"):
        engine.connect()


def test_url_shows_the_server_and_no_secret() -> None:
    """The URL names the server for logs and tools; the password stays with the kit."""
    engine = create_engine(Engine(conninfo=f"postgresql://app:{SECRET}@db.example:6543/shop"))
    assert engine.url.render_as_string(hide_password=False) == "postgresql+serverless_pg_kit://app@db.example:6543/shop"
    assert (engine.name, engine.driver, engine.dialect.name) == ("postgresql", "psycopg", "postgresql")
    shown = [engine, engine.url, engine.pool, engine.dialect, engine_options(Engine(conninfo=f"password={SECRET}"))]
    assert SECRET not in " ".join(map(repr, shown))
    several = create_engine(Engine(conninfo="host=one,two port=1,2 dbname=shop"))
    assert several.url.host == "one,two"


def test_settings_of_the_environment(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are those of the kit's engine, wherever it has them from."""
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    monkeypatch.setenv("SERVERLESS_PG_MAX_SIZE", "1")
    monkeypatch.setenv("SERVERLESS_PG_MAX_WAIT", "1")
    monkeypatch.setenv("SERVERLESS_PG_APPLICATION_NAME", "from env")
    engine = create_engine(Engine())
    with engine.connect() as conn:
        assert conn.scalar(sa.text("show application_name")) == "from env"
        with pytest.raises(exc.OperationalError, match="all 1 connections"):
            engine.connect()
    engine.dispose()


def test_status_of_the_pool(stage: Stage) -> None:
    """``pool.status()`` tells what the kit's engine has open."""
    scalar(stage, "select 1")
    assert stage.engine.pool.status() == "ServerlessPgPool in use: 0 idle: 1"


def test_configured_connections(make: Make) -> None:
    """What ``configure`` sets is kept, except for what SQLAlchemy cannot live with."""

    def configure(conn: Any) -> None:
        conn.row_factory = dict_row
        conn.prepare_threshold = None
        set_json_loads(lambda text: "loaded", conn)

    stage = make(configure=configure)
    assert scalar(stage, "select 7") == 7
    assert scalar(stage, "select '{}'::json") == "loaded"

    def work() -> None:
        with stage.engine.connect() as conn:
            assert driver(conn).prepare_threshold is None

    stage.run(work)


def test_connect_args(make: Make) -> None:
    """Attributes of the connection may be given as ``connect_args``."""
    stage = make({"connect_args": {"prepare_threshold": 0}})

    def work() -> None:
        with stage.engine.connect() as conn:
            assert driver(conn).prepare_threshold == 0
            conn.execute(sa.text("select 1"))
            names = conn.scalars(sa.text("select name from pg_prepared_statements"))
            assert [name for name in names if name.startswith("_pg3")]

    stage.run(work)


def test_cursor_class(make: Make) -> None:
    """A cursor class that binds on the client works, as SQLAlchemy's documentation shows."""
    for factory in (ClientCursor, AsyncClientCursor):
        stage = make({"connect_args": {"cursor_factory": factory}})
        if stage.is_async is (factory is AsyncClientCursor):
            assert scalar(stage, sa.select(sa.literal("x"))) == "x"


def test_adapters(make: Make) -> None:
    """``json_serializer``, ``json_deserializer`` and ``native_inet_types`` work, on every checkout."""
    stage = make(
        {
            "json_serializer": lambda value: '"dumped"',
            "json_deserializer": lambda text: [text],
            "native_inet_types": False,
        }
    )
    for _ in range(2):
        assert scalar(stage, sa.select(sa.cast(sa.literal({}, sa.JSON), sa.JSON))) in (['"dumped"'], [b'"dumped"'])
        assert scalar(stage, sa.select(sa.cast("10.0.0.1", INET))) == "10.0.0.1"


def test_adapters_do_not_leak(make: Make, make_engine: Any) -> None:
    """What SQLAlchemy registers is gone when the kit gives the connection to somebody else."""
    stage = make({"json_deserializer": lambda text: "loaded"})
    assert scalar(stage, "select '[1]'::json") == "loaded"
    if not stage.is_async:
        with stage.kit.request() as conn:
            assert conn.execute("select '[1]'::json").fetchone() == ([1],)


def test_hstore(make: Make, server: PostgresServer) -> None:
    """HSTORE is adapted on every connection, although its type is looked up once."""
    with psycopg.connect(server.superuser_dsn, dbname="app", autocommit=True) as conn:
        try:
            conn.execute("create extension if not exists hstore")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server comes without extensions")
    stage = make()
    for _ in range(2):
        value = sa.select(sa.cast(sa.literal({"a": "1"}, HSTORE), HSTORE))
        assert scalar(stage, value) == {"a": "1"}
        assert scalar(stage, "select 'a=>1'::hstore") == {"a": "1"}
