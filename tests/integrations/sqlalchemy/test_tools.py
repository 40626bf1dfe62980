"""Flask-SQLAlchemy and Alembic on the connections of the kit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import exc
from sqlalchemy.orm import Mapped, mapped_column
from support import SYNC_ONLY, entries, kill

from serverless_pg_kit import Engine, Settings
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_sqlalchemy import create_engine, engine_options

ENVIRONMENT = """
from alembic import context
from serverless_pg_kit import Engine
from serverless_pg_kit_sqlalchemy import create_engine

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    kit = Engine(max_size=1, application_name="migrations")
    with create_engine(kit).connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    kit.close()
"""

MIGRATIONS = {
    "one": (None, 'op.create_table("migrated", sa.Column("id", sa.Integer, primary_key=True))'),
    "two": ("one", 'op.add_column("migrated", sa.Column("name", sa.Text))'),
    "broken": ("two", 'op.add_column("migrated", sa.Column("other", sa.Text)); op.execute("select 1/0")'),
}
"""By name: the migration before it and what it does."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: PostgresServer) -> Config:
    """A folder of migrations."""
    monkeypatch.setenv("DATABASE_URL", server.superuser_dsn + "?dbname=app")
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    for name, (before, work) in MIGRATIONS.items():
        lines = [f"revision, down_revision = {name!r}, {before!r}", "from alembic import op", "import sqlalchemy as sa"]
        lines += [
            "def upgrade():",
            f"    {work}",
            "def downgrade():",
            '    op.execute("drop table if exists migrated")',
        ]
        (tmp_path / "versions" / f"{name}.py").write_text("\n".join(lines))
    config = Config(output_buffer=io.StringIO())
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    return config


def test_alembic_online(config: Config, superuser: Any) -> None:
    """Migrations are applied, each in its transaction; one that fails leaves those before it."""
    columns = "select column_name from information_schema.columns where table_name = 'migrated' order by 1"
    try:
        command.upgrade(config, "two")
        with pytest.raises(exc.DataError, match="division by zero"):
            command.upgrade(config, "broken")
        assert superuser.execute(columns).fetchall() == [("id",), ("name",)]
        assert superuser.execute("select version_num from alembic_version").fetchall() == [("two",)]
    finally:
        superuser.execute("drop table if exists migrated, alembic_version")


def test_alembic_offline(config: Config) -> None:
    """Offline, migrations are written as SQL."""
    config.output_buffer = written = io.StringIO()
    command.upgrade(config, "two", sql=True)
    assert "CREATE TABLE migrated" in written.getvalue()


class Shop:
    """An application with Flask-SQLAlchemy, and its database."""

    def __init__(self, kit: Engine, **options: Any) -> None:
        self.app = Flask("shop")
        self.app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(kit, **options)
        self.app.config["SQLALCHEMY_BINDS"] = {"same": engine_options(kit, isolation_level="AUTOCOMMIT")}
        self.db = db = SQLAlchemy(self.app)

        class Entry(db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "ledger"
            entry: Mapped[int] = mapped_column(primary_key=True)

        @self.app.post("/<int:number>")
        def add(number: int) -> str:
            db.session.add(Entry(**{"entry": number}))
            db.session.commit()
            return "added"

        @self.app.post("/<int:number>/failing")
        def fail(number: int) -> str:
            db.session.add(Entry(**{"entry": number}))
            db.session.flush()
            raise ZeroDivisionError

        @self.app.get("/")
        def count() -> str:
            return str(db.session.scalar(sa.select(sa.func.count()).select_from(Entry)))


@SYNC_ONLY
def test_flask_sqlalchemy(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Requests commit, roll back when they fail, are not harmed by a lost connection, and give it back each."""
    kit = make_engine(max_size=1)
    client = Shop(kit).app.test_client()
    assert client.post("/1").text == "added"
    assert client.post("/2/failing").status_code == 500
    pid = superuser.execute(
        "select pid from pg_stat_activity where application_name = %s", [kit.settings.application_name]
    )
    kill(superuser, *(pid for (pid,) in pid.fetchall()))
    assert client.get("/").text == "1"
    assert (entries(superuser), kit.stats.in_use) == ([1], 0)


def test_flask_sqlalchemy_takes_settings_of_the_app(server: PostgresServer) -> None:
    """The settings stand in the configuration of the application, under their names."""
    app = Flask("shop")
    app.config.update(SERVERLESS_PG_MAX_SIZE="3", SERVERLESS_PG_CONNINFO=server.dsn)
    kit = Engine(Settings.from_config(app.config))
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(kit, echo=False)
    db = SQLAlchemy(app)
    with app.app_context():
        assert db.session.scalar(sa.text("select 1")) == 1
        assert db.engine.pool.status() == "ServerlessPgPool in use: 1 idle: 0"
    assert (kit.settings.max_size, kit.stats.in_use) == (3, 0)
    kit.close()


@SYNC_ONLY
def test_engines_of_the_binds(make_engine: Any) -> None:
    """Each bind has its own engine of SQLAlchemy; both use the connections of the kit."""
    kit = make_engine()
    shop = Shop(kit)
    with shop.app.app_context():
        for engine in (shop.db.engine, shop.db.engines["same"]):
            with engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1
    assert kit.stats.connects == 1


@SYNC_ONLY
def test_inspection(make_engine: Any, ledger: str) -> None:
    """Reflection and ``inspect()`` work through the same connections."""
    engine = create_engine(make_engine(max_size=1))
    assert sa.Table(ledger, sa.MetaData(), autoload_with=engine).primary_key.columns.keys() == ["entry"]
    assert ledger in sa.inspect(engine).get_table_names()
