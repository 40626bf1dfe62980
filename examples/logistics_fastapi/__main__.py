"""``python -m logistics_fastapi``: the application on uvicorn, and a throw-away PostgreSQL behind it."""

from __future__ import annotations

import os
import sys

import uvicorn

from logistics.embedded import embedded_server

PORT = 8000


def main(port: int) -> None:
    """Serve at 127.0.0.1 and `port` until Ctrl+C or SIGTERM."""
    with embedded_server() as server:
        os.environ["DATABASE_URL"] = server.dsn  # before the application makes its engine
        print(f"Try http://127.0.0.1:{port}/sales?limit=2", flush=True)
        uvicorn.run("logistics_fastapi.app:app", port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
