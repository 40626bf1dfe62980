"""``python -m logistics_flask``: the application on gunicorn, and a throw-away PostgreSQL behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from logistics.embedded import embedded_server

ADDRESS = "127.0.0.1:8000"
APPLICATION = "logistics_flask.app:create_app()"


def main(address: str) -> int:
    """Serve at `address` until Ctrl+C or SIGTERM; return gunicorn's exit status."""
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--bind",
        address,
        "--threads",
        "20",
        "logistics_flask.app:create_app()",
    ]
    with embedded_server() as server:
        print(f"Try http://{address}/sales?limit=2", flush=True)
        environment = {**os.environ, "DATABASE_URL": server.dsn}
        with subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[1]) as gunicorn:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: gunicorn.terminate())
            return gunicorn.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or [ADDRESS]))
