"""The example's Django site, served as in production."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psycopg
from programs import roots

import logistics_django
from serverless_pg_kit.testing import PostgresServer

EXAMPLES = Path(logistics_django.__file__).parents[1]
SETTINGS = "logistics_django.settings"


def site_environ(conninfo: str, fleet: str = "site", **more: str) -> dict[str, str]:
    """Return the variables of a process that runs the site on the database at `conninfo`."""
    return {
        "DATABASE_URL": conninfo,
        "DJANGO_SETTINGS_MODULE": SETTINGS,
        "PYTHONPATH": roots(EXAMPLES),
        "SERVERLESS_PG_APPLICATION_NAME": fleet,
        **more,
    }


def filled(server: PostgresServer, name: str) -> str:
    """Make a database of that `name` with the site's tables and data; return its connection string."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as conn:
        conn.execute(f"drop database if exists {name} with (force)".encode())
        conn.execute(f"create database {name} owner app".encode())
    conninfo = server.dsn_for(dbname=name)
    code = "from logistics_django.__main__ import fill; fill()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **site_environ(conninfo)}, check=True)
    return conninfo


@contextmanager
def serving(command: list[str], environ: Mapping[str, str], port: int) -> Iterator[str]:
    """Run a web server; yield its address. It is killed with its workers at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=EXAMPLES, env={**os.environ, **environ}, start_new_session=True
    ) as process:
        try:
            wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        with suppress(OSError):
            fetch(f"http://127.0.0.1:{port}/fulfilments/1")
            return
        assert process.poll() is None, "the web server has ended"
        time.sleep(0.05)
    raise AssertionError("the web server does not answer")


def server_command(kind: str, port: int) -> list[str]:
    """Return how to start ``"gunicorn"``, with threads, or ``"uvicorn"``."""
    if kind == "gunicorn":
        return ["gunicorn", "--threads=20", f"--bind=127.0.0.1:{port}", "logistics_django.hosts:wsgi"]
    return ["uvicorn", f"--port={port}", "--log-level=warning", "logistics_django.hosts:asgi"]


def any_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def fetch(url: str, body: Any = None) -> tuple[int, Any]:
    """Return status and decoded body of a GET, or of a POST of `body`."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def order(warehouse_id: int, *items: tuple[int, int]) -> dict[str, Any]:
    """Return an order; `items` are pairs of product and quantity."""
    lines = [{"product_id": product, "quantity": quantity} for product, quantity in items]
    return {"warehouse_id": warehouse_id, "items": lines}


def http_event(method: str, path: str, body: Any = None, query: str = "") -> dict[str, Any]:
    """Return an event of API Gateway, payload 2.0, with all that the recorded one has."""
    recorded = json.loads(Path(__file__).with_name("events").joinpath("api_gateway_v2.json").read_text())
    recorded["requestContext"]["http"] |= {"method": method, "path": path}
    recorded |= {"rawPath": path, "rawQueryString": query, "body": "" if body is None else json.dumps(body)}
    headers = recorded["headers"] | {"content-length": str(len(recorded["body"]))}
    return {**recorded, "headers": headers, "isBase64Encoded": False}
