"""Run SQLAlchemy's own suite for dialects over its engine and over ours, and compare them test by test.

    python tests/integrations/sqlalchemy/dialect_suite.py [options of pytest, such as -k "not Reflection"]

It takes some minutes. The exit code is 1 if a test ends otherwise over ours, blocking or async.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import psycopg
from psycopg.conninfo import conninfo_to_dict

from serverless_pg_kit.testing import PostgresServer

HERE = Path(__file__).parent / "suite"

PAIRS = {"psycopg": "serverless_pg_suite", "psycopg_async": "serverless_pg_suite_async"}
"""The drivers to compare: SQLAlchemy's and ours."""

Outcomes = dict[str, str]
"""What became of each test: "passed", "failed", "error" or "skipped"."""


def main(arguments: Sequence[str]) -> int:
    """Run all, print what differs, and return the exit code."""
    with suite_server() as server:
        different = 0
        for theirs, ours in PAIRS.items():
            wanted, got = outcomes(server, theirs, arguments), outcomes(server, ours, arguments)
            differences = compare(wanted, got)
            print(f"{theirs}: {dict(Counter(wanted.values()))}; over the kit: {dict(Counter(got.values()))}")
            print("\n".join(differences) or "no test ends otherwise")
            different += len(differences) + ("passed" not in wanted.values())
    return int(different > 0)


def suite_server() -> PostgresServer:
    """Return a server, to be started by ``with``, that has what the suite asks for."""
    return PostgresServer(settings={"max_prepared_transactions": 10})


def outcomes(server: PostgresServer, driver: str, arguments: Sequence[str]) -> Outcomes:
    """Run the suite on a fresh database over `driver`; return what became of each test."""
    make_database(server)
    params = conninfo_to_dict(server.superuser_dsn)
    url = f"postgresql+{driver}://{params['user']}:{params['password']}@{params['host']}:{params['port']}/suite"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *options(report, url), "suite_cases.py", *arguments]
        run = subprocess.run(command, cwd=HERE, env=environment(), capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"pytest did not run over {driver}:\n{run.stdout[-4000:]}{run.stderr[-4000:]}")
        return {named(case): outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def make_database(server: PostgresServer) -> None:
    """Make the database anew, with the second schema that the suite uses."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as conn:
        conn.execute("drop database if exists suite with (force)")
        conn.execute("create database suite")
    with psycopg.connect(server.superuser_dsn, dbname="suite", autocommit=True) as conn:
        conn.execute("create schema test_schema")


def options(report: Path, url: str) -> list[str]:
    """Return how pytest has to be called: with SQLAlchemy's plugin and without our own configuration."""
    plugins = ["suite_plugin", "sqlalchemy.testing.plugin.pytestplugin", "no:cacheprovider"]
    files = ["-c", os.devnull, f"--rootdir={HERE}", f"--junit-xml={report}", f"--dburi={url}"]
    return [*(f"-p{plugin}" for plugin in plugins), *files, "-opython_classes=*Test", "-q"]


def environment() -> dict[str, str]:
    """Return the environment of pytest: the folder of the suite can be imported from, warnings are SQLAlchemy's."""
    return {**os.environ, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}


def named(case: ElementTree.Element) -> str:
    """Return the name of a test without that of its driver."""
    return re.sub(r"_postgresql\+\w+?_(?=\d+_\d)", "_", f"{case.get('classname')}.{case.get('name')}")


def outcome(case: ElementTree.Element) -> str:
    """Return what became of a test."""
    return next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed")


def compare(theirs: Outcomes, ours: Outcomes) -> list[str]:
    """Return a line for each test that does not end alike."""
    return [
        f"{name}: {theirs.get(name, 'missing')}, over the kit {ours.get(name, 'missing')}"
        for name in sorted(theirs | ours)
        if theirs.get(name) != ours.get(name)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
