"""What a project sees: system checks, commands, migrations, fixtures, its tests in parallel."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from django_site.models import Entry
from programs import roots
from psycopg.conninfo import conninfo_to_dict
from support import eventually

from serverless_pg_kit import Engine
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_django.checks import MIDDLEWARE

Superuser = psycopg.Connection[Any]


def ids() -> list[str]:
    """Return the ids of the kit's checks that find something."""
    return [str(message.id) for message in run_checks(tags=["serverless_pg_kit"])]


def test_checks_silent(site: Any) -> None:
    """A project as the documentation shows it is warned of nothing, and the checks run by themselves."""
    assert [message for message in run_checks() if "serverless" in str(message.id)] == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"CONN_MAX_AGE": None}, ["W001", "W001", "W004"]),
        ({"CONN_MAX_AGE": 60}, ["W001", "W001", "W004"]),
        ({"options": {"pool": True}}, ["W002", "W002", "W005"]),
        ({"CONN_HEALTH_CHECKS": True}, ["W003", "W003"]),
        ({"options": {"serverless": {}}}, []),
        ({"options": {"serverless": {"lease": 3}}}, ["W006"]),
        ({"serverless": {"pooler": "pgbouncer"}}, ["W007", "W007"]),
        ({"HOST": "x.proxy-1.eu-west-1.rds.amazonaws.com"}, ["W007", "W007"]),
        ({"serverless": {"pooler": "pgbouncer"}, "DISABLE_SERVER_SIDE_CURSORS": True}, []),
    ],
)
def test_checks_databases(site: Any, settings: dict[str, Any], found: list[str]) -> None:
    """Each setting that hurts or does nothing is named, with what to do, for the databases that have it."""
    site(**settings)

    assert sorted(ids()) == [f"serverless_pg_kit.{id}" for id in found]
    assert all(message.hint for message in run_checks(tags=["serverless_pg_kit"]))
    site()


@pytest.mark.parametrize(
    ("middleware", "found"),
    [([], ["W008"]), (["django.middleware.common.CommonMiddleware", MIDDLEWARE], ["W009"]), ([MIDDLEWARE], [])],
)
def test_checks_middleware(site: Any, middleware: list[str], found: list[str]) -> None:
    """A middleware that is missing or comes too late is named."""
    with override_settings(MIDDLEWARE=middleware):
        assert ids() == [f"serverless_pg_kit.{id}" for id in found]


def told(command: str, *arguments: Any, **options: Any) -> str:
    """Return what ``manage.py`` says to `command`."""
    out = io.StringIO()
    call_command(command, *arguments, stdout=out, **options)
    return out.getvalue()


def test_pgstatus(site: Any) -> None:
    """pgstatus tells what is in use and how much room there is, in words and as JSON."""
    assert "room for" in told("pgstatus")
    census = json.loads(told("pgstatus", json=True))
    assert census["room"] == census["limit"] - census["used"]


def test_pgstatus_pooler(site: Any) -> None:
    """Behind a pooler there is no census; that is told, and the exit status is not 0."""
    site(serverless={"pooler": "pgbouncer"})
    with pytest.raises(CommandError, match="no census"):
        told("pgstatus")


def test_pgclean(site: Any, server: PostgresServer, superuser: Superuser, fleet: str) -> None:
    """pgclean ends the idle connections of the fleet and says how many; those in use go on."""
    busy, *idle = [Engine(conninfo=server.dsn, application_name=fleet) for _ in range(3)]
    for engine in idle:
        with engine.request() as conn:
            conn.execute("select 1")
    ended = 0

    def has_ended_both() -> bool:
        nonlocal ended
        ended += int(told("pgclean", "--min-idle", "0.1").split(maxsplit=1)[0])
        return ended >= 2

    with busy.request() as conn:
        conn.execute("select 1")
        assert eventually(has_ended_both)
        assert ended == 2
        assert conn.execute("select 2").fetchone() == (2,)
    for engine in (busy, *idle):
        engine.close()


def test_dumpdata(table: type[Entry]) -> None:
    """dumpdata and loaddata go through server-side cursors, as with Django's own backend."""
    Entry.objects.bulk_create(Entry(number=number) for number in range(5))
    dumped = told("dumpdata", "django_site.Entry")
    Entry.objects.all().delete()

    assert [each["fields"]["number"] for each in json.loads(dumped)] == list(range(5))


def test_migrate(site: Any, server: PostgresServer, superuser: Superuser) -> None:
    """Migrations run forward and back."""
    superuser.execute("drop database if exists migrated with (force)")
    superuser.execute("create database migrated owner app")
    site(server.dsn_for(dbname="migrated"))
    told("migrate", verbosity=0)
    assert "auth_user" in connection.introspection.table_names()
    told("migrate", "auth", "zero", verbosity=0)
    assert "auth_user" not in connection.introspection.table_names()


SUITE = """
import os
from django.db import connection, transaction
from django.test import Client, TestCase, TransactionTestCase
from django.contrib.auth.models import User

class Rolled(TestCase):
    def test_first(self):
        User.objects.create(username="one")
        self.assertEqual(Client().get("/pid").status_code, 200)
        self.assertEqual(User.objects.count(), 1)
    test_second = test_first

class Flushed(TransactionTestCase):
    databases = {"default", "replica"}
    def test_first(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            User.objects.create(username="one")
            1 / 0
        User.objects.create(username="two")
        self.assertEqual(User.objects.using("replica").count(), 1)
        self.assertEqual(Client().get("/pid").status_code, 200)
    test_second = test_first
"""


@pytest.mark.parametrize("parallel", [1, 2])
def test_test_databases(server: PostgresServer, superuser: Superuser, tmp_path: Path, parallel: int) -> None:
    """``manage.py test`` makes, copies and drops its databases, also in several processes: no session of ours is left
    there."""
    params = conninfo_to_dict(server.dsn)
    superuser.execute("alter role app createdb")
    names = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password"}
    (tmp_path / "test_site.py").write_text(SUITE)
    environ = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "django_site.settings",
        "DJANGO_SITE_SERVER": json.dumps({key: str(params[name]) for key, name in names.items()}),
        "PYTHONPATH": roots(),
    }
    command = [sys.executable, "-W", "error", "-m", "django", "test", "--noinput", f"--parallel={parallel}"]
    run = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert "Ran 4 tests" in run.stderr
    rows = superuser.execute("select count(*) from pg_database where datname like 'test_app%'").fetchall()
    assert rows == [(0,)]
