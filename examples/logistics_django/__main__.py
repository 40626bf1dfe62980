"""``python -m logistics_django``: the site on a throw-away PostgreSQL of its own, filled with data.

It serves on http://127.0.0.1:8000 with gunicorn's threads, with ``--asgi`` with uvicorn. ``DATABASE_URL``, if it is
set, is used instead, as it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from serverless_pg_kit.testing import PostgresServer

HERE = Path(__file__).parent
DATA = HERE.parent / "logistics" / "data.sql"


def fill() -> None:
    """Make the tables, and fill them."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "logistics_django.settings")
    import django
    from django.core.management import call_command
    from django.db import connections, transaction

    django.setup()
    call_command("migrate", verbosity=0)
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute(DATA.read_text())
    connections.close_all()


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asgi", action="store_true", help="serve with uvicorn")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    servers = {
        False: ["gunicorn", "--threads=8", f"--bind=127.0.0.1:{options.port}", "logistics_django.hosts:wsgi"],
        True: ["uvicorn", f"--port={options.port}", "logistics_django.hosts:asgi"],
    }
    with ExitStack() as stack:
        if "DATABASE_URL" not in os.environ:
            os.environ["DATABASE_URL"] = stack.enter_context(PostgresServer(max_connections=20)).dsn
            fill()
        try:
            return subprocess.call([sys.executable, "-m", *servers[options.asgi]], cwd=HERE.parent)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
