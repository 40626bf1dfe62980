"""Run Django's own tests on the kit's backend and on Django's, and tell every difference.

    python tests/django_suite                                 # the modules that have to do with connections
    python tests/django_suite backends transactions           # these
    python tests/django_suite --source ~/django-5.2.19 ...    # the unpacked source distribution, instead of fetching it

Needs the installed Django's source distribution (it is fetched by pip) and Debian's PostgreSQL 15, for its extensions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import django
from psycopg.conninfo import conninfo_to_dict

from serverless_pg_kit.testing import PostgresServer

HERE = Path(__file__).parent
MODULES = [
    *("backends", "transactions", "transaction_hooks", "servers"),
    *("queries", "db_functions", "migrations", "postgres_tests"),
]
BACKENDS = {"Django's": "django.db.backends.postgresql", "the kit's": "serverless_pg_kit_django"}
KEEPS = "it wants CONN_MAX_AGE to keep the connection at hand; here the engine keeps it, and gives it to any thread"
HEALTH = "backends.base.test_base.ConnectionHealthChecksTests.test_"
INTENDED = {
    f"{HEALTH}health_checks_disabled": KEEPS,
    f"{HEALTH}health_checks_enabled": KEEPS,
    f"{HEALTH}health_checks_enabled_errors_occurred": KEEPS,
    f"{HEALTH}set_autocommit_health_checks_enabled": KEEPS,
}
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


def fetched(folder: Path) -> Path:
    """Return the unpacked source distribution of the installed Django, fetched into `folder`."""
    wanted = f"Django=={django.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
    subprocess.run(pip, cwd=folder, check=True)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder)
    return next(folder.glob("*/tests/runtests.py")).parents[1]


def run(backend: str, server: PostgresServer, source: Path, modules: Sequence[str], outcomes: Path) -> dict[str, str]:
    """Run `modules` of Django's tests on `backend`; return what became of each test."""
    params = conninfo_to_dict(server.superuser_dsn)
    login = {name.upper(): params[name] for name in ("host", "port", "user", "password")}
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "DJANGO_SUITE_ENGINE": backend,
        "DJANGO_SUITE_SERVER": json.dumps(login),
        "DJANGO_SUITE_OUTCOMES": str(outcomes),
    }
    command = [sys.executable, "runtests.py", "--settings=settings", "--noinput", "--parallel=1", *modules]
    started = time.monotonic()
    subprocess.run(command, cwd=source / "tests", env=environ, check=False)
    found: dict[str, str] = json.loads(outcomes.read_text())
    print(f"{backend}: {dict(Counter(found.values()))} in {time.monotonic() - started:.0f} s", flush=True)
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return a line for each test that did not end alike, with the reason where that is intended."""
    names = sorted(one.keys() | other.keys())
    return [
        f"{name}: {one.get(name, 'not run')} on Django's, {other.get(name, 'not run')} on the kit's"
        + (f" (intended: {INTENDED[name]})" if name in INTENDED else "")
        for name in names
        if one.get(name) != other.get(name)
    ]


def main() -> int:
    """Return 0 if every test ended alike on both, those aside whose difference is intended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--source", type=Path, help="folder of the unpacked source distribution")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        PostgresServer(bin_dir=DEBIAN_15, max_connections=100) as server,
    ):
        source = options.source or fetched(Path(folder))
        found = [
            run(backend, server, source.resolve(), options.modules, Path(folder, f"{number}.json"))
            for number, backend in enumerate(BACKENDS.values())
        ]
    told = differences(*found)
    print(*told, f"Django {django.__version__}: {len(found[0])} tests, {len(told)} differences", sep="\n")
    return any("(intended: " not in line for line in told)


if __name__ == "__main__":
    sys.exit(main())
